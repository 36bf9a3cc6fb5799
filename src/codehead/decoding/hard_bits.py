"""Decoders of hard bits: Laplacian and pessimistic β-density counts, and inverse Hamming decoding."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS, Scored, Terms
from codehead.errors import ConfigurationError

# Decoders that count the hard bits which agree with a codeword: of s non-zero symbols α agree and β = s − α do not.


class Agreement(NamedTuple):
    """A rule for two integer counts: twice the agreements `(…, V)`, and the support sizes s, `(V,)` or `(1,)`.

    Twice, because a bit logit of exactly 0 is half an agreement, as in `hamming`.
    """

    bits: Tensor
    """`(…, n)`: the signs of the bit logits."""
    rule: Callable[[Tensor, Tensor], Tensor]

    def scores(self, table: CodewordTable) -> Scored:
        difference = Terms(self.bits, None, torch.zeros_like(self.bits[..., :1])).scores(table).finished()  # α − β
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
    """A pessimistic bound on the agreement: see `codehead.decoding.hard_bits`."""
    return Agreement(torch.sign(bit_logits), bounds)


# Pessimistic β-density scores (Escalera, Pujol, Radeva 2010, BDEN) of α agreements and β disagreements.
#
# The agreement t ∈ [0, 1] of a codeword has the density ψ(t) = t^α (1 − t)^β / K, with its mode at m = α / (α + β).
# The score is the lower bound m − a such that a third of the density lies between it and the mode, ∫_{m−a}^{m} ψ(t) dt
# = ⅓, or 0 if less than a third lies below the mode, which is so for at most two agreements. It depends on (α, β)
# alone, so the bounds of every support size that occurs are computed once, and the scores are looked up.


THIRD = 1 / 3
NODES = 32
"""Nodes of the Gauss–Legendre rule."""
STEPS = 60
"""The most steps of Newton's method; about six are needed."""
ENOUGH = 1e-10
"""The step size at which to stop: each step doubles the number of correct digits."""
CHUNK = 2**13
"""Bounds computed at a time."""


def bounds(doubled: Tensor, support: Tensor) -> Tensor:
    """The scores `(…, V)` for twice the agreements `(…, V)`, 0 … 2s, and the support sizes s, `(V,)` or `(1,)`."""
    if doubled.is_meta:  # its sizes are unknown
        return doubled
    sizes, index = support.unique(return_inverse=True)
    rows = [bounds_of_size(int(size)) for size in sizes]
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)[:-1].to(doubled.device)
    table = torch.cat(rows).to(doubled)
    return table[starts[index] + doubled.long()]


@functools.lru_cache(maxsize=4096)
def bounds_of_size(size: int) -> Tensor:
    """The bounds for α = 0, ½, 1, … `size` agreements out of `size`: float64 `(2 size + 1,)`."""
    agreements = torch.arange(2 * size + 1, dtype=torch.float64) / 2
    return torch.cat([_bounds(alpha, size - alpha) for alpha in agreements.split(CHUNK)])


def _bounds(alpha: Tensor, beta: Tensor) -> Tensor:
    """Newton's method for the distance from the mode.

    The mass grows with the distance, ever more slowly since ψ falls away from its mode, so no step overshoots the root.
    """
    size = alpha + beta
    mode = torch.where(size > 0, alpha / size.clamp(min=1), 0.5)  # without symbols ψ is flat, and has no mode
    log_norm = torch.lgamma(alpha + 1) + torch.lgamma(beta + 1) - torch.lgamma(size + 2)
    distance = torch.zeros_like(mode)
    for _ in range(STEPS):
        missing = THIRD - _mass(mode, distance, alpha, beta, log_norm)
        step = missing / _density(mode - distance, alpha, beta, log_norm).clamp(min=1e-300)
        previous, distance = distance, torch.minimum(distance + step, mode)
        if float((distance - previous).abs().max()) < ENOUGH:
            break
    return mode - distance


def _mass(mode: Tensor, distance: Tensor, alpha: Tensor, beta: Tensor, log_norm: Tensor) -> Tensor:
    """∫ψ from `mode − distance` to `mode`, over u with t = mode − distance·(1 − u²): t^½ is smooth in u also at 0."""
    nodes, weights = (torch.from_numpy(part).unsqueeze(-1) for part in np.polynomial.legendre.leggauss(NODES))
    u = (1 + nodes) / 2
    return distance * (weights * u * _density(mode - distance * (1 - u.square()), alpha, beta, log_norm)).sum(0)


def _density(t: Tensor, alpha: Tensor, beta: Tensor, log_norm: Tensor) -> Tensor:
    return torch.exp(torch.xlogy(alpha, t) + torch.xlogy(beta, 1 - t) - log_norm)


# Inverse Hamming decoding (Windeatt, Ghaderi 2003): the mixture of codewords that explains the distances.
#
# With Δ the V × V Hamming distances between codewords and L the V distances to the hard bits x, the scores are
# q = Δ⁺ L; a zero symbol costs ½ as in `hamming`. Δ has rank n + 1 at most, so that V × V numbers are not needed:
#
#     G = [√n·1, C],  J = diag(1, −1, …, −1),  b = (√n, x)     gives     Δ = ½ G J Gᵀ,  L = ½ G J b.
#
# Let Gᵀ G = Q Λ Qᵀ, of size n + 1. Then U = G Q Λ^(−½) has orthonormal columns (those of zero eigenvalues left out)
# and G = U R with R = Λ^½ Qᵀ. Hence Δ = ½ U (R J Rᵀ) Uᵀ, Δ⁺ = 2 U (R J Rᵀ)⁺ Uᵀ, and
#
#     q = G T b  with  T = Q Λ^(−½) (R J Rᵀ)⁺ R J,
#
# a bilinear form in x once T is known. Where the columns of G are independent, T = (Gᵀ G)⁻¹: q is then the smallest
# solution of Σ q_v = 1, Σ q_v c_v = x.


LARGEST = 4096
"""The largest matrix that is inverted, in rows: 128 MiB of float64."""
TOLERANCE = 1e-11
"""Eigenvalues below this share of the largest count as zero."""

_inverses: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Inverses, keyed by the working copy of the coding matrix, which a table keeps as long as its planes."""


class Mixture(NamedTuple):
    """q = Δ⁺ L for hard bits `(…, n)`, −1, 0 or +1."""

    bits: Tensor

    def scores(self, table: CodewordTable) -> Scored:
        distances = Terms(-self.bits / 2, None, torch.full_like(self.bits[..., :1], table.length / 2)).scores(table)
        if table.is_implicit:  # any two rows differ in two places: Δ⁻¹ = ½ (1 1ᵀ / (V − 1) − I)
            away = distances.finished()
            return Scored(away.sum(-1, keepdim=True) / (2 * (table.num_classes - 1)) - away / 2)
        inverse = _inverse(table)
        if _is_small(table):
            return Scored((distances.finished().double() @ inverse).to(self.bits.dtype))
        root = math.sqrt(table.length)
        extended = torch.cat([torch.full_like(self.bits[..., :1], root), self.bits], dim=-1)
        mixed = (extended.double() @ inverse.T).to(self.bits.dtype)
        return Terms(mixed[..., 1:], None, root * mixed[..., :1]).scores(table)


@DECODERS.register("inverse_hamming")
def inverse_hamming(bit_logits: Tensor) -> Mixture:
    """Δ⁺ L of the hard bits."""
    return Mixture(torch.sign(bit_logits))


def _is_small(table: CodewordTable) -> bool:
    """Whether Δ is no larger than Gᵀ G."""
    return table.num_classes <= table.length + 1


def _inverse(table: CodewordTable) -> Tensor:
    """Δ⁺ `(V, V)` of a small code, T `(n + 1, n + 1)` of any other; in float64, computed once."""
    rows = min(table.num_classes, table.length + 1)
    if rows > LARGEST:
        raise ConfigurationError(
            f"decoder 'inverse_hamming' has to invert a matrix of {rows} × {rows} numbers for {table.num_classes} "
            f"codewords of length {table.length}, which takes {8 * rows**2:,} bytes; the limit is {LARGEST} rows: use "
            "a shorter code or another decoder"
        )
    signs = table.signs()
    if signs not in _inverses:
        with torch.inference_mode(False), torch.no_grad():  # it may be used in training later
            _inverses[signs] = _of_distances(signs) if _is_small(table) else _of_gram(signs)
    return _inverses[signs]


def _of_distances(signs: Tensor) -> Tensor:
    distances = (signs.shape[1] - signs.double() @ signs.double().T) / 2
    return torch.linalg.pinv(distances, rtol=TOLERANCE, hermitian=True)


def _of_gram(signs: Tensor) -> Tensor:
    num_classes, length = signs.shape
    gram = torch.empty(length + 1, length + 1, dtype=torch.float64, device=signs.device)
    gram[0, 0] = length * num_classes
    gram[0, 1:] = gram[1:, 0] = math.sqrt(length) * signs.sum(0).double()
    gram[1:, 1:] = (signs.T @ signs).double()  # integers below 2²⁴: exact in float32
    values, vectors = torch.linalg.eigh(gram)
    kept = values > TOLERANCE * values.max()
    root = torch.where(kept, values, 0.0).sqrt()
    inverse_root = torch.where(kept, 1 / root, 0.0)
    reflected = root.unsqueeze(-1) * vectors.T  # R; R J below
    reflected[:, 1:] *= -1
    middle = torch.linalg.pinv(reflected @ (vectors * root), rtol=TOLERANCE, hermitian=True)
    return (vectors * inverse_root) @ middle @ reflected
