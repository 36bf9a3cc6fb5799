"""Faults of a coding matrix: equal rows, and columns that pose no new binary problem.

A column is *constant* if it lacks +1 or lacks −1, a *duplicate* if it equals an earlier column
and *complementary* if it is the negative of one: none of the three tells classes apart that the
other columns do not (Dietterich, Bakiri 1995, "Solving Multiclass Learning Problems via
Error-Correcting Output Codes").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from codehead.codes.arrays import Bytes, Integers
from codehead.codes.packing import padding_mask, transpose, words

SHOWN = 3
"""How many faults an error message names."""


class Repeats(NamedTuple):
    """Items that equal an earlier one: `items` (count,), ascending, and the `first` (count,) each equals."""

    items: Integers
    first: Integers

    def __str__(self) -> str:
        pairs = zip(self.first[:SHOWN], self.items[:SHOWN], strict=True)
        shown = ", ".join(f"{first} and {item}" for first, item in pairs)
        return shown + (f", … ({len(self.items)} in all)" if len(self.items) > SHOWN else "")


class ColumnFaults(NamedTuple):
    """Column numbers: the `constant` ones (count,), and `repeats` of an earlier column or its negative."""

    constant: Integers
    repeats: Repeats

    @property
    def columns(self) -> Integers:
        """Every faulty column (count,), ascending."""
        return np.union1d(self.constant, self.repeats.items)

    def __str__(self) -> str:
        parts = []
        if len(self.constant):
            shown = ", ".join(map(str, self.constant[:SHOWN])) + (", …" if len(self.constant) > SHOWN else "")
            parts.append(f"constant columns {shown}")
        if len(self.repeats.items):
            parts.append(f"duplicate or complementary columns {self.repeats}")
        return "; ".join(parts)


def enough_binary_columns(num_classes: int, length: int) -> bool:
    """Twice `length` columns exist: V classes have 2^(V−1) − 1 splits in two parts."""
    columns: int = 2 ** (num_classes - 1) - 1
    return 2 * length <= columns


def enough_ternary_columns(num_classes: int, length: int) -> bool:
    """Twice `length` columns exist: up to the sign, (3^V − 2^(V+1) + 1) / 2 have both a +1 and a −1."""
    columns: int = (3**num_classes - 2 ** (num_classes + 1) + 1) // 2
    return 2 * length <= columns


def repeats(keys: Bytes) -> Repeats:
    """Which of the rows of `keys` (items, bytes) equal an earlier row."""
    keys_as_words = words(keys)
    order = np.lexsort(keys_as_words.T)  # stable: equal rows stay in their order
    ordered = keys_as_words[order]
    new = np.ones(len(keys), dtype=bool)
    np.any(ordered[1:] != ordered[:-1], axis=1, out=new[1:])
    first = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    items, first = order[~new], first[~new]
    ascending = np.argsort(items)
    return Repeats(items[ascending], first[ascending])


def repeated_rows(sign: Bytes, support: Bytes | None) -> Repeats:
    """Which rows of the planes (V, bytes) equal an earlier row."""
    return repeats(sign if support is None else np.concatenate([sign, support], axis=1))


def column_faults(sign: Bytes, support: Bytes | None, length: int) -> ColumnFaults:
    """The constant, duplicate and complementary columns of the planes (V, bytes) of `length` columns."""
    columns = transpose(sign, length)
    full = padding_mask(len(sign))
    present = np.broadcast_to(full, columns.shape) if support is None else transpose(support, length)
    constant = ~columns.any(axis=1) | (columns == present).all(axis=1)
    # A column and its negative get the same key: the one of the two whose first non-zero symbol is −1.
    everyone = np.arange(length)
    byte = (present != 0).argmax(axis=1)
    lowest = present[everyone, byte] & -present[everyone, byte]
    flip = (columns[everyone, byte] & lowest) != 0
    keys = np.where(flip[:, None], columns ^ present, columns)
    return ColumnFaults(np.flatnonzero(constant), repeated_rows(keys, None if support is None else present))
