"""The coding matrix: V codewords (rows) of n symbols over {−1, 0, +1}, immutable once built."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from safetensors.numpy import save as to_bytes

from codehead.codes.packing import Bytes, Integers, Symbols, pack, padding_mask, row_bytes, transpose, unpack
from codehead.errors import CodebookError, ConfigurationError

# Faults of a coding matrix: equal rows, and columns that pose no new binary problem.
#
# A column is *constant* if it lacks +1 or lacks −1, a *duplicate* if it equals an earlier column
# and *complementary* if it is the negative of one: none of the three separates classes that the other
# columns do not (Dietterich, Bakiri 1995, "Solving Multiclass Learning Problems via Error-Correcting
# Output Codes").


SHOWN = 3
"""How many faults an error message names."""

FORMAT = 1
"""The version of the file format."""

ORIGIN = ("design", "num_classes", "length", "seed", "params")
"""The fields of a codebook in the header of a file, besides its kind and checksum."""


def header_checksum(fields: dict[str, Any]) -> str:
    """The checksum of the header of a file."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Repeats(NamedTuple):
    """Items that equal an earlier one: `items` (count,), ascending, and the `first` (count,) that each equals."""

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
    """Whether twice `length` columns exist: V classes can be split in two in 2^(V−1) − 1 ways."""
    return 2 * length <= 2 ** (num_classes - 1) - 1


def enough_ternary_columns(num_classes: int, length: int) -> bool:
    """Whether twice `length` columns exist: up to the sign, (3^V − 2^(V+1) + 1) / 2 have both a +1 and a −1."""
    return 2 * length <= (3**num_classes - 2 ** (num_classes + 1) + 1) // 2


def repeats(keys: Bytes) -> Repeats:
    """Which of the rows of `keys` (items, bytes) equal an earlier row."""
    strings = np.ascontiguousarray(keys).view(f"S{keys.shape[1]}").ravel()
    _, first, inverse = np.unique(strings, return_index=True, return_inverse=True)
    first = first[inverse]
    items = np.flatnonzero(first < np.arange(len(keys)))
    return Repeats(items, first[items])


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
    own = keys if support is None else np.concatenate([keys, present], axis=1)
    return ColumnFaults(np.flatnonzero(constant), repeats(own))


def avoidable_faults(plane: Bytes, length: int) -> Integers:
    """The faulty columns of a binary plane (V, bytes); none if too few good columns exist to require them."""
    enough = enough_binary_columns(len(plane), length)
    return column_faults(plane, None, length).columns if enough else np.empty(0, dtype=np.intp)


DENSE_SYMBOLS = 2**32
"""The most symbols, of one byte each, that an implicit code writes out."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Codebook(ABC):
    """V codewords of n symbols, and where they came from.

    `seed` is None for a design that uses no random numbers; `params` are the design's own options.
    """

    num_classes: int
    length: int
    design: str
    seed: int | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_classes < 2 or self.length < 1:
            shape = f"{self.num_classes} × {self.length}"
            raise CodebookError(f"a codebook of {shape} symbols: it needs at least 2 rows and 1 column")
        try:
            own = json.loads(json.dumps(self.params))
        except TypeError as error:
            message = f"params={self.params!r} cannot be written as JSON ({error}); give plain values"
            raise ConfigurationError(message) from None
        object.__setattr__(self, "params", own)

    @property
    @abstractmethod
    def planes(self) -> dict[str, Bytes]:
        """`sign_plane` and, if some symbol is 0, `support_plane`; empty for an implicit code."""

    @property
    def kind(self) -> str:
        """one_vs_all, which is implicit, binary or ternary."""
        return ("one_vs_all", "binary", "ternary")[len(self.planes)]

    @property
    def is_ternary(self) -> bool:
        """Whether some symbol is 0."""
        return self.kind == "ternary"

    @property
    def nbytes(self) -> int:
        """Bytes of the packed planes; 0 for an implicit code."""
        return sum(plane.nbytes for plane in self.planes.values())

    @cached_property
    def checksum(self) -> str:
        """SHA-256 (hex) of the shape, the kind and every symbol; independent of the platform."""
        header = f"codehead codebook 1\n{self.num_classes} {self.length} {self.kind}\n"
        digest = hashlib.sha256(header.encode())
        for plane in self.planes.values():
            digest.update(plane.data)
        return digest.hexdigest()

    @abstractmethod
    def _gather(self, ids: np.ndarray) -> Symbols:
        """The codewords of valid `ids` (…): int8 (…, n)."""

    def codewords(self, ids: np.ndarray) -> Symbols:
        """The codewords of the classes `ids` (…): int8 (…, n). CodebookError if an id is not a class."""
        ids = np.asarray(ids)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise CodebookError(f"ids have dtype {ids.dtype}; class ids are integers")
        bad = ids[(ids < 0) | (ids >= self.num_classes)]
        if bad.size:
            raise CodebookError(f"id {bad[0]} is not a class; ids go from 0 to {self.num_classes - 1}")
        return self._gather(ids.astype(np.intp))

    def to_array(self) -> Symbols:
        """The whole coding matrix: int8 (V, n)."""
        return self._gather(np.arange(self.num_classes))

    def save(self, path: str | Any) -> None:
        """Write one safetensors file, complete or not at all; `codehead.codes.load` reads it back."""
        whole = Path(path)
        fields = {"format": FORMAT, "kind": self.kind, "checksum": self.checksum}
        fields |= {name: getattr(self, name) for name in ORIGIN}
        header = json.dumps({**fields, "header_checksum": header_checksum(fields)}, sort_keys=True)
        data = to_bytes(self.planes, {"codebook": header})
        whole.parent.mkdir(parents=True, exist_ok=True)
        unfinished = whole.with_name(f".{whole.name}.{os.getpid()}.part")
        try:
            unfinished.write_bytes(data)
            os.replace(unfinished, whole)
        finally:
            unfinished.unlink(missing_ok=True)

    def plot(self, rows: int = 64) -> Any:
        """Plot the first `rows` of the matrix and the row distances; returns two matplotlib axes (extra `lab`)."""
        from codehead.codes.quality import plot

        return plot(self, rows)

    def _repr_html_(self) -> str:
        from codehead.codes.quality import html

        return html(self)

    def __copy__(self) -> Codebook:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Codebook:
        return self


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class PackedCodebook(Codebook):
    """A coding matrix in bit-planes (V, ⌈n / 8⌉); `packing` describes the layout.

    The constructor copies and validates the planes. Equal rows raise a CodebookError unless
    `params["allow_duplicates"]` is true.
    """

    num_classes: int = 0
    """V; by default, as many as the planes have rows."""

    sign_plane: Bytes = field(repr=False)
    support_plane: Bytes | None = field(default=None, repr=False)

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        *,
        design: str = "custom",
        seed: int | None = None,
        params: dict[str, Any] | None = None,
        allow_duplicates: bool = False,
    ) -> PackedCodebook:
        """Pack a matrix (V, n) of −1, 0 and +1; any other value raises a CodebookError."""
        symbols = _as_symbols(array)
        own = {**(params or {}), **({"allow_duplicates": True} if allow_duplicates else {})}
        return cls(length=symbols.shape[1], design=design, seed=seed, params=own, **pack(symbols))

    def __post_init__(self) -> None:
        if not self.num_classes:
            object.__setattr__(self, "num_classes", len(self.sign_plane))
        super().__post_init__()
        if self.design == "one_vs_all":
            raise CodebookError("one_vs_all is never written out; use codehead.codes.build('one_vs_all', num_classes)")
        for name, plane in self.planes.items():
            object.__setattr__(self, name, self._frozen(name, plane))
        if self.support_plane is not None and np.any(self.sign_plane & ~self.support_plane):
            raise CodebookError("sign_plane has a 1 where support_plane has a 0; the sign of a zero is 0")
        if self.support_plane is not None and (self.support_plane == padding_mask(self.length)).all():
            object.__setattr__(self, "support_plane", None)  # no zeros: a binary code has one form only
        equal = repeats(np.concatenate([*self.planes.values()], axis=1))
        if len(equal.items) and not self.params.get("allow_duplicates"):
            message = f"equal codewords for the classes {equal}: their tokens could not be told apart; "
            raise CodebookError(message + "make the rows distinct, or pass allow_duplicates=True")

    def _frozen(self, name: str, plane: np.ndarray) -> Bytes:
        """A read-only copy of a plane that has the right type, shape and padding."""
        shape = (self.num_classes, row_bytes(self.length))
        if plane.dtype != np.uint8 or plane.shape != shape:
            message = f"{name} is {plane.dtype} {plane.shape}; {self.num_classes} codewords of {self.length} "
            raise CodebookError(message + f"symbols are packed as uint8 {shape}")
        if np.any(plane[:, -1] & ~padding_mask(self.length)[-1]):
            raise CodebookError(f"{name} has bits set after symbol {self.length - 1}; padding bits are 0")
        own = np.array(plane, dtype=np.uint8, order="C", copy=True)
        own.setflags(write=False)
        return own

    @property
    def planes(self) -> dict[str, Bytes]:
        support = {} if self.support_plane is None else {"support_plane": self.support_plane}
        return {"sign_plane": self.sign_plane, **support}

    def _gather(self, ids: np.ndarray) -> Symbols:
        support = None if self.support_plane is None else self.support_plane[ids]
        return unpack(self.sign_plane[ids], support, self.length)

    def check_columns(self) -> PackedCodebook:
        """Return the codebook; raise a CodebookError that names constant, duplicate and complementary columns."""
        faults = column_faults(self.sign_plane, self.support_plane, self.length)
        if len(faults.columns):
            raise CodebookError(f"{self.design} codebook: {faults}; every column should be a new binary problem")
        return self


@final
class OneVsAllCodebook(Codebook):
    """One column per class: +1 for its class, −1 for the rest. Implicit: nothing is stored."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, length=num_classes, design="one_vs_all")

    @property
    def planes(self) -> dict[str, Bytes]:
        return {}

    def _gather(self, ids: np.ndarray) -> Symbols:
        if ids.size * self.length > DENSE_SYMBOLS:
            message = f"{ids.size} one_vs_all codewords of {self.length} symbols are too many to write out"
            raise CodebookError(message + f" (more than {DENSE_SYMBOLS}); ask for fewer ids at a time")
        codewords = np.full((*ids.shape, self.length), -1, dtype=np.int8)
        np.put_along_axis(codewords, ids[..., None], 1, axis=-1)
        return codewords


def _as_symbols(array: np.ndarray) -> Symbols:
    """`array` as int8 (V, n); a CodebookError if it has another shape or other values than −1, 0, +1."""
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "if":
        message = f"array is {array.dtype} {array.shape}; a coding matrix is (classes, bits) with the numbers"
        raise CodebookError(f"{message} −1, 0 and +1")
    wrong = np.argwhere((array != -1) & (array != 0) & (array != 1))
    if len(wrong):
        row, column = wrong[0]
        message = f"array has {array[row, column]} in row {row}, column {column}"
        raise CodebookError(f"{message} ({len(wrong)} such values); the symbols are −1, 0 and +1")
    return array.astype(np.int8)
