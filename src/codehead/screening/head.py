"""A Softmax head that computes the logits of candidates alone while a generation needs no others.

A token that is no candidate scores at most its score by the code plus what the code may leave out. With r the residual
of its row and h′ the white hidden state this is r · h′ ≤ Σ_b ‖r_b‖ ‖h′_b‖ over blocks of coordinates b, by Cauchy and
Schwarz: a proof. A factor below 1 on one block of all coordinates is not: it is chosen so that the residuals of the
winners stay below it at positions set aside, and a new position, drawn as they were, breaks it with the probability
that the order statistic says (V. Vovk, A. Gammerman, G. Shafer 2005, "Algorithmic Learning in a Random World", chapter
2; V. Vovk 2012, "Conditional validity of inductive conformal predictors", proposition 2a).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.models.probe import LogitScaling
from codehead.models.selection import Selection, Step
from codehead.screening.screen import Screen

LANES = 8
"""Partial sums that every kernel of matrix products keeps at least, so that H / 8 roundings are all that a sum has."""


def order_statistic(count: int, share: float, confidence: float) -> int:
    """Which of `count` values in ascending order, 1 for the least, a new one does not exceed with probability `share`.

    Over draws of the values that probability is at least `share` with this `confidence`. Values need only be
    exchangeable. The least m with P(Binomial(count, share) ≥ m) ≤ 1 − confidence.

    Raises:
        ConfigurationError: there are too few values for that.
    """
    failures, below = 0, 0.0
    while True:  # P(Binomial(count, 1 − share) ≤ failures) must not exceed 1 − confidence
        below += math.exp(
            _log_binomial(count, failures) + failures * math.log(1 - share) + (count - failures) * math.log(share)
        )
        if below > 1 - confidence:
            break
        failures += 1
    if not failures:
        needed = math.ceil(math.log(1 - confidence) / math.log(share))
        raise ConfigurationError(
            f"a recall of {share:.4%} cannot be promised with {confidence:.0%} confidence from {count:,} positions; "
            f"give {needed:,} of them or more, half of all positions, or promise less"
        )
    return count - failures + 1


def _log_binomial(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def rounding(hidden: Tensor, rows: Tensor) -> Tensor:
    """How far scores `(rows,)` of one hidden state `(H,)` may be from those that another kernel computes.

    Twice the bound H / 8 · u · Σ |w h| of a sum in that many partial sums (N. Higham 2002, "Accuracy and Stability of
    Numerical Algorithms", section 4.2), u being half the spacing of the dtype.
    """
    unit = torch.finfo(hidden.dtype).eps / 2
    steps = hidden.shape[-1] / LANES + LANES if hidden.dtype in (torch.float32, torch.float64) else 2
    return 2 * steps * unit * (rows.abs().float() @ hidden.abs().float())


def certain(scores: Tensor, rest: float, count: int) -> bool:
    """Whether `count` of the candidates' scores `(m,)` are above `rest`, what others score at most."""
    return int((scores > rest).sum()) >= count


def close(hidden: Tensor, rows: Tensor, scores: Tensor) -> bool:
    """Whether rounding may decide between the two best of scores `(m,)`, of rows `(m, H)`."""
    best = scores.topk(min(2, len(scores))).indices
    slack = rounding(hidden, rows[best]).sum()
    return len(best) > 1 and bool(scores[best[0]].float() - scores[best[1]].float() <= slack)


MORE = 4
"""How many times as many candidates are taken where the first do not include the best token for certain."""


class Scored(NamedTuple):
    """The candidates of one position."""

    ids: Tensor
    """`(m,)`, int64, ascending."""
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
        if self.selection is None or torch.compiler.is_compiling():
            return super().forward(hidden)
        last = hidden[:, -1:]
        scored = self.candidates(last[:, 0], self.selection.count, self.selection.least)
        if scored is None:
            return super().forward(last)
        logits = last.new_full((len(last), 1, self.out_features), -torch.inf)
        for row, found in zip(logits.unbind(), scored, strict=True):
            row.index_copy_(1, found.ids, found.logits[None])
        floor, dense = self.tail(torch.stack([found.floor for found in scored])), super().forward
        known = None if self.tail.cap is None else logits[:, -1] > -torch.inf  # a cap makes −∞ finite
        self.selection.step = Step(logits, floor, lambda: self.tail(dense(last)), known)
        return logits

    def best(self, hidden: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Ids and logits `(positions, k)` of the best tokens at hidden states `(positions, hidden)`; equal ones by id.

        Nothing is as wide as the vocabulary, unless the dense head is needed, or as fast.
        """
        scored = self.candidates(hidden, k, k)
        if scored is None:
            tokens = torch.arange(self.out_features)
            scored = [Scored(tokens, row, row[0]) for row in super().forward(hidden)]
        found = [_first(some, k) for some in scored]
        return torch.stack([ids for ids, _ in found]), torch.stack([logits for _, logits in found])

    def candidates(self, hidden: Tensor, count: int = 1, least: int = 1) -> list[Scored] | None:
        """At least `count` tokens of every position `(positions, hidden)`, which in mode "exact" hold the `least` best.

        None if all logits are needed for that, or are computed as fast.
        """
        count = max(self.screen.settings.candidates, count)
        if not self.screen.pays(len(hidden), self.weight):
            return None
        scored = self._of(hidden, count)
        if self.screen.settings.mode == "fast":
            return scored
        sure = []
        for position, few in zip(hidden, scored, strict=True):
            found = self._sure(position, few, count, least)
            if found is None:
                return None
            sure.append(found)
        return sure

    def _sure(self, hidden: Tensor, found: Scored, count: int, least: int) -> Scored | None:
        """These `count` candidates of a position `(hidden,)`, or more; None if others may be among the `least` best."""
        while not certain(found.logits, float(found.floor), least):
            count *= MORE
            if count > self.out_features // MORE:
                return None
            found = self._of(hidden[None], count)[0]
        rows = self.weight.index_select(0, found.ids)
        return None if close(hidden, rows, found.logits) else found

    def _of(self, hidden: Tensor, count: int) -> list[Scored]:
        """At least `count` candidates of every position `(positions, hidden)`."""
        ids, rest = self.screen.search.best(hidden, min(count, self.out_features))
        ids.sort(axis=1)
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


def _first(found: Scored, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the candidates, equal ones by id."""
    logits, places = found.logits.sort(descending=True, stable=True)
    return found.ids[places[:k]], logits[:k]
