"""What makes a choice among candidates certain, and what makes a promise of recall hold.

A token that is no candidate scores at most its score by the code plus what the code may leave out. With r the residual
of its row and h′ the white hidden state this is r · h′ ≤ Σ_b ‖r_b‖ ‖h′_b‖ over blocks of coordinates b, by Cauchy and
Schwarz: a proof. A factor below 1 on one block of all coordinates is not: it is chosen so that the residuals of the
winners stay below it at positions set aside, and a new position, drawn as they were, breaks it with the probability
that the order statistic says (V. Vovk, A. Gammerman, G. Shafer 2005, "Algorithmic Learning in a Random World", chapter
2; V. Vovk 2012, "Conditional validity of inductive conformal predictors", proposition 2a).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codehead.errors import ConfigurationError

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
