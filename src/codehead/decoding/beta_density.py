"""Pessimistic β-density scores (Escalera, Pujol, Radeva 2010, BDEN) of α agreements and β disagreements.

The agreement t ∈ [0, 1] of a codeword has the density ψ(t) = t^α (1 − t)^β / K, with its mode at m = α / (α + β). The
score is the lower bound m − a such that a third of the density lies between it and the mode, ∫_{m−a}^{m} ψ(t) dt = ⅓,
or 0 if less than a third lies below the mode, which is so for at most two agreements. It depends on (α, β) alone, so
the bounds of every support size that occurs are computed once, and the scores are looked up.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

THIRD = 1 / 3
NODES = 32
"""Of the Gauss–Legendre rule."""
STEPS = 60
"""Of Newton's method at most; about six are needed."""
ENOUGH = 1e-10
"""The step that is the last: the number of right digits doubles with each."""
CHUNK = 2**13
"""Bounds computed at a time."""


def bounds(doubled: Tensor, support: Tensor) -> Tensor:
    """The scores `(…, V)` for twice the agreements `(…, V)`, 0 … 2s, and the support sizes s, `(V,)` or `(1,)`."""
    if doubled.is_meta:  # which sizes occur cannot be seen
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

    The mass grows with the distance and ever more slowly, since ψ falls away from its mode: so every step falls short
    of the root, and none goes too far.
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
