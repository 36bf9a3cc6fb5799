"""Designs that follow from the class numbers alone: nothing is drawn at random."""

from __future__ import annotations

import numpy as np

from codehead.codes.arrays import Bytes
from codehead.codes.codebook import Codebook, OneVsAllCodebook, PackedCodebook
from codehead.codes.design import check_size, fixed_length, minimal_length, register
from codehead.codes.packing import pack_bits, row_bytes


def number_of_pairs(num_classes: int) -> int:
    """V(V − 1)/2."""
    return num_classes * (num_classes - 1) // 2


LONGER = "for a longer code choose minrandom, which adds random bits to these"


@register(
    "one_vs_all", good_columns=lambda num_classes, length: num_classes > 2, length=lambda num_classes: num_classes
)
def one_vs_all(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """Column j is +1 for class j and −1 for the rest: what a Softmax head does. Implicit, any V."""
    fixed_length("one_vs_all", num_classes, bits, num_classes, "omit bits")
    return OneVsAllCodebook(num_classes)


@register("one_vs_one", good_columns=lambda num_classes, length: True, length=number_of_pairs)
def one_vs_one(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """A column per pair of classes a < b, in the order (0,1), (0,2), …: +1 for a, −1 for b, else 0."""
    length = number_of_pairs(num_classes)
    check_size("one_vs_one", num_classes, length)
    fixed_length("one_vs_one", num_classes, bits, length, "omit bits")
    first, second = np.triu_indices(num_classes, 1)
    sign = np.empty((num_classes, row_bytes(length)), dtype=np.uint8)
    support = np.empty_like(sign)
    for row in range(num_classes):  # row by row: the unpacked matrix would take 16 times the memory
        sign[row] = pack_bits(first == row)
        support[row] = sign[row] | pack_bits(second == row)
    return PackedCodebook(
        num_classes=num_classes,
        length=length,
        design="one_vs_one",
        sign_plane=sign,
        support_plane=support,
    )


@register("minimal", good_columns=lambda num_classes, length: True, length=minimal_length)
def minimal(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """The class number in binary, most significant bit first, with −1 for 0."""
    length = fixed_length("minimal", num_classes, bits, minimal_length(num_classes), LONGER)
    return _binary("minimal", length, binary_plane(np.arange(num_classes), length))


@register("gray", good_columns=lambda num_classes, length: True, length=minimal_length)
def gray(num_classes: int, bits: int | None, seed: int) -> Codebook:
    """The minimal code in Gray's order: the codewords of consecutive classes differ in one bit.

    Class i gets the binary digits of i XOR ⌊i / 2⌋ (F. Gray, US patent 2,632,058, 1953).
    """
    length = fixed_length("gray", num_classes, bits, minimal_length(num_classes), LONGER)
    numbers = np.arange(num_classes)
    return _binary("gray", length, binary_plane(numbers ^ (numbers >> 1), length))


def binary_plane(numbers: np.ndarray, length: int) -> Bytes:
    """The `length` binary digits of each of `numbers` (V,), most significant first, as a plane (V, bytes)."""
    weights = 1 << np.arange(length - 1, -1, -1)
    return pack_bits((numbers[:, None] & weights) != 0)


def _binary(design: str, length: int, plane: Bytes) -> Codebook:
    return PackedCodebook(num_classes=len(plane), length=length, design=design, sign_plane=plane)
