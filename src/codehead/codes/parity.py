"""Check bits: columns computed from the others, so that wrong bits can be told from right ones.

With −1 for 0 and +1 for 1 a check bit is the sum, modulo 2, of some bits of its row. Classes that differ
in few bits then differ in some of the check bits too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook, column_faults, enough_binary_columns
from codehead.codes.packing import CHUNK_SYMBOLS, Bytes, RandomBits, pack_bits, unpack_bits
from codehead.errors import CodebookError, ConfigurationError
from codehead.registry import did_you_mean

KINDS = ("random", "bch")
"""Where the check bits come from."""

STREAM = 1
"""The random stream of the checks: independent of the bits of the design, which have the same seed."""

MAX_REDRAWS = 100
"""Rounds in which random checks that repeat a column are drawn again before they count as impossible."""


def with_parity(codebook: Codebook, parity: int, kind: str, seed: int, good_columns: bool) -> PackedCodebook:
    """The codebook with `parity` check bits appended.

    "random": each is the parity of a random half of the bits. "bch": they extend the row to a codeword of
    a BCH code, shortened to this length, so that distinct rows differ in at least its distance 2t + 1;
    only some numbers of check bits exist. If the columns were promised to be good and enough different
    ones exist, so are these: random checks that repeat a column are drawn again.

    Raises:
        ConfigurationError: the kind is unknown, or has no code with so many check bits.
        CodebookError: the code is ternary or implicit, or allows no further good columns.

    """
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise ConfigurationError(f"unknown parity_kind {kind!r}{hint}. Known: {', '.join(KINDS)}")
    if not isinstance(codebook, PackedCodebook):
        message = f"parity={parity} is not possible: {codebook.design} is never written out, so that nothing could "
        raise CodebookError(f"{message}be appended to it; choose another design")
    if codebook.is_ternary:
        message = f"parity={parity} is not possible: {codebook.design} is a ternary code, and the parity of bits is "
        raise CodebookError(f"{message}not defined where one of them is 0; choose a binary design")
    good_columns = good_columns and enough_binary_columns(codebook.num_classes, codebook.length + parity)
    plane = _bch(codebook, parity) if kind == "bch" else _random(codebook, parity, seed, good_columns)
    length = codebook.length + parity
    if good_columns and len(column_faults(plane, None, length).columns):
        message = f"parity={parity}: {parity} check bits of kind {kind!r} repeat columns of these {codebook.length} "
        raise CodebookError(f"{message}bits for {codebook.num_classes} classes; ask for fewer, or for more bits")
    params = {**codebook.params, "parity": parity, "parity_kind": kind}
    return replace(
        codebook, length=length, seed=seed if kind == "random" else codebook.seed, params=params, sign_plane=plane
    )


def _bch(codebook: PackedCodebook, parity: int) -> Bytes:
    return _appended(codebook, check_matrix(codebook.length, choose(codebook.length, parity)))


def _random(codebook: PackedCodebook, parity: int, seed: int, good_columns: bool) -> Bytes:
    """The wider plane (V, bytes), with good columns if such were found."""
    length, source = codebook.length, RandomBits(seed, STREAM)
    checks = unpack_bits(source.plane(parity, length), length).T
    plane = _appended(codebook, checks)
    for _ in range(MAX_REDRAWS if good_columns else 0):
        faulty = column_faults(plane, None, length + parity).columns
        if not len(faulty):
            break
        checks[:, faulty - length] = unpack_bits(source.plane(len(faulty), length), length).T
        plane = _appended(codebook, checks)
    return plane


def _appended(codebook: PackedCodebook, checks: Bytes) -> Bytes:
    """The plane (V, bytes) of the codebook's bits and their sums modulo 2 by `checks` (length, parity)."""
    step = max(CHUNK_SYMBOLS // sum(checks.shape), 1)
    parts = []
    for start in range(0, codebook.num_classes, step):
        bits = unpack_bits(codebook.sign_plane[start : start + step], codebook.length)
        sums = bits.astype(np.float32) @ checks.astype(np.float32)  # exact: counts far below 2^24
        parts.append(pack_bits(np.concatenate([bits, sums.astype(np.int64) & 1], axis=1)))
    return np.concatenate(parts)


# Check bits of primitive BCH codes in the narrow sense, over GF(2).
#
# R. C. Bose, D. K. Ray-Chaudhuri (1960), "On a Class of Error Correcting Binary Group Codes"; A. Hocquenghem
# (1959), "Codes correcteurs d'erreurs". A polynomial is an int: bit i is the coefficient of x^i.


MAX_DEGREE = 16
"""The largest m: codes of up to 2^16 − 1 bits."""

SHOWN = 4
"""How many possible numbers of check bits an error message names."""


class Choice(NamedTuple):
    """The code of length 2^m − 1 with `checks` check bits, whose codewords differ in `distance` = 2t + 1 places."""

    checks: int
    distance: int
    m: int
    generator: int


@cache
def powers(m: int) -> tuple[int, ...]:
    """α^0 … α^(2^m − 2) in GF(2^m), α a root of the smallest primitive polynomial of degree m."""
    for polynomial in range((1 << m) + 1, 2 << m, 2):
        found, value = [1], 1
        while (value := _times_x(value, polynomial, m)) != 1 and len(found) < (1 << m):
            found.append(value)
        if len(found) == (1 << m) - 1:
            return tuple(found)
    raise AssertionError(f"there is a primitive polynomial of degree {m}")


def _times_x(value: int, polynomial: int, m: int) -> int:
    value <<= 1
    return value ^ polynomial if value >> m else value


def minimal_polynomial(exponent: int, m: int) -> int:
    """The polynomial over GF(2) of least degree with the root α^exponent: Π (x − α^j), j = exponent · 2^i."""
    alpha = powers(m)
    logarithm = {value: power for power, value in enumerate(alpha)}
    product = [1]  # coefficients in GF(2^m), constant first
    for root in coset(exponent, m):
        scaled = [alpha[(logarithm[c] + root) % len(alpha)] if c else 0 for c in product]
        product = [low ^ high for low, high in zip([*scaled, 0], [0, *product], strict=True)]
    return sum(coefficient << power for power, coefficient in enumerate(product))


def coset(exponent: int, m: int) -> list[int]:
    """The exponents of the conjugates of α^exponent: exponent · 2^i modulo 2^m − 1."""
    order = (1 << m) - 1
    members = [exponent % order]
    while (following := members[-1] * 2 % order) != members[0]:
        members.append(following)
    return members


def choices(m: int, most: int) -> Iterator[Choice]:
    """The codes of length 2^m − 1 with up to `most` check bits, fewest first; of equal ones the widest distance."""
    generator, roots, t = 1, set[int](), 0
    while True:
        following = 2 * t + 1
        new = coset(following, m)
        if following not in roots:
            if t:
                yield Choice(len(roots), 2 * t + 1, m, generator)
            if len(roots) + len(new) > min(most, (1 << m) - 2):
                return
            generator = multiply(generator, minimal_polynomial(following, m))
            roots.update(new)
        t += 1


def multiply(left: int, right: int) -> int:
    """The product of two polynomials over GF(2)."""
    product = 0
    while right:
        if right & 1:
            product ^= left
        left, right = left << 1, right >> 1
    return product


def remainder(dividend: int, divisor: int) -> int:
    """What is left of one polynomial over GF(2) after division by another."""
    while dividend.bit_length() >= divisor.bit_length():
        dividend ^= divisor << (dividend.bit_length() - divisor.bit_length())
    return dividend


def choose(length: int, checks: int) -> Choice:
    """The code with `checks` check bits for `length` bits: of the shortest length 2^m − 1 that holds both.

    ConfigurationError with the nearest possible numbers of check bits if there is none.
    """
    fitting = [
        choice
        for m in range(2, MAX_DEGREE + 1)
        for choice in choices(m, min(2 * checks + m, (1 << m) - 1 - length))
        if (length + choice.checks).bit_length() == m
    ]
    for choice in fitting:
        if choice.checks == checks:
            return choice
    nearest = sorted(sorted(fitting, key=lambda choice: abs(choice.checks - checks))[:SHOWN])
    possible = ", ".join(f"{choice.checks} (distance {choice.distance})" for choice in nearest) or "none near it"
    message = f"parity={checks} is not possible: no BCH code has {checks} check bits for {length} bits; possible are"
    raise ConfigurationError(f"{message} {possible}, or any number with parity_kind='random'")


def check_matrix(length: int, choice: Choice) -> Bytes:
    """Which of `length` bits each check bit is the parity of: 0 or 1 (length, checks).

    Bit i stands for x^(checks + length − 1 − i); the check bits are the remainder by the generator,
    highest power first, so that bits and checks make a codeword.
    """
    value, rows = 1, []
    for power in range(choice.checks + length):
        if power >= choice.checks:
            rows.append([value >> bit & 1 for bit in reversed(range(choice.checks))])
        value = remainder(value << 1, choice.generator)
    return np.array(rows[::-1], dtype=np.uint8)
