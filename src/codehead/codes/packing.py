"""Bit-planes: a coding matrix over {−1, 0, +1} in one or two bits per symbol; random bits; distances of packed rows.

Symbol j of a row is bit j % 8, least significant first, of byte j // 8. The sign plane has a 1
for +1; the support plane, kept only if there are zeros, has a 1 for every symbol that is not 0.
Padding bits, and the signs of zeros, are 0, so equal rows have equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Symbols: TypeAlias = npt.NDArray[np.int8]
"""Values −1, 0 and +1."""

Bytes: TypeAlias = npt.NDArray[np.uint8]
"""A packed plane, or raw random bytes."""

Words: TypeAlias = npt.NDArray[np.uint64]
"""Packed planes, 64 symbols at a time."""

Integers: TypeAlias = npt.NDArray[np.signedinteger[Any]]
"""Class ids, column numbers, counts."""

Floats: TypeAlias = npt.NDArray[np.float64]
"""Prototypes and values computed from them."""


LEAST_SCANNED = 2**12
"""Codewords below which it takes as little time to score all of them as to scan them."""

CHUNK_SYMBOLS = 2**24
"""Symbols unpacked at a time when a whole matrix is processed: bounds the working memory."""


def slices(count: int, size: int) -> Iterator[slice]:
    """0 … count − 1 in consecutive pieces of `size`, or of 1 if `size` is less."""
    size = max(size, 1)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def row_bytes(length: int) -> int:
    """Bytes of one packed row of `length` symbols."""
    return -(-length // 8)


def pack_bits(bits: np.ndarray) -> Bytes:
    """Truth values (rows, length) → plane (rows, bytes)."""
    return np.packbits(bits, axis=-1, bitorder="little")


def unpack_bits(plane: Bytes, length: int) -> Bytes:
    """Plane (…, bytes) → bits 0 or 1 (…, length)."""
    return np.unpackbits(plane, axis=-1, count=length, bitorder="little")


def pack(symbols: Symbols) -> dict[str, Any]:
    """Symbols (rows, length) over {−1, 0, +1} → `sign_plane` and, if there is a zero, `support_plane`."""
    support = {} if np.all(symbols) else {"support_plane": pack_bits(symbols != 0)}
    return {"sign_plane": pack_bits(symbols > 0), **support}


def unpack(sign: Bytes, support: Bytes | None, length: int) -> Symbols:
    """Planes (…, bytes) → int8 symbols (…, length)."""
    symbols = unpack_bits(sign, length).view(np.int8)
    symbols += symbols
    symbols -= 1 if support is None else unpack_bits(support, length).view(np.int8)
    return symbols


def padding_mask(length: int) -> Bytes:
    """Row (bytes,) with a 1 for every symbol and a 0 for every padding bit."""
    return pack_bits(np.ones(length, dtype=bool))


def words(plane: Bytes) -> Words:
    """Plane (rows, bytes) → 64-bit words (rows, ⌈bytes / 8⌉), filled up with zeros."""
    return np.pad(plane, ((0, 0), (0, -plane.shape[1] % 8))).view(np.uint64)


def transpose(plane: Bytes, length: int) -> Bytes:
    """Plane (rows, bytes) of rows of `length` symbols → plane (length, ⌈rows / 8⌉) of its columns."""
    pieces = slices(len(plane), max(CHUNK_SYMBOLS // length // 8 * 8, 8))
    parts = [np.packbits(unpack_bits(plane[some], length), axis=0, bitorder="little") for some in pieces]
    return np.ascontiguousarray(np.concatenate(parts).T)


# Random bits that are the same on every platform and with every NumPy version.


class RandomBits:
    """A stream of bits from a seed.

    Only the raw output of PCG64 is used: NumPy keeps that stream fixed (NEP 19), while the methods
    of its Generator may change. The words are read as little-endian bytes on every machine.
    Different streams of one seed are independent.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._source = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,)) if stream else seed)

    def words(self, count: int) -> Words:
        """The next `count` 64-bit words (count,)."""
        return np.asarray(self._source.random_raw(count), dtype=np.uint64)

    def plane(self, rows: int, length: int) -> Bytes:
        """A plane (rows, ⌈length / 8⌉) of fair bits; padding bits are 0."""
        size = rows * row_bytes(length)
        stream = self.words(-(-size // 8)).astype("<u8").view(np.uint8)[:size]
        return stream.reshape(rows, -1) & padding_mask(length)

    def below(self, limit: int, count: int) -> Integers:
        """Integers (count,) in 0 … limit − 1, for `limit` up to 2**32 (Lemire's multiply and shift)."""
        high = self.words(count) >> np.uint64(32)
        return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)

    def normal(self, rows: int, columns: int) -> Floats:
        """Independent standard normal numbers (rows, columns), reproducible up to the last digits of log and cos."""
        size = rows * columns
        first, second = (self.words(2 * size).reshape(2, size) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        values = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box, Muller (1958)
        return values.reshape(rows, columns)

    def permutation(self, count: int) -> Integers:
        """The numbers 0 … count − 1 in random order (count,)."""
        return np.argsort(self.words(count), kind="stable")

    def pairs(self, limit: int, count: int) -> tuple[Integers, Integers]:
        """Two arrays (count,) of integers below `limit` that differ from each other at every place."""
        left, right = self.below(limit, count), self.below(limit - 1, count)
        return left, right + (right >= left)


# Distances between packed rows, all pairs or a sample of them.
#
# The distance of Allwein, Schapire and Singer (2000), "Reducing Multiclass to Binary":
# ½ Σ_j (1 − u_j v_j). It is the Hamming distance where no symbol is 0; a place where either symbol is
# 0 counts ½. In this module distances are doubled, so that they are integers.


CHUNK_PAIRS = 2**16
"""Pairs compared at a time: few enough that the intermediate words stay in the processor's cache."""

_ONES_IN_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def count_ones_by_table(values: Words) -> Bytes:
    """How many bits are 1 in each of `values` (…): uint8 (…); for NumPy before 2.0."""
    as_bytes = np.ascontiguousarray(values)[..., None].view(np.uint8)
    return _ONES_IN_BYTE[as_bytes].sum(axis=-1, dtype=np.uint8)


count_ones = getattr(np, "bitwise_count", count_ones_by_table)


class PackedRows(NamedTuple):
    """Rows of `length` symbols as words: `planes` (planes, words, rows), signs and, if there are zeros, support."""

    planes: Words
    length: int

    @classmethod
    def from_planes(cls, *planes: Bytes, length: int) -> PackedRows:
        """From one or two planes (rows, bytes)."""
        return cls(np.stack([words(plane).T for plane in planes]), length)

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self.planes.shape[2]

    @property
    def num_words(self) -> int:
        """The number of words of a row in a plane."""
        return self.planes.shape[1]

    @property
    def num_pairs(self) -> int:
        """The number of unordered pairs of different rows."""
        return self.num_rows * (self.num_rows - 1) // 2

    def take(self, rows: Integers | slice) -> PackedRows:
        """Some of the rows."""
        return self._replace(planes=self.planes[:, :, rows])

    def spread(self) -> PackedRows:
        """The same rows with an added last axis of size 1, for comparing each with every row of another."""
        return self._replace(planes=self.planes[..., None])


def doubled_distances(left: PackedRows, right: PackedRows) -> Integers:
    """Twice the distances of rows, paired by broadcasting."""
    shape = np.broadcast_shapes(left.planes.shape[2:], right.planes.shape[2:])
    total = np.zeros(shape, dtype=np.int32)
    is_ternary = len(left.planes) > 1
    for word in range(left.num_words):
        differ = left.planes[0, word] ^ right.planes[0, word]
        if is_ternary:
            both = left.planes[1, word] & right.planes[1, word]
            total += 2 * count_ones(differ & both)
            total -= count_ones(both)
        else:
            total += count_ones(differ)
    return total + left.length if is_ternary else 2 * total


def all_pairs(rows: PackedRows) -> Integers:
    """How many pairs of different rows lie at each doubled distance: counts (2·length + 1,)."""
    counts = np.zeros(2 * rows.length + 1, dtype=np.int64)
    for some in slices(rows.num_rows, CHUNK_PAIRS // rows.num_rows):
        block = rows.take(some)
        found = doubled_distances(block.spread(), rows.take(slice(some.start, None)))
        inside, outside = found[:, : block.num_rows], found[:, block.num_rows :]
        for part in (inside[np.triu_indices(block.num_rows, 1)], outside.ravel()):
            counts += np.bincount(part, minlength=len(counts))
    return counts


def sampled_pairs(rows: PackedRows, samples: int, seed: int) -> Integers:
    """The same counts over `samples` pairs of different rows, drawn with replacement."""
    counts = np.zeros(2 * rows.length + 1, dtype=np.int64)
    left, right = RandomBits(seed).pairs(rows.num_rows, samples)
    for some in slices(samples, CHUNK_PAIRS // rows.num_words):
        found = doubled_distances(rows.take(left[some]), rows.take(right[some]))
        counts += np.bincount(found, minlength=len(counts))
    return counts
