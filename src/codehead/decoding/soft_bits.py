"""Decoders of soft bits that are not one bilinear form: exponential loss, loss-weighted, probabilistic."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS, SEEN, FittedDecoder, Form, Scored, Terms, Weights, chunks
from codehead.errors import ConfigurationError

# Loss-based decoding with L(θ) = e^(−θ) of the margins θ = c·z (Allwein, Schapire, Singer 2000, section 5).


LARGEST = {torch.float32: 70.0, torch.float64: 600.0}
"""The margin up to which no sum of e^±z overflows or vanishes."""

RowWeights = Callable[[slice, Tensor], Tensor]
"""(which rows, their codewords `(rows, n)`) → the weights of their positions `(rows, n)`."""


class LogExponentialLoss(NamedTuple):
    """−log Σ_j w_j e^(−c_j z_j); the logarithm ranks as the sum does, and is finite where that overflows.

    e^(∓z) = cosh z ∓ sinh z would make the sum a bilinear form, but with cancellation: a token that agrees with a bit
    of z = 20 differs from the others by 10⁻⁹ of a term. So +1, −1 and 0 are kept apart and only positive numbers added:
    two matrix products, with matrices built anew for every call. Positions with a margin whose e^±z is out of range are
    summed in logarithms, codeword by codeword. (Not inside a compiled graph, where such a margin counts as LARGEST.)
    """

    bit_logits: Tensor
    weights: RowWeights | None = None

    def scores(self, table: CodewordTable) -> Scored:
        largest = LARGEST[self.bit_logits.dtype]
        scores = self._by_products(self.bit_logits.clamp(-largest, largest), table)
        if self.bit_logits.is_meta or torch.compiler.is_compiling():
            return Scored(scores)
        far = self.bit_logits.abs().amax(-1) > largest
        if far.any():
            scores[far] = self._by_logarithms(self.bit_logits[far], table)
        return Scored(scores)

    def _by_products(self, bit_logits: Tensor, table: CodewordTable) -> Tensor:
        plus, minus = torch.exp(-bit_logits), torch.exp(bit_logits)
        if table.is_implicit and self.weights is None:
            return -torch.log(_sum_of_others(minus) + plus)
        losses = [self._losses(plus, minus, *piece) for piece in chunks(table, bit_logits, table.length)]
        return -torch.log(torch.cat(losses, dim=-1))

    def _by_logarithms(self, bit_logits: Tensor, table: CodewordTable) -> Tensor:
        """The scores `(positions, V)` of bit logits `(positions, n)` of any size."""
        parts = []
        for rows, codewords in chunks(table, bit_logits, bit_logits.numel()):
            exponents = -codewords * bit_logits.unsqueeze(-2)
            if self.weights is not None:
                exponents = exponents + torch.log(self.weights(rows, codewords))
            parts.append(-torch.logsumexp(exponents, dim=-1))
        return torch.cat(parts, dim=-1)

    def _losses(self, plus: Tensor, minus: Tensor, rows: slice, codewords: Tensor) -> Tensor:
        """Σ_j w_j e^(−c_j z_j) `(…, rows)`, from e^(−z), the loss of a +1, and e^z, that of a −1."""
        weights = None if self.weights is None else self.weights(rows, codewords)
        signed = codewords if weights is None else weights * codewords
        zeros = (codewords == 0).to(codewords) if weights is None else weights * (codewords == 0)
        return plus @ signed.clamp(min=0).T - minus @ signed.clamp(max=0).T + zeros.sum(-1)


def _sum_of_others(values: Tensor) -> Tensor:
    """Σ_{j ≠ v} values_j for every v `(…, V)`, without subtracting: the largest would cancel all others."""
    before = F.pad(values[..., :-1].cumsum(-1), (1, 0))
    after = F.pad(values[..., 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))
    return before + after


@DECODERS.register("loss_exponential")
def loss_exponential(bit_logits: Tensor) -> LogExponentialLoss:
    """−log Σ e^(−c·z); a zero costs e⁰ = 1."""
    return LogExponentialLoss(bit_logits)


# Loss-weighted decoding (Escalera, Pujol, Radeva 2010, LLW and ELW): every class trusts its own columns.
#
# H(v, j) is the share of the tokens of class v whose hard bit j equals c_vj; at a zero it is 0. The weights are
# W(v, j) = H(v, j) / Σ_j H(v, j): normalised over the row of a class, not over the classes of a column. The number of
# tokens of a class cancels, so the hits themselves are kept. A class without hits, such as one never seen, weighs its
# non-zero positions equally (all its positions if it has none).


HITS = "hits"
"""`(V, n)`: how often the bit of a class was right."""
MOST_WEIGHTS = 2**28
"""The most weights that a decoder may have, of 4 bytes each (1 GiB)."""


class WeightedMargins(NamedTuple):
    """Σ_j w_j c_j z_j: one matrix product, with a matrix made anew for every call."""

    bit_logits: Tensor
    weights: RowWeights

    def scores(self, table: CodewordTable) -> Scored:
        pieces = chunks(table, self.bit_logits, table.length)
        parts = [self.bit_logits @ (self.weights(rows, codewords) * codewords).T for rows, codewords in pieces]
        return Scored(torch.cat(parts, dim=-1))


class LossWeighted(FittedDecoder):
    """Base of the weighted decoders: counts their weights."""

    def shapes(self, table: CodewordTable) -> dict[str, tuple[int, ...]]:
        numbers = table.num_classes * table.length
        if numbers > MOST_WEIGHTS:
            raise ConfigurationError(
                f"a loss-weighted decoder needs a weight for each of {table.num_classes} classes and {table.length} "
                f"columns, {4 * numbers:,} bytes; the limit is {4 * MOST_WEIGHTS:,}, for this many classes a code "
                f"of length {MOST_WEIGHTS // table.num_classes}: use a shorter code or another decoder"
            )
        return {HITS: (table.num_classes, table.length), SEEN: (table.num_classes,)}

    def fit(self, bit_logits: Tensor, labels: Tensor, table: CodewordTable) -> dict[str, Tensor]:
        hits = torch.zeros(self.shapes(table)[HITS], dtype=torch.int32, device=labels.device)
        right = table.lookup(labels) * bit_logits > 0
        hits.index_add_(0, labels, right.int())
        return {HITS: hits, SEEN: labels.bincount(minlength=table.num_classes).int()}


class LinearLossWeighted(LossWeighted):
    """L(θ) = −θ."""

    def __call__(self, bit_logits: Tensor, weights: Weights) -> Form:
        return WeightedMargins(bit_logits, partial(row_weights, weights[HITS]))


class ExponentialLossWeighted(LossWeighted):
    """L(θ) = e^(−θ); the score is the negated logarithm of the loss, which ranks as the loss does."""

    def __call__(self, bit_logits: Tensor, weights: Weights) -> Form:
        return LogExponentialLoss(bit_logits, partial(row_weights, weights[HITS]))


def row_weights(hits: Tensor, rows: slice, codewords: Tensor) -> Tensor:
    """W `(rows, n)` of some rows of the hits `(V, n)`, whose codewords are `(rows, n)`."""
    support = codewords.abs()
    support = torch.where(support.sum(-1, keepdim=True) > 0, support, 1.0)
    counts = hits[rows].to(codewords.dtype)
    counts = torch.where(counts.sum(-1, keepdim=True) > 0, counts, support)
    return counts / counts.sum(-1, keepdim=True)


DECODERS.register("loss_weighted_linear")(LinearLossWeighted())
DECODERS.register("loss_weighted_exponential")(ExponentialLossWeighted())


# Probabilistic decoding (Passerini, Pontil, Frasconi 2004): log(Π_{j: c_j ≠ 0} P(c_j | z_j) + K).
#
# P(c_j | z_j) = 1 / (1 + e^(c_j (A_j z_j + B_j))) is Platt's sigmoid, A and B fitted to every column. K is the
# probability of the words that belong to no class, shared equally by the V classes: K = (1 − Σ_v Π_v) / V, which makes
# the probabilities of all classes sum to 1; it is 0 where codewords with zeros overlap and the products exceed 1
# together. It changes no ranking, so tokens are ranked by the logarithm of their product, which keeps apart values that
# K would swamp.


SIGMOIDS = "sigmoids"
"""`(2, n)`: the bit patterns of A and B in float32."""


class WithUnclaimed(NamedTuple):
    """Log-probabilities of codewords, still without the share K of the unclaimed words."""

    terms: Terms

    def scores(self, table: CodewordTable) -> Scored:
        products = self.terms.scores(table)
        claimed = products.finished().logsumexp(-1, keepdim=True)
        log_share = torch.log((-torch.expm1(claimed)).clamp(min=0)) - math.log(table.num_classes)
        return Scored(products.values, lambda some: torch.logaddexp(products.finished(some), log_share))


class Probabilistic(FittedDecoder):
    """log(Π P(c_j | z_j) + K): see the comment above."""

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
"""Share of itself that the diagonal of the Hessian grows by: it is singular where all outputs of a column are equal."""
ENOUGH = 1e-20
"""The fall of the loss, in nats per token, that Newton's step promises where a column has converged."""


def fit_sigmoids(outputs: Tensor, symbols: Tensor) -> Tensor:
    """A and B, float64 `(2, n)`, of P(+1 | z) = 1 / (1 + e^(Az + B)) for every column.

    Args:
        outputs: z, float64 `(tokens, n)`.
        symbols: −1, 0 or +1 `(tokens, n)`; tokens of symbol 0 do not count for their column.
    """
    counts = symbols.abs()
    middle = (counts * outputs).sum(0) / counts.sum(0).clamp(min=1)
    outputs = outputs - middle  # far from 0, they would leave the Hessian near singular
    positive, negative = (symbols > 0).sum(0), (symbols < 0).sum(0)
    # Not 1 and 0 but slightly softer, from a uniform prior: a column that separates its tokens stays finite.
    targets = torch.where(symbols > 0, (positive + 1) / (positive + 2), 1 / (negative + 2.0))
    line = torch.stack([torch.zeros_like(outputs[0]), torch.log((positive + 1.0) / (negative + 1.0))])
    loss = _loss(line, outputs, targets, counts)
    for _ in range(STEPS):
        slope, step = _newton(line, outputs, targets, counts)
        fall = (slope * step).sum(0)
        if float((fall.abs() / counts.sum(0).clamp(min=1)).max()) < ENOUGH:
            break
        line, loss = _descend(line, step, fall, loss, outputs, targets, counts)
    return -torch.stack([line[0], line[1] - line[0] * middle])


def _loss(line: Tensor, outputs: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """The cross entropy `(n,)` of σ(a z + b), with `line` (a, b) `(2, n)`."""
    logits = line[0] * outputs + line[1]
    return (counts * (-F.logsigmoid(-logits) - targets * logits)).sum(0)


def _newton(line: Tensor, outputs: Tensor, targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the loss in a and b, and the step that Newton's method takes, `(2, n)` each."""
    p = torch.sigmoid(line[0] * outputs + line[1])
    wrong, curve = counts * (p - targets), counts * p * (1 - p)
    slope = torch.stack([(wrong * outputs).sum(0), wrong.sum(0)])
    aa, ab, bb = (curve * outputs.square()).sum(0), (curve * outputs).sum(0), curve.sum(0)
    # Marquardt's ridge, a share of the diagonal: the unit of the outputs must not matter.
    aa, bb = aa * (1 + RIDGE), bb * (1 + RIDGE)
    determinant = (aa * bb - ab.square()).clamp(min=torch.finfo(aa.dtype).tiny)
    step = torch.stack([ab * slope[1] - bb * slope[0], ab * slope[0] - aa * slope[1]]) / determinant
    return slope, step


def _descend(
    line: Tensor, step: Tensor, fall: Tensor, loss: Tensor, outputs: Tensor, targets: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the step in every column, halved until the loss falls; a column where it never does is left as it was."""
    size = torch.ones_like(fall)
    for _ in range(HALVINGS):
        new_loss = _loss(line + size * step, outputs, targets, counts)
        falls = new_loss <= loss + 1e-4 * size * fall
        if falls.all():
            break
        size = torch.where(falls, size, size / 2)
    return torch.where(falls, line + size * step, line), torch.where(falls, new_loss, loss)
