"""Loss-weighted decoding (Escalera, Pujol, Radeva 2010, LLW and ELW): every class trusts its own columns.

H(v, j) is the share of the tokens of class v whose hard bit j equals c_vj; at a zero it is 0. The weights are
W(v, j) = H(v, j) / Σ_j H(v, j): normalised over the row of a class, not over the classes of a column. The number of
tokens of a class cancels, so the hits themselves are kept. A class without a hit, as one that was never seen, weighs
its non-zero positions equally (all its positions if it has none).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS
from codehead.decoding.exponential import LogExponentialLoss, RowWeights
from codehead.decoding.fitted import SEEN, FittedDecoder, empty_weights
from codehead.decoding.forms import Form, Scored, Weights, chunks
from codehead.errors import ConfigurationError

HITS = "hits"
"""`(V, n)`: how often the bit of a class was right."""
LARGEST = 2**28
"""The most weights that are kept, of 4 bytes each (1 GiB)."""


class WeightedMargins(NamedTuple):
    """Σ_j w_j c_j z_j: one matrix product, with a matrix made anew for every call."""

    bit_logits: Tensor
    weights: RowWeights

    def scores(self, table: CodewordTable) -> Scored:
        pieces = chunks(table, self.bit_logits, table.length)
        parts = [self.bit_logits @ (self.weights(rows, codewords) * codewords).T for rows, codewords in pieces]
        return Scored(torch.cat(parts, dim=-1))


class LossWeighted(FittedDecoder):
    """What the weighted decoders share: how their weights are counted."""

    def shapes(self, table: CodewordTable) -> dict[str, tuple[int, ...]]:
        numbers = table.num_classes * table.length
        if numbers > LARGEST:
            raise ConfigurationError(
                f"a loss-weighted decoder needs a weight for each of {table.num_classes} classes and {table.length} "
                f"columns, {4 * numbers:,} bytes; the most are {4 * LARGEST:,}, so for this many classes a code of "
                f"length {LARGEST // table.num_classes}: use a shorter code or another decoder"
            )
        return {HITS: (table.num_classes, table.length), SEEN: (table.num_classes,)}

    def fit(self, bit_logits: Tensor, labels: Tensor, table: CodewordTable) -> dict[str, Tensor]:
        weights = {name: values.to(labels.device) for name, values in empty_weights(self.shapes(table), table).items()}
        right = table.lookup(labels) * bit_logits > 0
        weights[HITS].index_add_(0, labels, right.int())
        weights[SEEN].index_add_(0, labels, torch.ones_like(labels, dtype=torch.int32))
        return weights


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
