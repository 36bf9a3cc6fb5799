"""A Softmax head that computes the logits of candidates alone while a generation needs no others."""

from __future__ import annotations

from typing import NamedTuple

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

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, length, hidden)` → logits `(batch, length, V)`; of the last position, −∞ but for candidates."""
        if self.selection is None or torch.compiler.is_compiling() or len(hidden) > POSITIONS:
            return super().forward(hidden)
        last = hidden[:, -1:]
        floors = []
        logits = last.new_full((len(last), 1, self.out_features), -torch.inf)
        for row, position in zip(logits, last[:, 0], strict=True):
            scored = self._scored(position, self.selection.count, self.selection.least)
            if scored is None:
                return super().forward(last)
            row[0, scored.ids] = scored.logits
            floors.append(scored.floor)
        floor, dense = self.tail(torch.stack(floors)), super().forward
        known = None if self.tail.cap is None else logits[:, -1] > -torch.inf  # a cap makes −∞ finite
        self.selection.step = Step(logits, floor, lambda: self.tail(dense(last)), known)
        return logits

    def _scored(self, hidden: Tensor, count: int, least: int = 1) -> Scored | None:
        """At least `count` candidates of a position `(hidden,)`; None where others may be among the `least` best."""
        settings = self.screen.settings
        taken = max(settings.candidates, count)
        found = self._of(hidden, taken)
        if settings.mode == "fast":
            return found
        if not certificate.certain(found.logits, float(found.floor), least):
            found = self._of(hidden, MORE * taken)
        sure = certificate.certain(found.logits, float(found.floor), least)
        return None if not sure or certificate.close(hidden, self.weight[found.ids], found.logits) else found

    def _of(self, hidden: Tensor, count: int) -> Scored:
        ids, rest = self.screen.search(hidden[None], min(count, self.out_features))
        chosen = torch.from_numpy(ids[0])
        bias = None if self.bias is None else self.bias[chosen]
        logits = F.linear(hidden[None], self.weight[chosen], bias)[0]
        bound = logits.min() if self.screen.settings.mode == "fast" else _above(float(rest[0]), logits)
        return Scored(chosen, logits, bound)


def _above(value: float, like: Tensor) -> Tensor:
    """The number in the dtype of a tensor that is not below a value."""
    rounded = torch.tensor(value, dtype=like.dtype, device=like.device)
    return rounded if float(rounded) >= value else torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
