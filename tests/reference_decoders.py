"""The plain definition of every decoder in float64: the truth that those of the library are tested against.

One position and one token at a time would be plainer still; broadcasting `(…, 1, n)` against `(V, n)` is the only
liberty taken. Memory is O(positions · V · n): for tests and small vocabularies.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.decoding import Decoded
from codehead.decoding.decoders import Weights
from codehead.decoding.numerics import top_k


def hamming(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated number of disagreeing bits; a zero counts half (HD in the ECOC literature)."""
    return -((1 - torch.sign(bit_logits) * codewords) / 2).sum(-1)


def manhattan(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated Σ|x − c|, x = 2σ(z) − 1."""
    return -(2 * torch.sigmoid(bit_logits) - 1 - codewords).abs().sum(-1)


def euclidean(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated Σ(x − c)², x = 2σ(z) − 1."""
    return -(2 * torch.sigmoid(bit_logits) - 1 - codewords).square().sum(-1)


def likelihood(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Σ log σ(c·z) over the non-zero positions of the codeword."""
    return (F.logsigmoid(bit_logits * codewords) * codewords.abs()).sum(-1)


def attenuated_euclidean(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated Σ|c|(x − c)², x = 2σ(z) − 1 (Escalera, Pujol, Radeva 2010)."""
    return -(codewords.abs() * (2 * torch.sigmoid(bit_logits) - 1 - codewords).square()).sum(-1)


def loss_linear(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated Σ −c·z (Allwein, Schapire, Singer 2000)."""
    return (codewords * bit_logits).sum(-1)


def loss_exponential(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated log Σ e^(−c·z) (Allwein, Schapire, Singer 2000)."""
    return -torch.logsumexp(-codewords * bit_logits, dim=-1)


def laplacian(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """(α + 1) / (α + β + 2) (Escalera, Pujol, Radeva 2010)."""
    alpha, beta = _counts(bit_logits, codewords)
    return (alpha + 1) / (alpha + beta + 2)


def beta_density(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """The bound below the mode of t^α (1 − t)^β between which a third of it lies (Escalera, Pujol, Radeva 2010)."""
    counts = torch.stack(_counts(bit_logits, codewords), dim=-1)
    pairs, index = counts.reshape(-1, 2).unique(dim=0, return_inverse=True)
    bounds = torch.tensor([_pessimistic_bound(*pair) for pair in pairs.tolist()], dtype=torch.float64)
    return bounds.to(bit_logits.device)[index].view(counts.shape[:-1])


def inverse_hamming(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Δ⁺ L, with Δ the Hamming distances between codewords and L those to the hard bits (Windeatt, Ghaderi 2003)."""
    between = ((1 - codewords.unsqueeze(1) * codewords) / 2).sum(-1)
    return -hamming(bit_logits, codewords) @ torch.linalg.pinv(between, rtol=1e-11)


def loss_weighted_linear(bit_logits: Tensor, codewords: Tensor, weights: Weights) -> Tensor:
    """Negated Σ −w·c·z (Escalera, Pujol, Radeva 2010)."""
    return (_row_normalised(weights["hits"], codewords) * codewords * bit_logits).sum(-1)


def loss_weighted_exponential(bit_logits: Tensor, codewords: Tensor, weights: Weights) -> Tensor:
    """Negated log Σ w·e^(−c·z) (Escalera, Pujol, Radeva 2010)."""
    return -torch.logsumexp(_row_normalised(weights["hits"], codewords).log() - codewords * bit_logits, dim=-1)


def probabilistic(bit_logits: Tensor, codewords: Tensor, weights: Weights) -> Tensor:
    """log(Π_{c ≠ 0} 1 / (1 + e^(c(Az + B))) + K), K = (1 − ΣΠ) / V or 0 (Passerini, Pontil, Frasconi 2004)."""
    slope, offset = weights["sigmoids"].view(torch.float32).double()
    factors = 1 / (1 + torch.exp(codewords * (slope * bit_logits + offset)))
    products = torch.where(codewords == 0, 1.0, factors).prod(-1)
    unclaimed = (1 - products.sum(-1, keepdim=True)).clamp(min=0)
    return torch.log(products + unclaimed / len(codewords))


def _counts(bit_logits: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """α and β: agreements and disagreements of the hard bits where the codeword is not 0."""
    support = codewords.abs().sum(-1)
    alpha = support + hamming(bit_logits, codewords) + (1 - codewords.abs()).sum(-1) / 2
    return alpha, support - alpha


@functools.cache
def _pessimistic_bound(alpha: float, beta: float) -> float:
    """By bisection; without any counts the mode is taken to be ½."""
    mode = alpha / (alpha + beta) if alpha + beta else 0.5
    nodes, weights = np.polynomial.legendre.leggauss(64)

    def mass(low: float, high: float) -> float:  # t = sin² φ, so that halves of counts leave it smooth
        start, end = math.asin(math.sqrt(low)), math.asin(math.sqrt(high))
        phi = start + (end - start) * (1 + nodes) / 2
        density = 2 * np.sin(phi) ** (2 * alpha + 1) * np.cos(phi) ** (2 * beta + 1)
        return float((end - start) / 2 * (weights * density).sum())

    third = mass(0.0, 1.0) / 3
    if mass(0.0, mode) <= third:
        return 0.0
    low, high = 0.0, mode
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle, mode) > third else (low, middle)
    return low


def _row_normalised(hits: Tensor, codewords: Tensor) -> Tensor:
    """W `(V, n)`, one class at a time: its hits, else its non-zero positions, else all positions, to sum 1."""
    rows = []
    for row, codeword in zip(hits.double(), codewords.abs(), strict=True):
        counts = next(counts for counts in (row, codeword, torch.ones_like(codeword)) if counts.sum() > 0)
        rows.append(counts / counts.sum())
    return torch.stack(rows)


REFERENCES = {
    function.__name__: function
    for function in (
        hamming,
        manhattan,
        euclidean,
        likelihood,
        attenuated_euclidean,
        loss_linear,
        loss_exponential,
        laplacian,
        beta_density,
        inverse_hamming,
        loss_weighted_linear,
        loss_weighted_exponential,
        probabilistic,
    )
}
"""(bit logits `(…, 1, n)`, codewords `(V, n)`, and the weights of a decoder that has some) → scores `(…, V)`."""


def true_scores(
    bit_logits: Tensor, table: CodewordTable, decoder: str = "likelihood", weights: Weights | None = None
) -> Tensor:
    """Scores `(…, V)` in float64 for bit logits `(…, n)`."""
    arguments = (bit_logits.double().unsqueeze(-2), table.signs().to(bit_logits.device).double())
    return REFERENCES[decoder](*arguments, *([] if weights is None else [weights]))


def truly_decoded(
    bit_logits: Tensor,
    table: CodewordTable,
    decoder: str = "likelihood",
    weights: Weights | None = None,
    k: int = 1,
) -> Decoded:
    """The `k` best tokens by these scores."""
    scores = true_scores(bit_logits, table, decoder, weights)
    ids = top_k(scores, k, "lowest")
    return Decoded(ids, scores.gather(-1, ids))
