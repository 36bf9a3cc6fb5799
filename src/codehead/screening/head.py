"""A Softmax head that computes only the logits of candidates while generation needs no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.decoding.numerics import no_autocast, top_k
from codehead.models.probe import LogitScaling
from codehead.models.selection import Selection, Step, awaited, spread
from codehead.screening.screen import Screen

MORE = 4
"""The factor on candidates where the first ones do not include the best token for certain."""
LANES = 8
"""The fewest partial sums that a matrix product kernel keeps, so that a sum has at most H / 8 roundings."""


class Scored(NamedTuple):
    """The candidates of some positions."""

    ids: Tensor
    """`(positions, m)`, int64, ascending."""
    logits: Tensor
    """`(positions, m)`."""
    floor: Tensor
    """`(positions,)`: no other token scores more."""


_stand_in: ContextVar[tuple[nn.Module | None, nn.Module | None]] = ContextVar("stand-in", default=(None, None))
"""A head, and the module that answers in its place."""


class ScreenedLinear(nn.Linear):
    """The output embedding of a model `(hidden → V)` with a `Screen`; its rows, tied or not, are unchanged.

    Unless a selection awaits its candidates, it is the original linear layer.
    """

    screen: Screen
    scaling: LogitScaling
    """How the model scales or caps the outputs of its head."""

    @classmethod
    def of(cls, weight: Tensor, screen: Screen) -> ScreenedLinear:
        """A head outside any model, with rows `(V, H)` that the screen is ready for."""
        head = cls(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight, head.screen, head.scaling = nn.Parameter(weight, requires_grad=False), screen, LogitScaling()
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, length, hidden)` → logits `(batch, length, V)`; selecting, of the last position's candidates."""
        if torch.compiler.is_compiling():
            return super().forward(hidden)
        head, other = _stand_in.get()
        if other is not None and head is self:
            return other(hidden)
        selection = awaited(self)
        return super().forward(hidden) if selection is None else self._selected(hidden[:, -1:], selection)

    def _selected(self, last: Tensor, selection: Selection) -> Tensor:
        """Logits `(batch, 1, V)` of the candidates for the last hidden states `(batch, 1, hidden)`, −∞ for others."""
        scored = self.candidates(last[:, 0], selection.count, selection.least)
        if scored is None:
            return super().forward(last)
        dense, floor = super().forward, self.scaling(scored.floor)
        logits = spread(scored.ids, scored.logits, self.out_features)[:, None]
        selection.step = Step(scored.ids, logits, floor, lambda: self.scaling(dense(last)))
        return logits

    @contextmanager
    def replaced_by(self, other: nn.Module) -> Iterator[None]:
        """Let another module answer in place of this one, in this thread alone."""
        token = _stand_in.set((self, other))
        try:
            yield
        finally:
            _stand_in.reset(token)

    def best(self, hidden: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Ids and logits `(positions, k)` of the best tokens at hidden states `(positions, hidden)`; equal ones by id.

        No tensor is as wide as the vocabulary, unless the dense head is needed or just as fast.
        """
        scored = self.candidates(hidden, k, k)
        if scored is None:
            logits = super().forward(hidden)
            ids = top_k(logits, k)
            return ids, logits.gather(1, ids)
        logits, places = scored.logits.sort(dim=1, descending=True, stable=True)  # ids ascend
        return scored.ids.gather(1, places[:, :k]), logits[:, :k]

    def candidates(self, hidden: Tensor, count: int = 1, least: int = 1) -> Scored | None:
        """At least `count` tokens of every position `(positions, hidden)`; in mode "exact" they hold the `least` best.

        None if that takes all logits, or if computing them all is as fast.
        """
        count = max(self.screen.settings.candidates, count)
        if not self.screen.pays(len(hidden), self.weight):
            return None
        scored = self._of(hidden, count)
        return scored if self.screen.settings.mode == "fast" else self._sure(hidden, scored, count, least)

    def _sure(self, hidden: Tensor, found: Scored, count: int, least: int) -> Scored | None:
        """These `count` candidates of every position, or more; None if others may be in the `least` best of one."""
        while ((found.logits > found.floor[:, None]).sum(1) < least).any():
            count *= MORE
            if count > self.out_features // MORE:
                return None
            found = self._of(hidden, count)
        positions = zip(hidden, found.ids, found.logits, strict=True)
        return None if any(close(one, self.weight[ids], logits) for one, ids, logits in positions) else found

    def _of(self, hidden: Tensor, count: int) -> Scored:
        """At least `count` candidates of every position `(positions, hidden)`."""
        with no_autocast(hidden.device.type):
            found, rest = self.screen.search.best(hidden, min(count, self.out_features))
        found.sort(axis=1)
        ids = torch.from_numpy(found)
        logits = torch.cat([self._logits(*position) for position in zip(hidden.split(1), ids.unbind(), strict=True)])
        return Scored(ids, logits, logits.amin(1) if rest is None else _above(rest, logits))

    def _logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits `(1, m)` of some tokens `(m,)` at one position `(1, hidden)`."""
        bias = None if self.bias is None else self.bias.index_select(0, ids)
        return F.linear(hidden, self.weight.index_select(0, ids), bias)


def _above(values: np.ndarray, like: Tensor) -> Tensor:
    """Values `(positions,)` rounded up to the dtype of a tensor."""
    wanted = torch.from_numpy(values)
    rounded = wanted.to(like)
    return torch.where(rounded.double() >= wanted, rounded, torch.nextafter(rounded, rounded.new_tensor(torch.inf)))


def rounding(hidden: Tensor, rows: Tensor) -> Tensor:
    """How far scores `(rows,)` of one hidden state `(H,)` may differ from those of another kernel.

    Twice the bound (H / 8 + 8) · u · Σ |w h| of a sum in 8 partial sums (N. Higham 2002, "Accuracy and Stability of
    Numerical Algorithms", section 4.2), u being half the spacing of the dtype; of a 16-bit one, of its last rounding.
    """
    unit = torch.finfo(hidden.dtype).eps / 2
    steps = hidden.shape[-1] / LANES + LANES if hidden.dtype in (torch.float32, torch.float64) else 2
    return 2 * steps * unit * (rows.abs().float() @ hidden.abs().float())


def close(hidden: Tensor, rows: Tensor, scores: Tensor) -> bool:
    """Whether rounding may decide between the two best of scores `(m,)`, of rows `(m, H)`."""
    best = scores.topk(min(2, len(scores))).indices
    slack = rounding(hidden, rows[best]).sum()
    return len(best) > 1 and bool(scores[best[0]].float() - scores[best[1]].float() <= slack)
