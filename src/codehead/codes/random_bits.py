"""Random bits that are the same on every platform and with every NumPy version."""

from __future__ import annotations

import numpy as np

from codehead.codes.arrays import Bytes, Floats, Integers, Words
from codehead.codes.packing import padding_mask, row_bytes


class RandomBits:
    """A stream of bits from a seed.

    Only the raw output of PCG64 is used: NumPy keeps that stream fixed (NEP 19), while the methods
    of its Generator may change. The words are read as little-endian bytes, whatever the machine.
    Streams of one seed with different numbers are independent.
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
        """Independent standard normal numbers (rows, columns), the same up to the last digits of log and cos."""
        size = rows * columns
        first, second = (self.words(2 * size).reshape(2, size) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        values = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box, Muller (1958)
        return values.reshape(rows, columns)

    def permutation(self, count: int) -> Integers:
        """The numbers 0 … count − 1 in random order (count,)."""
        return np.argsort(self.words(count), kind="stable")

    def pairs(self, limit: int, count: int) -> tuple[Integers, Integers]:
        """Two arrays (count,) of integers below `limit`, different from each other at every place."""
        left, right = self.below(limit, count), self.below(limit - 1, count)
        return left, right + (right >= left)
