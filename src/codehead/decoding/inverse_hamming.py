r"""Inverse Hamming decoding (Windeatt, Ghaderi 2003): the mixture of codewords that explains the distances.

With Δ the V × V Hamming distances between codewords and L the V distances to the hard bits x, the scores are
q = Δ⁺ L; a zero symbol costs ½ as in `hamming`. Δ has rank n + 1 at most, so that V × V numbers are not needed:

    G = [√n·1, C],  J = diag(1, −1, …, −1),  b = (√n, x)     gives     Δ = ½ G J Gᵀ,  L = ½ G J b.

Let Gᵀ G = Q Λ Qᵀ, of size n + 1. Then U = G Q Λ^(−½) has orthonormal columns (those of zero eigenvalues left out) and
G = U R with R = Λ^½ Qᵀ. Hence Δ = ½ U (R J Rᵀ) Uᵀ, Δ⁺ = 2 U (R J Rᵀ)⁺ Uᵀ, and

    q = G T b  with  T = Q Λ^(−½) (R J Rᵀ)⁺ R J,

a bilinear form in x once T is known. Where the columns of G are independent, T = (Gᵀ G)⁻¹: q is then the smallest
solution of Σ q_v = 1, Σ q_v c_v = x.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS
from codehead.decoding.forms import Scored
from codehead.decoding.terms import Terms
from codehead.errors import ConfigurationError

LARGEST = 4096
"""The largest matrix that is inverted, in rows: 128 MiB of float64."""
TOLERANCE = 1e-11
"""Eigenvalues below this share of the largest are zeros."""

_inverses: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The inverse of a code, by the working copy of its coding matrix, which a table keeps as long as its planes."""


class Mixture(NamedTuple):
    """q = Δ⁺ L for hard bits `(…, n)`, −1, 0 or +1."""

    bits: Tensor

    def scores(self, table: CodewordTable) -> Scored:
        distances = Terms(-self.bits / 2, None, torch.full_like(self.bits[..., :1], table.length / 2)).scores(table)
        if table.is_implicit:  # any two rows differ in two places: Δ⁻¹ = ½ (1 1ᵀ / (V − 1) − I)
            away = distances.finished(distances.values)
            return Scored(away.sum(-1, keepdim=True) / (2 * (table.num_classes - 1)) - away / 2)
        inverse = _inverse(table)
        if _is_small(table):
            return Scored((distances.finished(distances.values).double() @ inverse).to(self.bits.dtype))
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
            f"codewords of length {table.length}, which takes {8 * rows**2:,} bytes; the most are {LARGEST} rows: use "
            "a shorter code or another decoder"
        )
    signs = table.signs()
    if signs not in _inverses:
        with torch.inference_mode(False), torch.no_grad():  # it may serve in training later
            _inverses[signs] = _of_distances(signs) if _is_small(table) else _of_gram(signs)
    found: Tensor = _inverses[signs]
    return found


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
