"""Sums of table entries over packed nibbles: the fast scan of FAISS, with the error of its 8-bit tables.

Every four bits of a row choose one of sixteen entries of a table, and the score of the row is the sum over its tables.
FAISS keeps the tables in vector registers and looks up 32 rows at once (F. André, A.-M. Kermarrec, N. Le Scouarnec
2015, "Cache locality is not enough: high-performance nearest neighbor search with product quantization fast scan").

Its tables are 8-bit integers. They are rounded here, so that FAISS has nothing left to round and the error is known:
sub-quantizers have fifteen dimensions, with 0 and the unit vectors as centroids, so the query is the table minus its
first entry. With sixteen dimensions FAISS would compute tables by a BLAS matrix product, which has been seen to leave
NaN in them. FAISS is not given tables that are all constant either, since it would divide by their span.
"""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, final

import numpy as np

from codehead.errors import ConfigurationError

ENTRIES = 16
"""Entries of a table, one for each value of a nibble."""
LARGEST = 255
"""The largest entry of a table."""
LARGEST_SUM = 65535
"""The largest sum of entries, which FAISS adds up in 16 bits."""
NIBBLES = np.array([[value >> bit & 1 for value in range(ENTRIES)] for bit in range(4)], dtype=np.float64)
"""`(4, 16)`: the bits of every value, least significant first."""


TINY = 1e-290
"""A table with a smaller span counts as constant."""
COARSE = 3
"""Nibbles that share the coarse part of a number, so that none has a large span; one more holds the fine part."""


class Found(NamedTuple):
    """The rows with the largest rounded sums, best first."""

    ids: np.ndarray
    """`(positions, m)`, int64."""
    scores: np.ndarray
    """`(positions, m)`, float64: sums of rounded entries."""
    errors: np.ndarray
    """`(positions,)`: the most that the rounded sum of any row, found or not, can differ from the true one."""


@functools.cache
def available() -> bool:
    """Whether FAISS is installed."""
    return find_spec("faiss") is not None


def obstacle(device: str) -> str | None:
    """Why FAISS cannot scan on a device of this type; None if it can."""
    if device != "cpu":
        return f"FAISS does not run on the device {device!r}, where multiplying all rows should be as fast"
    return None if available() else "FAISS is not installed (pip install 'codehead[fast]')"


def bit_tables(weights: np.ndarray) -> np.ndarray:
    """Tables `(positions, M, 16)` of the sums of weights `(positions, n)` where bits are 1; M is even."""
    return whole_bytes(weights).reshape(len(weights), -1, 4) @ NIBBLES


def whole_bytes(weights: np.ndarray) -> np.ndarray:
    """Weights `(positions, n)` of bits, padded with zeros to whole bytes."""
    filling = -weights.shape[1] % 8
    return np.pad(weights, ((0, 0), (0, filling))) if filling else weights  # np.pad takes as long as a small head


class Ceilings(NamedTuple):
    """Some numbers per row, each rounded up to one of sixteen levels: a nibble each."""

    plane: np.ndarray
    """`(rows, ⌈numbers / 2⌉)`, uint8."""
    levels: np.ndarray
    """`(numbers, 16)`, ascending."""

    @classmethod
    def of(cls, values: np.ndarray) -> Ceilings:
        """From values `(rows, numbers)`; all levels get equally many rows."""
        levels = np.quantile(values, np.arange(1, ENTRIES + 1) / ENTRIES, axis=0, method="higher").T
        nibbles = np.stack([np.searchsorted(own, column) for own, column in zip(levels, values.T, strict=True)], axis=1)
        return cls(_packed(nibbles), levels)

    def tables(self, factors: np.ndarray) -> np.ndarray:
        """Tables `(positions, M, 16)` of the levels times factors `(positions, numbers)`; M is even."""
        numbers = factors.shape[1]
        entries = np.zeros((len(factors), numbers + numbers % 2, ENTRIES))
        entries[:, :numbers] = factors[:, :, None] * self.levels
        return entries


class Numbers(NamedTuple):
    """One number per row, as nibbles whose entries add up to it."""

    plane: np.ndarray
    """`(rows, 2)`, uint8."""
    tables: np.ndarray
    """`(4, 16)`: the same for every position."""
    error: float
    """The most that a sum of entries can differ from its number."""

    @classmethod
    def of(cls, values: np.ndarray) -> Numbers:
        """From values `(rows,)`: rounded to one of 721 levels."""
        least, span = float(values.min()), float(np.ptp(values))
        coarse = COARSE * (ENTRIES - 1)
        step = max(span, TINY) / (coarse * ENTRIES)
        level = np.rint((values - least) / step).astype(np.int64)
        high, fine = np.divmod(level, ENTRIES)
        nibbles = [np.clip(high - (ENTRIES - 1) * part, 0, ENTRIES - 1) for part in range(COARSE)]
        plane = _packed(np.stack([*nibbles, fine], axis=1))
        entries = np.arange(ENTRIES) * step
        tables = np.stack([entries * ENTRIES] * COARSE + [entries])
        tables[0] += least
        return cls(plane, tables, step / 2 + 1e-12 * (abs(least) + span))

    def beside(self, tables: np.ndarray) -> np.ndarray:
        """Tables `(positions, M, 16)` with those of the numbers appended: `(positions, M + 4, 16)`."""
        return np.concatenate([tables, self.tables[None].repeat(len(tables), axis=0)], axis=1)


@final
class FastScan:
    """Packed rows `(rows, M / 2)`, uint8, the low nibble first, in the layout of FAISS; they are copied.

    All tables are rounded with the same step, so one with large entries makes all of them coarser. `copies` `(M,)` says
    into how many equal parts each table is split.

    ConfigurationError if FAISS is not installed.
    """

    def __init__(self, plane: np.ndarray, copies: np.ndarray | None = None) -> None:
        if not available():
            raise ConfigurationError(
                "the fast scan needs FAISS, which is not installed; pip install 'codehead[fast]', or omit impl"
            )
        if copies is None:
            copies = np.ones(2 * plane.shape[1], dtype=np.int64)
        else:
            plane = _repeated(plane, copies)
        self._copies, self._sources = copies.astype(np.float64), np.repeat(np.arange(len(copies)), copies)
        self.rows, self.tables = len(plane), 2 * plane.shape[1]
        self._spare = self.tables * LARGEST > LARGEST_SUM  # one more byte, so that sums can be kept small
        if self._spare:
            plane = np.concatenate([plane, np.zeros((self.rows, 1), dtype=np.uint8)], axis=1)
        self._index = _index(np.ascontiguousarray(plane))

    def search(self, tables: np.ndarray, count: int) -> Found:
        """The `count` rows with the largest sums of entries of tables `(positions, M, 16)`."""
        columns = np.ascontiguousarray(tables.transpose(2, 0, 1))  # numpy reduces the first axis fastest
        least = columns.min(axis=0)
        widths = columns.max(axis=0) - least
        widest, total, offset = (widths / self._copies).max(axis=1), widths.sum(axis=1), least.sum(axis=1)
        scale = self._scale(widest, total)[:, None]
        entries = np.rint((tables - least[..., None]) * (scale / self._copies)[..., None])
        errors = (widths != 0) @ self._copies / (2 * scale[:, 0])  # half a step for every part of a table
        flat = widest < TINY
        query, first = self._query(entries, flat)
        scores, ids = self._found(query, min(count, self.rows))
        found = (scores + first) / scale + offset[:, None]
        ids[flat] = -1
        self._complete(ids, found, offset)
        errors = np.where(flat, total, errors)
        return Found(ids, found, errors + 1e-12 * (np.abs(offset) + total))

    def _found(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What FAISS finds; if rows are missing, the search is repeated until it gives the same result twice.

        FAISS 1.15 has been seen to find nothing at first, and everything when the same search was repeated.
        """
        scores, ids = self._index.search(query, count)
        while (ids < 0).any():
            before, (scores, ids) = ids, self._index.search(query, count)
            if np.array_equal(before, ids):
                break
        return scores, ids

    def _complete(self, ids: np.ndarray, scores: np.ndarray, least: np.ndarray) -> None:
        """Fill in rows where ids are −1: FAISS omits rows whose sum is 0, the lowest score."""
        for position in np.flatnonzero(ids[:, -1] < 0):
            known = ids[position][ids[position] >= 0]
            lacking = ids.shape[1] - len(known)
            ids[position, len(known) :] = np.setdiff1d(np.arange(self.rows), known)[:lacking]
            scores[position, len(known) :] = least[position]

    def _scale(self, widest: np.ndarray, total: np.ndarray) -> np.ndarray:
        """The factors `(positions,)` that make the largest entry 255, with no sum too large."""
        scale = LARGEST / np.maximum(widest, TINY)
        if self._spare:  # rounding adds at most ½ to every entry
            scale = np.minimum(scale, (LARGEST_SUM - LARGEST - self.tables) / np.maximum(total, TINY))
        return np.where(widest < TINY, 1.0, scale)

    def _query(self, entries: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The query `(positions, 15 · tables)`, which FAISS scales by 1, since one table has a span of 255.

        Also `(positions, 1)`, the sums of first entries, which must be added to the scores it finds.
        """
        used = np.zeros((len(entries), self._index.M, ENTRIES), dtype=np.float32)
        used[:, : len(self._sources)] = entries.astype(np.float32).take(self._sources, axis=1)
        if self._spare:
            used[:, -2:, -1] = LARGEST  # no row has this nibble
        used[flat, 0, -1] = LARGEST
        first = used[..., :1]
        return (used[..., 1:] - first).reshape(len(entries), -1), first.sum(axis=1)


def copies(spans: np.ndarray, share: float = 0.25) -> np.ndarray:
    """How many parts `(M,)` to split tables with these `spans` `(M,)` into, adding at most this share of tables."""
    low, high = spans.sum() / len(spans) * 1e-3, spans.max() + TINY
    for _ in range(40):
        middle = (low + high) / 2
        fits = np.ceil(spans / middle).clip(1).sum() <= (1 + share) * len(spans)
        low, high = (low, middle) if fits else (middle, high)
    return np.ceil(spans / high).clip(1).astype(np.int64)


def _repeated(plane: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Packed rows with every nibble repeated as `copies` `(M,)` says."""
    nibbles = np.stack([plane & 15, plane >> 4], axis=2).reshape(len(plane), -1)
    return _packed(np.repeat(nibbles, copies, axis=1))


def _packed(nibbles: np.ndarray) -> np.ndarray:
    """Numbers 0 … 15 `(rows, M)`, two to a byte, the first one low: uint8 `(rows, ⌈M / 2⌉)`."""
    whole = np.pad(nibbles.astype(np.uint8, copy=False), ((0, 0), (0, nibbles.shape[1] % 2)))
    return whole[:, ::2] | whole[:, 1::2] << 4


def _index(plane: np.ndarray) -> Any:
    """The FAISS index over packed rows."""
    faiss: Any = import_module("faiss")
    tables = 2 * plane.shape[1]
    whole = faiss.IndexPQ(tables * (ENTRIES - 1), tables, 4, faiss.METRIC_INNER_PRODUCT)
    unit = np.broadcast_to(np.eye(ENTRIES, ENTRIES - 1, -1, dtype=np.float32), (tables, ENTRIES, ENTRIES - 1))
    faiss.copy_array_to_vector(np.ascontiguousarray(unit).ravel(), whole.pq.centroids)
    faiss.copy_array_to_vector(plane.ravel(), whole.codes)
    whole.ntotal, whole.is_trained = len(plane), True
    return faiss.IndexPQFastScan(whole)
