"""Bit-planes: how a coding matrix over {−1, 0, +1} is held in one or two bits per symbol.

Symbol j of a row is bit j % 8, least significant first, of byte j // 8. The sign plane has a 1
for +1; the support plane, only kept if there are zeros, a 1 for every symbol that is not 0.
Padding bits, and the signs of zeros, are 0, so equal rows have equal bytes.
"""

from __future__ import annotations

import numpy as np

from codehead.codes.arrays import Bytes, Symbols, Words

CHUNK_SYMBOLS = 2**24
"""Symbols unpacked at a time where a whole matrix is walked through: bounds the working memory."""


def row_bytes(length: int) -> int:
    """Bytes of one packed row of `length` symbols."""
    return -(-length // 8)


def pack_bits(bits: np.ndarray) -> Bytes:
    """Truth values (rows, length) → plane (rows, bytes)."""
    return np.packbits(bits, axis=-1, bitorder="little")


def unpack_bits(plane: Bytes, length: int) -> Bytes:
    """Plane (…, bytes) → bits 0 or 1 (…, length)."""
    return np.unpackbits(plane, axis=-1, count=length, bitorder="little")


def pack(symbols: Symbols) -> tuple[Bytes, Bytes | None]:
    """Symbols (rows, length) over {−1, 0, +1} → sign plane, and support plane if there is a zero."""
    support = None if np.all(symbols) else pack_bits(symbols != 0)
    return pack_bits(symbols > 0), support


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
    rows, width = plane.shape
    padded = np.zeros((rows, -(-width // 8) * 8), dtype=np.uint8)
    padded[:, :width] = plane
    return padded.view(np.uint64)


def transpose(plane: Bytes, length: int) -> Bytes:
    """Plane (rows, bytes) of rows of `length` symbols → plane (length, ⌈rows / 8⌉) of its columns."""
    step = max(CHUNK_SYMBOLS // length // 8 * 8, 8)
    parts = [
        np.packbits(unpack_bits(plane[start : start + step], length), axis=0, bitorder="little")
        for start in range(0, len(plane), step)
    ]
    return np.ascontiguousarray(np.concatenate(parts).T)
