"""Designs that use no data: those that follow from the class numbers, and those with random columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from codehead.codes.codebook import (
    Codebook,
    OneVsAllCodebook,
    PackedCodebook,
    column_faults,
    enough_binary_columns,
    enough_ternary_columns,
    repeats,
)
from codehead.codes.design import check_size, fixed_length, free_length, minimal_length, register, whole_number
from codehead.codes.packing import Bytes, PackedRows, RandomBits, all_pairs, pack_bits, sampled_pairs, unpack_bits
from codehead.errors import CodebookError


def number_of_pairs(num_classes: int) -> int:
    """V(V − 1)/2."""
    return num_classes * (num_classes - 1) // 2


LONGER = "for a longer code choose minrandom, which adds random bits to these"


@register(
    "one_vs_all", good_columns=lambda num_classes, length: num_classes > 2, length=lambda num_classes: num_classes
)
def one_vs_all(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """Column j is +1 for class j and −1 for the rest, as in a Softmax head. Implicit; any V."""
    fixed_length("one_vs_all", num_classes, bits, num_classes, "omit bits")
    return OneVsAllCodebook(num_classes)


@register("one_vs_one", good_columns=lambda num_classes, length: True, length=number_of_pairs)
def one_vs_one(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """A column per pair of classes a < b, in the order (0,1), (0,2), …: +1 for a, −1 for b, else 0."""
    length = number_of_pairs(num_classes)
    check_size("one_vs_one", num_classes, length)
    fixed_length("one_vs_one", num_classes, bits, length, "omit bits")
    first, second = np.triu_indices(num_classes, 1)
    # Row by row: the unpacked matrix would take 16 times the memory.
    sign = np.stack([pack_bits(first == row) for row in range(num_classes)])
    support = sign | np.stack([pack_bits(second == row) for row in range(num_classes)])
    return PackedCodebook(length=length, design="one_vs_one", sign_plane=sign, support_plane=support)


@register("minimal", good_columns=lambda num_classes, length: True, length=minimal_length)
def minimal(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """The class number in binary, most significant bit first, with −1 for 0."""
    length = fixed_length("minimal", num_classes, bits, minimal_length(num_classes), LONGER)
    return PackedCodebook(length=length, design="minimal", sign_plane=binary_plane(np.arange(num_classes), length))


@register("gray", good_columns=lambda num_classes, length: True, length=minimal_length)
def gray(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """The minimal code in Gray's order: the codewords of consecutive classes differ in one bit.

    Class i gets the binary digits of i XOR ⌊i / 2⌋ (F. Gray, US patent 2,632,058, 1953).
    """
    length = fixed_length("gray", num_classes, bits, minimal_length(num_classes), LONGER)
    numbers = np.arange(num_classes)
    return PackedCodebook(length=length, design="gray", sign_plane=binary_plane(numbers ^ (numbers >> 1), length))


def binary_plane(numbers: np.ndarray, length: int) -> Bytes:
    """The `length` binary digits of each of `numbers` (V,), most significant first, as a plane (V, bytes)."""
    weights = 1 << np.arange(length - 1, -1, -1)
    return pack_bits((numbers[:, None] & weights) != 0)


# Designs with random columns: dense_random, sparse_random and minrandom.
#
# Several candidates are drawn and the one with the widest row separation is kept (Allwein, Schapire,
# Singer 2000, "Reducing Multiclass to Binary"). Rows are distinct. Columns that are
# constant, duplicate or complementary are drawn again, if at least twice as many different columns
# exist as are asked for; with fewer (only a handful of classes) they are accepted.


# A draw is an array (planes, rows, bytes): the sign plane and, for ternary codes, the support plane.
SymbolSource = Callable[[RandomBits, int, int], Bytes]
Draw = Callable[[RandomBits], Bytes]

MINRANDOM_LENGTH = 50
"""The default codeword length of minrandom, as in the paper."""

MAX_REDRAWS = 1000
"""Rounds in which faulty rows or columns are drawn again before giving up."""

JUDGED_PAIRS = 2**19
"""The most pairs of rows on which a candidate is judged: all, or else a sample of this many."""

JUDGE_SEED = 0
"""The seed of that sample: every candidate is judged on the same pairs."""


def dense_length(num_classes: int) -> int:
    """⌈10·log2 V⌉ (Allwein, Schapire, Singer 2000)."""
    return (num_classes**10 - 1).bit_length()


def sparse_length(num_classes: int) -> int:
    """⌈15·log2 V⌉ (Allwein, Schapire, Singer 2000)."""
    return (num_classes**15 - 1).bit_length()


@register("dense_random", good_columns=enough_binary_columns, length=dense_length)
def dense_random(num_classes: int, bits: int | None, seed: int, *, candidates: int = 8) -> Codebook:
    """Every symbol −1 or +1 with probability ½; ⌈10·log2 V⌉ columns unless `bits` is given."""
    length = free_length("dense_random", num_classes, bits)
    draw = partial(distinct, _dense, num_classes, length, enough_binary_columns(num_classes, length))
    return best("dense_random", draw, length, seed, candidates)


@register("sparse_random", good_columns=enough_ternary_columns, length=sparse_length)
def sparse_random(num_classes: int, bits: int | None, seed: int, *, candidates: int = 8) -> Codebook:
    """Symbols 0 (½), −1 (¼), +1 (¼), no row all 0; ⌈15·log2 V⌉ columns unless `bits` is given."""
    length = free_length("sparse_random", num_classes, bits)
    draw = partial(distinct, _sparse, num_classes, length, enough_ternary_columns(num_classes, length))
    return best("sparse_random", draw, length, seed, candidates)


@register("minrandom", good_columns=enough_binary_columns, length=lambda num_classes: MINRANDOM_LENGTH)
def minrandom(num_classes: int, bits: int | None, seed: int, *, candidates: int = 8) -> Codebook:
    """The ⌈log2 V⌉ minimal bits, which make rows distinct, then random bits, which make them robust."""
    length = free_length("minrandom", num_classes, bits)
    head = minimal_length(num_classes)
    digits = unpack_bits(binary_plane(np.arange(num_classes), head), head)

    def draw(source: RandomBits) -> Bytes:
        planes = _dense(source, num_classes, length)
        put_columns(planes, range(head), digits[None])
        if enough_binary_columns(num_classes, length):
            renew_columns(_dense, source, planes, length)
        return planes

    return best("minrandom", draw, length, seed, candidates)


def best(design: str, draw: Draw, length: int, seed: int, candidates: int) -> Codebook:
    """The draw with the largest minimum row distance; among equals, that with the largest mean."""
    candidates = whole_number("candidates", candidates, 1)
    source = RandomBits(seed)
    draws = (draw(source) for _ in range(candidates))
    planes = next(draws) if candidates == 1 else max(draws, key=lambda planes: separation(planes, length))
    own: dict[str, Any] = dict(zip(("sign_plane", "support_plane"), planes, strict=False))
    return PackedCodebook(length=length, design=design, seed=seed, params={"candidates": candidates}, **own)


def separation(planes: Bytes, length: int) -> tuple[int, int]:
    """Minimum and sum of the doubled row distances, over all pairs or the fixed sample."""
    rows = PackedRows.from_planes(*planes, length=length)
    exact = rows.num_pairs <= JUDGED_PAIRS
    counts = all_pairs(rows) if exact else sampled_pairs(rows, JUDGED_PAIRS, JUDGE_SEED)
    return int(np.flatnonzero(counts)[0]), int(counts @ np.arange(len(counts)))


def distinct(symbols: SymbolSource, num_classes: int, length: int, good_columns: bool, source: RandomBits) -> Bytes:
    """A draw with distinct rows and, if asked for, good columns."""
    for _ in range(MAX_REDRAWS):
        if symbols is _dense and 2**length <= 4 * num_classes:  # needs many of all rows: without replacement
            planes = binary_plane(source.permutation(2**length)[:num_classes], length)[None]
        else:
            planes = symbols(source, num_classes, length)
            renew_rows(symbols, source, planes, length)
        renewed = good_columns and renew_columns(symbols, source, planes, length)
        if not (renewed and len(_faulty_rows(planes))):  # new columns may have made rows equal
            return planes
    raise _impossible(num_classes, length)


def renew_rows(symbols: SymbolSource, source: RandomBits, planes: Bytes, length: int) -> None:
    """Draw equal and empty rows again, in place, until there are none."""
    for _ in range(MAX_REDRAWS):
        faulty = _faulty_rows(planes)
        if not len(faulty):
            return
        planes[:, faulty] = symbols(source, len(faulty), length)
    raise _impossible(planes.shape[1], length)


def renew_columns(symbols: SymbolSource, source: RandomBits, planes: Bytes, length: int) -> bool:
    """Draw constant, duplicate and complementary columns again, in place; return whether there were any."""
    num_classes = planes.shape[1]
    for redraws in range(MAX_REDRAWS):
        faulty = column_faults(planes[0], planes[1] if len(planes) > 1 else None, length).columns
        if not len(faulty):
            return redraws > 0
        drawn = symbols(source, num_classes, len(faulty))
        put_columns(planes, faulty.tolist(), unpack_bits(drawn, len(faulty)))
    raise _impossible(num_classes, length)


def put_columns(planes: Bytes, columns: list[int] | range, bits: Bytes) -> None:
    """Overwrite some columns of `planes` (planes, rows, bytes) with `bits` (planes, rows, columns)."""
    for place, column in enumerate(columns):
        byte, shift = divmod(column, 8)
        planes[..., byte] &= np.uint8(0xFF ^ (1 << shift))
        planes[..., byte] |= bits[..., place] << np.uint8(shift)


def _dense(source: RandomBits, count: int, length: int) -> Bytes:
    """`count` rows of −1 and +1 with probability ½ each: (1, count, bytes)."""
    return source.plane(count, length)[None]


def _sparse(source: RandomBits, count: int, length: int) -> Bytes:
    """`count` rows of 0 with probability ½, −1 and +1 with ¼ each: (2, count, bytes)."""
    support = source.plane(count, length)
    return np.stack([source.plane(count, length) & support, support])


def _faulty_rows(planes: Bytes) -> np.ndarray:
    """Rows (count,) that equal an earlier one, and in a ternary draw those of zeros only."""
    equal = repeats(np.concatenate(planes, axis=1)).items
    return equal if len(planes) == 1 else np.union1d(equal, np.flatnonzero(~planes[1].any(axis=1)))


def _impossible(num_classes: int, length: int) -> CodebookError:
    message = f"no random code of {length} bits for {num_classes} classes was found in {MAX_REDRAWS} draws"
    return CodebookError(f"{message}; ask for more bits")
