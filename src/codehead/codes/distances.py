"""Distances between packed rows, all pairs or a sample of them.

The distance of Allwein, Schapire and Singer (2000), "Reducing Multiclass to Binary":
½ Σ_j (1 − u_j v_j). It is the Hamming distance where no symbol is 0; a place where either symbol is
0 counts ½. Inside this module distances are doubled, to stay integers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from codehead.codes.arrays import Bytes, Integers, Words
from codehead.codes.packing import words
from codehead.codes.random_bits import RandomBits

CHUNK_PAIRS = 2**16
"""Pairs compared at a time: few enough for the intermediate words to stay in a processor's cache."""

_ONES_IN_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def count_ones_by_table(values: Words) -> Bytes:
    """How many bits are 1 in each of `values` (…): uint8 (…); for NumPy before 2.0."""
    as_bytes = np.ascontiguousarray(values)[..., None].view(np.uint8)
    return _ONES_IN_BYTE[as_bytes].sum(axis=-1, dtype=np.uint8)


count_ones = getattr(np, "bitwise_count", count_ones_by_table)


class PackedRows(NamedTuple):
    """Rows as words, word-major: `sign` (words, rows), `support` likewise or None; `length` symbols each."""

    sign: Words
    support: Words | None
    length: int

    @classmethod
    def from_planes(cls, sign: Bytes, support: Bytes | None, length: int) -> PackedRows:
        """From planes (rows, bytes)."""
        word_major = [None if p is None else np.ascontiguousarray(words(p).T) for p in (sign, support)]
        assert word_major[0] is not None
        return cls(word_major[0], word_major[1], length)

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self.sign.shape[1]

    @property
    def num_pairs(self) -> int:
        """The number of unordered pairs of different rows."""
        return self.num_rows * (self.num_rows - 1) // 2

    def take(self, rows: Integers | slice) -> PackedRows:
        """Some of the rows."""
        support = None if self.support is None else self.support[:, rows]
        return PackedRows(self.sign[:, rows], support, self.length)

    def spread(self) -> PackedRows:
        """The same rows with an axis of 1 after each, to be compared with every row of another."""
        support = None if self.support is None else self.support[..., None]
        return PackedRows(self.sign[..., None], support, self.length)


def doubled_distances(left: PackedRows, right: PackedRows) -> Integers:
    """Twice the distances of rows that are paired by broadcasting."""
    shape = np.broadcast_shapes(left.sign.shape[1:], right.sign.shape[1:])
    total = np.zeros(shape, dtype=np.int32)
    for word in range(len(left.sign)):
        differ = left.sign[word] ^ right.sign[word]
        if left.support is None or right.support is None:
            total += count_ones(differ)
        else:
            both = left.support[word] & right.support[word]
            total += count_ones(differ & both)
            total += count_ones(differ & both)
            total -= count_ones(both)
    return 2 * total if left.support is None else total + left.length


def all_pairs(rows: PackedRows) -> Integers:
    """How many pairs of different rows lie at each doubled distance: counts (2·length + 1,)."""
    counts = np.zeros(2 * rows.length + 1, dtype=np.int64)
    step = max(CHUNK_PAIRS // rows.num_rows, 1)
    for start in range(0, rows.num_rows, step):
        block = rows.take(slice(start, start + step))
        found = doubled_distances(block.spread(), rows.take(slice(start, None)))
        inside, outside = found[:, : block.num_rows], found[:, block.num_rows :]
        for part in (inside[np.triu_indices(block.num_rows, 1)], outside.ravel()):
            counts += np.bincount(part, minlength=len(counts))
    return counts


def sampled_pairs(rows: PackedRows, samples: int, seed: int) -> Integers:
    """The same counts over `samples` pairs of different rows, drawn with replacement."""
    counts = np.zeros(2 * rows.length + 1, dtype=np.int64)
    left, right = RandomBits(seed).pairs(rows.num_rows, samples)
    step = max(CHUNK_PAIRS // len(rows.sign), 1)
    for start in range(0, samples, step):
        some = slice(start, start + step)
        found = doubled_distances(rows.take(left[some]), rows.take(right[some]))
        counts += np.bincount(found, minlength=len(counts))
    return counts
