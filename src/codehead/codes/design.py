"""The registry of coding designs; `build`, which makes a codebook by name; and the check bits that it appends."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook, avoidable_faults
from codehead.codes.packing import CHUNK_SYMBOLS, Bytes, RandomBits, pack_bits, slices, unpack_bits
from codehead.errors import CodebookError, ConfigurationError
from codehead.registry import Registry, check_options

MAX_SYMBOLS = 2**30
"""The most symbols of a codebook that is stored: 128 MiB per bit-plane."""


@final
@dataclass(frozen=True)
class Design:
    """A rule that makes codebooks.

    `make(num_classes, bits, seed, **params)` returns one; `bits` is None if the design chooses the
    length. `good_columns(num_classes, length)` says whether the design promises that no column of
    such a codebook is constant, duplicate or complementary. `length(num_classes)` is the design's
    default length; None if it depends on data.
    """

    make: Callable[..., Codebook]
    good_columns: Callable[[int, int], bool]
    length: Callable[[int], int] | None = None

    def params(self) -> list[str]:
        """The names of the design's own options."""
        parameters = inspect.signature(self.make).parameters.values()
        return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


DESIGNS: Registry[Design] = Registry("design")


def register(
    name: str, good_columns: Callable[[int, int], bool], length: Callable[[int], int] | None = None
) -> Callable[[Callable[..., Codebook]], Callable[..., Codebook]]:
    """Decorator that registers a function as the `make` of the design `name`."""

    def add(make: Callable[..., Codebook]) -> Callable[..., Codebook]:
        DESIGNS.register(name)(Design(make, good_columns, length))
        return make

    return add


def build(
    design: str,
    num_classes: int,
    *,
    bits: int | None = None,
    seed: int = 0,
    parity: int = 0,
    **params: Any,
) -> Codebook:
    """The codebook of a named design for `num_classes` classes.

    `bits` is the codeword length n, by default the design's own; `params` are the design's options. `parity` check bits
    are appended (`with_parity`): n + parity columns in all. The same arguments give the same bytes on every platform
    (with prototypes, as far as floating-point arithmetic does). ConfigurationError if an argument is unknown or
    impossible, CodebookError if the resulting matrix is not a valid code.
    """
    chosen = DESIGNS.get(design)
    check_options(f"design {design!r}", chosen.make, params, [*chosen.params(), "parity"])
    num_classes = whole_number("num_classes", num_classes, 2)
    bits = None if bits is None else whole_number("bits", bits, 1)
    parity = whole_number("parity", parity, 0)
    codebook = chosen.make(num_classes, bits, whole_number("seed", seed, 0), **params)
    good_columns = chosen.good_columns(num_classes, codebook.length)
    if good_columns and isinstance(codebook, PackedCodebook):
        codebook.check_columns()
    if not parity:
        return codebook
    check_size(design, num_classes, codebook.length + parity)
    return with_parity(codebook, parity, seed, good_columns)


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`; a ConfigurationError names the argument otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ConfigurationError(f"{name}={value!r} is not possible; give a whole number, {least} or more")
    return number


def minimal_length(num_classes: int) -> int:
    """⌈log2 V⌉: the fewest bits that give `num_classes` classes different codewords."""
    return (num_classes - 1).bit_length()


def default_length(design: str, num_classes: int) -> int:
    """The default codeword length of a design for `num_classes`; ConfigurationError if it depends on data."""
    length = DESIGNS.get(design).length
    if length is None:
        raise ConfigurationError(f"the length of design {design!r} depends on the data; give bits")
    return max(length(num_classes), minimal_length(num_classes))


def free_length(design: str, num_classes: int, bits: int | None) -> int:
    """The length of a design that lets the caller choose it; an error if it is too short or too large to hold."""
    needed = minimal_length(num_classes)
    length = default_length(design, num_classes) if bits is None else bits
    if length < needed:
        message = f"bits={length} is too short for {design} with {num_classes} classes: distinct codewords "
        raise ConfigurationError(message + f"need at least {needed} bits")
    check_size(design, num_classes, length)
    return length


def fixed_length(design: str, num_classes: int, bits: int | None, length: int, remedy: str) -> int:
    """The length of a design that allows no other; ConfigurationError if the caller asks for another."""
    if bits is not None and bits != length:
        message = f"bits={bits} is not possible: {design} has exactly {length} columns for {num_classes} classes"
        raise ConfigurationError(f"{message}; {remedy}")
    return length


def check_size(design: str, num_classes: int, length: int) -> None:
    """Raise a CodebookError with the column count if the matrix is too large to hold."""
    if num_classes * length > MAX_SYMBOLS:
        message = f"{design} needs {length:,} columns for {num_classes:,} classes, {num_classes * length:,} "
        raise CodebookError(message + f"symbols (at most {MAX_SYMBOLS:,}); choose a shorter code")


STREAM = 1
"""The random stream of check bits: independent of the design's bits, which use the same seed."""
MAX_REDRAWS = 100
"""Rounds in which columns that repeat another are drawn again before giving up."""


def with_parity(codebook: Codebook, parity: int, seed: int, good_columns: bool) -> PackedCodebook:
    """The codebook with `parity` check bits appended, each the sum modulo 2 of a random half of the bits of its row.

    Classes that differ in few bits then differ in some check bits, too. If the design promises good columns and enough
    different ones exist, check bits are also good: those that repeat a column are drawn again. CodebookError if the
    code is ternary or implicit, or allows no further good columns.
    """
    if not isinstance(codebook, PackedCodebook):
        message = f"parity={parity} is not possible: {codebook.design} is never written out, so nothing can "
        raise CodebookError(f"{message}be appended to it; choose another design")
    if codebook.is_ternary:
        message = f"parity={parity} is not possible: {codebook.design} is a ternary code, and the parity of bits is "
        raise CodebookError(f"{message}not defined where one of them is 0; choose a binary design")
    length, source = codebook.length, RandomBits(seed, STREAM)
    checks = unpack_bits(source.plane(parity, length), length).T
    for _ in range(MAX_REDRAWS + 1):
        plane = _appended(codebook, checks)
        faulty = avoidable_faults(plane, length + parity)
        if not (good_columns and len(faulty)):
            params = {**codebook.params, "parity": parity}
            return replace(codebook, length=length + parity, seed=seed, params=params, sign_plane=plane)
        checks[:, faulty - length] = unpack_bits(source.plane(len(faulty), length), length).T
    message = f"parity={parity}: {parity} check bits repeat columns of these {length} bits for "
    raise CodebookError(f"{message}{codebook.num_classes} classes; ask for fewer, or for more bits")


def _appended(codebook: PackedCodebook, checks: Bytes) -> Bytes:
    """The plane (V, bytes) of the codebook's bits and their sums modulo 2 by `checks` (length, parity)."""
    parts = []
    for some in slices(codebook.num_classes, CHUNK_SYMBOLS // sum(checks.shape)):
        bits = unpack_bits(codebook.sign_plane[some], codebook.length)
        sums = bits.astype(np.float32) @ checks.astype(np.float32)  # exact: counts far below 2^24
        parts.append(pack_bits(np.concatenate([bits, sums.astype(np.int64) & 1], axis=1)))
    return np.concatenate(parts)
