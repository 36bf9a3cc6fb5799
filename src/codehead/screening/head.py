"""A Softmax head that computes the logits of candidates alone while a generation needs no others."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.models.logit_scaling import LogitScaling
from codehead.models.selection import Selection, Step
from codehead.screening import certificate
from codehead.screening.screen import Screen

MORE = 4
"""How many times as many candidates are taken where the first do not include the best token for certain."""
POSITIONS = 2
"""At once, above which the dense head is as fast: it reads its rows once for all of them."""


class Scored(NamedTuple):
    """The candidates of one position."""

    ids: Tensor
    """`(m,)`, int64."""
    logits: Tensor
    """`(m,)`."""
    floor: Tensor
    """`()`: no other token has more."""


class ScreenedLinear(nn.Linear):
    """The output embedding of a model `(hidden → V)` with a `Screen`; its rows, tied or not, are those from before.

    Without a selection under way it is the linear layer that it was.
    """

    screen: Screen
    selection: Selection | None = None
    tail: LogitScaling
    """What the model does to what its head gives: it scales or caps."""

    @classmethod
    def of(cls, weight: Tensor, screen: Screen) -> ScreenedLinear:
        """A head that belongs to no model, of rows `(V, H)` that the screen is ready for."""
        head: Any = cls(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight, head.screen, head.tail = nn.Parameter(weight, requires_grad=False), screen, LogitScaling()
        made: ScreenedLinear = head
        return made

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, length, hidden)` → logits `(batch, length, V)`; of the last position, −∞ but for candidates."""
        if self.selection is None or torch.compiler.is_compiling() or len(hidden) > POSITIONS:
            return super().forward(hidden)
        last, settings = hidden[:, -1:], self.screen.settings
        positions, count = last[:, 0], max(settings.candidates, self.selection.count)
        scored = self._of(positions, count)
        if settings.mode == "exact":
            pairs = zip(positions, scored, strict=True)
            sure = [self._sure(*pair, count, self.selection.least) for pair in pairs]
            scored = [found for found in sure if found is not None]
        if len(scored) < len(last):
            return super().forward(last)
        logits = last.new_full((len(last), 1, self.out_features), -torch.inf)
        for row, found in zip(logits.unbind(), scored, strict=True):
            row.index_copy_(1, found.ids, found.logits[None])
        floor, dense = self.tail(torch.stack([found.floor for found in scored])), super().forward
        known = None if self.tail.cap is None else logits[:, -1] > -torch.inf  # a cap makes −∞ finite
        self.selection.step = Step(logits, floor, lambda: self.tail(dense(last)), known)
        return logits

    def _sure(self, hidden: Tensor, found: Scored, count: int, least: int) -> Scored | None:
        """These `count` candidates of a position `(hidden,)`, or more; None if others may be among the `least` best."""
        if not certificate.certain(found.logits, float(found.floor), least):
            found = self._of(hidden[None], MORE * count)[0]
        sure = certificate.certain(found.logits, float(found.floor), least)
        rows = self.weight.index_select(0, found.ids)
        return None if not sure or certificate.close(hidden, rows, found.logits) else found

    def _of(self, hidden: Tensor, count: int) -> list[Scored]:
        """At least `count` candidates of every position `(positions, hidden)`."""
        ids, rest = self.screen.search(hidden, min(count, self.out_features))
        return [self._scored(*position) for position in zip(hidden.split(1), ids, rest, strict=True)]

    def _scored(self, hidden: Tensor, ids: np.ndarray, rest: float) -> Scored:
        """The candidates `ids` `(m,)` of one position `(1, hidden)`."""
        chosen = torch.from_numpy(ids)
        bias = None if self.bias is None else self.bias.index_select(0, chosen)
        logits = F.linear(hidden, self.weight.index_select(0, chosen), bias)[0]
        bound = logits.min() if self.screen.settings.mode == "fast" else _above(float(rest), logits)
        return Scored(chosen, logits, bound)


def _above(value: float, like: Tensor) -> Tensor:
    """The number in the dtype of a tensor that is not below a value."""
    rounded = torch.tensor(value, dtype=like.dtype, device=like.device)
    return rounded if float(rounded) >= value else torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
