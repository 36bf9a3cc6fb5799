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
from codehead.decoding.decoders import DECODERS
from codehead.decoding.fitted import SEEN, FittedDecoder
from codehead.decoding.forms import Form, Scored, Weights
from codehead.decoding.platt import fit_sigmoids
from codehead.decoding.terms import Terms

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
