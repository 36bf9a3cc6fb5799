"""Probabilistic decoding (Passerini, Pontil, Frasconi 2004): log(Π_{j: c_j ≠ 0} P(c_j | z_j) + K).

P(c_j | z_j) = 1 / (1 + e^(c_j (A_j z_j + B_j))) is Platt's sigmoid, A and B fitted to every column. K is the
probability of the words that belong to no class, shared equally by the V classes: K = (1 − Σ_v Π_v) / V, which makes
the probabilities of all classes sum to 1; it is 0 where codewords with zeros overlap and the products exceed 1
together. It changes no ranking, so tokens are ranked by the logarithm of their product, which keeps apart what K would
drown.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS, SEEN, FittedDecoder, Form, Scored, Terms, Weights

SIGMOIDS = "sigmoids"
"""`(2, n)`: the bit patterns of A and B in float32."""


class WithUnclaimed(NamedTuple):
    """Log-probabilities of codewords, to which the share K of the unclaimed words is still to be added."""

    terms: Terms

    def scores(self, table: CodewordTable) -> Scored:
        products = self.terms.scores(table)
        claimed = products.finished(products.values).logsumexp(-1, keepdim=True)
        log_share = torch.log((-torch.expm1(claimed)).clamp(min=0)) - math.log(table.num_classes)
        return Scored(products.values, lambda some: torch.logaddexp(products.finished(some), log_share))


class Probabilistic(FittedDecoder):
    """See the module."""

    def shapes(self, table: CodewordTable) -> dict[str, tuple[int, ...]]:
        return {SIGMOIDS: (2, table.length), SEEN: (1,)}

    def fit(self, bit_logits: Tensor, labels: Tensor, table: CodewordTable) -> dict[str, Tensor]:
        codewords = table.lookup(labels)
        sigmoids = fit_sigmoids(bit_logits.double(), codewords.double())
        seen = torch.full((1,), len(labels), dtype=torch.int32, device=labels.device)
        return {SIGMOIDS: sigmoids.float().view(torch.int32), SEEN: seen}

    def __call__(self, bit_logits: Tensor, weights: Weights) -> Form:
        slope, offset = weights[SIGMOIDS].view(torch.float32).to(bit_logits.dtype)
        calibrated = -(slope * bit_logits + offset)
        half = calibrated / 2
        # Not softplus, which torch cuts off at 20: e^-20 shows in float64.
        return WithUnclaimed(Terms(half, half + F.logsigmoid(-calibrated), torch.zeros_like(half[..., :1])))


DECODERS.register("probabilistic")(Probabilistic())


# Platt's sigmoids: the probability that a bit is +1, fitted to the outputs of its dichotomizer.
#
# J. Platt, "Probabilistic outputs for support vector machines" (1999), by the Newton method with backtracking of H.-T.
# Lin, C.-J. Lin and R. C. Weng, "A note on Platt's probabilistic outputs for support vector machines" (2007), all
# columns at once.


STEPS = 100
HALVINGS = 30
RIDGE = 1e-12
"""Added to the diagonal of the Hessian, which is singular where all outputs of a column are equal."""
ENOUGH = 1e-10
"""The slope of the loss, per token, at which a column is done."""


def fit_sigmoids(outputs: Tensor, symbols: Tensor) -> Tensor:
    """A and B, float64 `(2, n)`, of P(+1 | z) = 1 / (1 + e^(Az + B)) for every column.

    Args:
        outputs: z, float64 `(tokens, n)`.
        symbols: −1, 0 or +1 `(tokens, n)`; tokens of symbol 0 do not count for their column.
    """
    counts = symbols.abs()
    positive, negative = (symbols > 0).sum(0), (symbols < 0).sum(0)
    # Not 1 and 0 but a little less sure, as a uniform prior has it: a column that separates its tokens stays finite.
    targets = torch.where(symbols > 0, (positive + 1) / (positive + 2), 1 / (negative + 2.0))
    line = torch.stack([torch.zeros_like(outputs[0]), torch.log((positive + 1.0) / (negative + 1.0))])
    loss = _loss(line, outputs, targets, counts)
    for _ in range(STEPS):
        slope, step = _newton(line, outputs, targets, counts)
        if float((slope.abs() / counts.sum(0).clamp(min=1)).max()) < ENOUGH:
            break
        line, loss = _descend(line, step, (slope * step).sum(0), loss, outputs, targets, counts)
    return -line


def _loss(line: Tensor, outputs: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """The cross entropy `(n,)` of σ(a z + b), with `line` (a, b) `(2, n)`."""
    logits = line[0] * outputs + line[1]
    return (counts * (-F.logsigmoid(-logits) - targets * logits)).sum(0)


def _newton(line: Tensor, outputs: Tensor, targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the loss in a and b, and the step that Newton's method takes, `(2, n)` each."""
    p = torch.sigmoid(line[0] * outputs + line[1])
    wrong, curve = counts * (p - targets), counts * p * (1 - p)
    slope = torch.stack([(wrong * outputs).sum(0), wrong.sum(0)])
    aa, ab, bb = (curve * outputs.square()).sum(0) + RIDGE, (curve * outputs).sum(0), curve.sum(0) + RIDGE
    determinant = (aa * bb - ab.square()).clamp(min=RIDGE**2)
    step = torch.stack([ab * slope[1] - bb * slope[0], ab * slope[0] - aa * slope[1]]) / determinant
    return slope, step


def _descend(
    line: Tensor, step: Tensor, fall: Tensor, loss: Tensor, outputs: Tensor, targets: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the step in every column, halved until the loss falls; a column where it never does stays."""
    size = torch.ones_like(fall)
    for _ in range(HALVINGS):
        new_loss = _loss(line + size * step, outputs, targets, counts)
        falls = new_loss <= loss + 1e-4 * size * fall
        if falls.all():
            break
        size = torch.where(falls, size, size / 2)
    return torch.where(falls, line + size * step, line), torch.where(falls, new_loss, loss)
