"""Equal codewords made distinct by flipping the bits that are least certain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codehead.codes.arrays import Bytes, Floats, Integers, Words
from codehead.codes.packing import CHUNK_SYMBOLS, pack_bits, unpack_bits
from codehead.codes.random_bits import RandomBits

Margins = Callable[[Integers], Floats]
"""How certain each bit of the rows `ids` (k,) is: floats (k, n), at least 0."""

TRIED = 2**16
"""Candidates tried at a time."""

MAX_PATTERN_BITS = 62
"""Flip patterns are numbers of so many bits: every row has more of them than could ever be taken."""

KEY_SEED = 0
"""The seed of the hash that identifies rows of more than 64 bits."""


def make_distinct(plane: Bytes, length: int, margins: Margins) -> tuple[Bytes, int]:
    """A binary plane (V, bytes) without equal rows, and how many rows were changed for it.

    Of equal rows the one whose least certain bit is the most certain stays. Another tries flip patterns:
    pattern p flips its i-th least certain bit where p has the binary digit i, so that cheap flips come
    first and, V being at most 2^n, a free codeword is always found. The r-th of the others begins with
    pattern r: equal prototypes then spread out at once. Near-linear in V unless most codewords are taken.
    """
    weights = _key_weights(length)
    keys = _keys(plane, length, weights)
    movers, ranks, sizes = _movers(keys, margins)
    if not len(movers):
        return plane, 0
    order = np.argsort(sizes, axis=1, kind="stable")[:, :MAX_PATTERN_BITS]
    stay = np.delete(keys, movers)
    patterns = _search(stay, keys[movers], weights[order], ranks)
    flips = np.zeros(sizes.shape, dtype=np.uint8)
    digits = (patterns[:, None] >> np.arange(order.shape[1])) & 1
    np.put_along_axis(flips, order, digits.astype(np.uint8), axis=1)
    changed = plane.copy()
    changed[movers] ^= pack_bits(flips)
    return changed, len(movers)


def _key_weights(length: int) -> Words:
    """One word per column (n,), so that a row's key is the XOR of the words of its 1 bits.

    For up to 64 columns keys and rows are one to one; beyond, equal rows have equal keys, and rows that
    differ have equal keys so seldom (2^-64 a pair) that changing one needlessly does no harm.
    """
    low = np.uint64(1) << np.arange(min(length, 64), dtype=np.uint64)
    return np.concatenate([low, RandomBits(KEY_SEED).words(max(length - 64, 0))])


def _keys(plane: Bytes, length: int, weights: Words) -> Words:
    """The key of every row (V,)."""
    step = max(CHUNK_SYMBOLS // length // 8, 1)
    parts = [
        np.bitwise_xor.reduce(unpack_bits(plane[start : start + step], length) * weights, axis=1)
        for start in range(0, len(plane), step)
    ]
    return np.concatenate(parts)


def _movers(keys: Words, margins: Margins) -> tuple[Integers, Integers, Floats]:
    """The rows that have to change (k,), their rank among their equals, from 1 (k,), their margins (k, n)."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    members = np.flatnonzero(counts[inverse] > 1)
    sizes = margins(members)
    order = np.lexsort((-sizes.min(axis=1), keys[members])) if len(members) else members
    members, sizes = members[order], sizes[order]
    group = keys[members]
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]][: len(group)])
    ranks = np.arange(len(members)) - np.repeat(first, np.diff(np.r_[first, len(members)]))
    moving = ranks > 0
    return members[moving], ranks[moving], sizes[moving]


def _search(taken: Words, keys: Words, flips: Words, start: Integers) -> Integers:
    """A flip pattern (k,) for each of `keys` (k,), so that they differ from `taken` and each other.

    `flips` (k, bits) is what each digit of a pattern does to a key; row i tries the patterns from
    `start[i]` on, and after the last one from 0.
    """
    patterns = np.zeros(len(keys), dtype=np.int64)
    pending = np.arange(len(keys))
    following = start.astype(np.int64)
    while len(pending):
        block = max(TRIED // len(pending), 1)
        tried = (following[pending] + np.arange(block)[:, None]) & ((1 << flips.shape[1]) - 1)
        candidates = np.broadcast_to(keys[pending], tried.shape).copy()
        for digit in range(int(tried.max()).bit_length()):
            candidates ^= np.where((tried >> digit) & 1, flips[pending, digit], np.uint64(0))
        _, where = np.unique(np.concatenate([taken, candidates.ravel()]), return_index=True)
        free = np.zeros(candidates.shape, dtype=bool)
        free.ravel()[where[where >= len(taken)] - len(taken)] = True  # of equal candidates the first
        found, choice = free.any(axis=0), free.argmax(axis=0)
        chosen = choice[found], np.flatnonzero(found)
        patterns[pending[found]] = tried[chosen]
        taken = np.concatenate([taken, candidates[chosen]])
        following[pending] += block
        pending = pending[~found]
    return patterns
