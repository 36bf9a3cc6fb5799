"""Loss-based decoding with L(θ) = e^(−θ) of the margins θ = c·z (Allwein, Schapire, Singer 2000, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS
from codehead.decoding.forms import Scored, chunks

LARGEST = {torch.float32: 70.0, torch.float64: 600.0}
"""The margin up to which no sum of e^±z overflows or vanishes."""

RowWeights = Callable[[slice, Tensor], Tensor]
"""(which rows, their codewords `(rows, n)`) → the weights of their positions `(rows, n)`."""


class LogExponentialLoss(NamedTuple):
    """−log Σ_j w_j e^(−c_j z_j); the logarithm ranks as the sum does, and is finite where that overflows.

    e^(∓z) = cosh z ∓ sinh z would make the sum a bilinear form, but one that cancels: a token that agrees with a bit of
    z = 20 differs from the others by 10⁻⁹ of a term. So +1, −1 and 0 are told apart and only positive numbers added:
    two matrix products, with matrices made anew for every call. Positions with a margin of which e^±z is out of range
    are summed by logarithms, codeword by codeword. (Not inside a compiled graph, where that margin counts as LARGEST.)
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
        """Σ_j w_j e^(−c_j z_j) `(…, rows)`, from e^(−z), which a +1 costs, and e^z, which a −1 costs."""
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
