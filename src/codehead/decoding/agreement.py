"""Decoders that count the hard bits which agree with a codeword: of s non-zero symbols α agree and β = s − α do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.beta_density import bounds
from codehead.decoding.decoders import DECODERS
from codehead.decoding.forms import Scored
from codehead.decoding.terms import Terms


class Agreement(NamedTuple):
    """A rule for the counts, both integers: twice the agreements `(…, V)` and the support sizes s, `(V,)` or `(1,)`.

    Twice, because a bit logit of exactly 0 is half an agreement, as in `hamming`.
    """

    bits: Tensor
    """`(…, n)`: the signs of the bit logits."""
    rule: Callable[[Tensor, Tensor], Tensor]

    def scores(self, table: CodewordTable) -> Scored:
        product = Terms(self.bits, None, torch.zeros_like(self.bits[..., :1])).scores(table)
        difference = product.finished(product.values)  # α − β
        if table.is_ternary:
            support = table.support_sizes().to(difference.dtype)
        else:
            support = difference.new_full((1,), table.length)
        return Scored(self.rule(support + difference, support))


@DECODERS.register("laplacian")
def laplacian(bit_logits: Tensor) -> Agreement:
    """(α + 1) / (α + β + 2): the mean of a Laplacian estimate of the agreement (Escalera, Pujol, Radeva 2010, LAP)."""
    return Agreement(torch.sign(bit_logits), lambda doubled, support: (doubled / 2 + 1) / (support + 2))


@DECODERS.register("beta_density")
def beta_density(bit_logits: Tensor) -> Agreement:
    """A pessimistic bound of the agreement: see `codehead.decoding.beta_density`."""
    return Agreement(torch.sign(bit_logits), bounds)
