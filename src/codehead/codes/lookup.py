"""Products with a packed plane by table lookup: eight bits of a row at a time, none of them ever unpacked.

For every byte of a row the 256 sums that its eight weights can come to are written down; a row's sum is then read off,
one number per byte (the Four Russians' way to multiply binary matrices: V. Arlazarov et al. 1970).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BYTE = 8
ENTRIES = 2**BYTE
LANES = 4
"""Positions that are looked up together at least: torch sums single numbers far slower than short rows of them."""
CHUNK_INDICES = 2**18
"""Bytes of the plane whose indices (4 bytes each) are written out at a time."""
CHUNK_POSITIONS = 64
"""Positions whose sums are looked up at a time: more of them do not fit a cache."""


def bit_sums(weights: Tensor, plane: Tensor) -> Tensor:
    """The sums of the weights `(…, n)`, float32 or float64, where a row's bits are 1: `(…, V)`.

    `plane` is uint8 `(V, ⌈n / 8⌉)`, least significant bit first, its padding 0. Gradients do not pass.
    """
    flat = weights.detach().reshape(-1, weights.shape[-1])
    sums = flat.new_empty(len(flat), len(plane))
    for start in range(0, len(flat), CHUNK_POSITIONS):
        some = slice(start, start + CHUNK_POSITIONS)
        _look_up(_entries(flat[some], plane.shape[1]), plane, sums[some])
    return sums.view(*weights.shape[:-1], len(plane))


def _entries(weights: Tensor, num_bytes: int) -> Tensor:
    """What every value of every byte sums up to, `(bytes · 256, positions)`, with LANES positions at least."""
    positions, length = weights.shape
    padded = F.pad(weights, (0, num_bytes * BYTE - length, 0, max(0, LANES - positions)))
    values = torch.arange(ENTRIES, device=weights.device)
    bits = torch.stack([(values & (1 << bit)) != 0 for bit in range(BYTE)])
    sums = padded.unflatten(1, (num_bytes, BYTE)) @ bits.to(weights.dtype)  # (positions, bytes, 256)
    return sums.flatten(1).T.contiguous()


def _look_up(entries: Tensor, plane: Tensor, sums: Tensor) -> None:
    """Fill `sums` `(positions, V)`."""
    num_bytes = plane.shape[1]
    offsets = ENTRIES * torch.arange(num_bytes, dtype=torch.int32, device=plane.device)
    rows = max(1, CHUNK_INDICES // num_bytes)
    for start in range(0, len(plane), rows):
        some = slice(start, start + rows)
        found = F.embedding_bag(plane[some].int() + offsets, entries, mode="sum")
        sums[:, some] = found.T[: len(sums)]
