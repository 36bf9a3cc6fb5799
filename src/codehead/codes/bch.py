"""Check bits of primitive BCH codes in the narrow sense, over GF(2).

R. C. Bose, D. K. Ray-Chaudhuri (1960), "On a Class of Error Correcting Binary Group Codes"; A. Hocquenghem
(1959), "Codes correcteurs d'erreurs". A polynomial is an int: bit i is the coefficient of x^i.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from codehead.codes.arrays import Bytes
from codehead.errors import ConfigurationError

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
