"""Codewords that prototypes can be added up from: each bit chooses one of two vectors, +p or −p.

Additive quantisation (A. Babenko, V. Lempitsky 2014, "Additive Quantization for Extreme Vector Compression") with two
vectors per codebook. It starts as transform coding: principal components get bits by reverse water-filling and are
rounded to levels in natural binary (A. Gersho, R. Gray 1992, "Vector Quantization and Signal Compression", chapter 8).
Then vectors and bits are fitted to each other in turns: least squares, and the bits one by one (iterated conditional
modes, J. Besag 1986). A short code also starts as one sign for each rotated component (`itq`); the nearer one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from codehead.codes.arrays import Bytes, Floats, Integers
from codehead.codes.checks import column_faults, enough_binary_columns
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import free_length, register
from codehead.codes.distinct import make_distinct
from codehead.codes.itq import ROTATION_ROWS, fit_rotation
from codehead.codes.packing import pack_bits, unpack_bits
from codehead.codes.principal import principal_directions, random_rotation
from codehead.codes.prototypes import CHUNK_VALUES, Prototypes, class_weights, origins
from codehead.codes.random_bits import RandomBits
from codehead.errors import CodebookError

ADDITIVE_LENGTH = 64
"""The default codeword length."""

ROUNDS = 4
"""Turns of vectors and bits; more change little."""

RIDGE = 1e-6
"""Relative weight of the vectors' squares, so that columns that depend on each other are no obstacle."""

SHORT_LENGTH = 64
"""Bits: in longer codes binary expansions are the nearer start by far, and a rotation takes long."""

MAX_DIGITS = 24
"""Bits of one component at most: a float32 has no more."""

MAX_REDRAWS = 100
"""Rounds in which faulty columns are drawn again before the code counts as impossible."""


@register("additive", good_columns=enough_binary_columns, length=lambda num_classes: ADDITIVE_LENGTH)
def additive(num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, weights: Any = None) -> Codebook:
    """The codewords C (V, n) in ±1, and n vectors P, for which C P is nearest to the centred prototypes.

    A linear head whose rows are close to P then scores every class nearly as its prototype would. The squared error of
    a class counts as much as its one of `weights` (V,), 0 or more, by default 1: for tokens, how often they occur. Rows
    that come out equal are made distinct in the bits that matter least, `params["collisions"]` says how many; columns
    that repeat others are replaced by the signs of random projections. `seed` is for these, and for the rotation that
    a code of up to SHORT_LENGTH bits may have started from.
    """
    return summed("additive", num_classes, bits, seed, prototypes, weights, fit)


def summed(
    design: str,
    num_classes: int,
    bits: int | None,
    seed: int,
    prototypes: Any,
    weights: Any,
    fitted: Callable[[_Components, int, RandomBits], _Sums],
) -> Codebook:
    """The codebook of a `design` whose codewords add up to prototypes as `fitted` finds them, rows made distinct."""
    length = free_length(design, num_classes, bits, ADDITIVE_LENGTH)
    vectors = Prototypes.of(design, prototypes, num_classes)
    importance = None if weights is None else class_weights(weights, num_classes)
    components, source = _Components.of(vectors, importance, length), RandomBits(seed)
    plane, collisions, drawn = _plane(components, fitted(components, length, source), length, source)
    return PackedCodebook(
        num_classes=num_classes,
        length=length,
        design=design,
        seed=seed if drawn else None,
        params={"collisions": collisions, **origins(vectors, importance)},
        sign_plane=plane,
    )


@dataclass(frozen=True)
class _Components:
    """What is added up: principal components `values` (V, k), each row of which counts as much as its weight (V,)."""

    values: np.ndarray  # float32: as large as the prototypes themselves
    weights: Floats

    @classmethod
    def of(cls, vectors: Prototypes, weights: Floats | None, length: int) -> _Components:
        """The leading components of prototypes, at most one per bit, in a unit that suits float32."""
        mean = vectors.mean(weights)
        directions = principal_directions(vectors, mean, weights)[:, :length]
        unit = max(np.abs(chunk - mean).max() for _, chunk in vectors.chunks())
        parts = [((chunk - mean) / unit @ directions).astype(np.float32) for _, chunk in vectors.chunks()]
        values = np.concatenate(parts)
        return cls(values, np.ones(len(values)) if weights is None else weights)

    def chunks(self, length: int) -> Iterator[tuple[slice, Floats]]:
        """Consecutive rows (rows, k) in float64, so many that neither they nor codewords of that length grow large."""
        step = max(CHUNK_VALUES // max(length, self.values.shape[1]), 1)
        for start in range(0, len(self.values), step):
            rows = slice(start, min(start + step, len(self.values)))
            yield rows, self.values[rows].astype(np.float64)


@dataclass(frozen=True)
class _Sums:
    """What comes near the components: bits, a plane (V, bytes), times vectors (length, k)."""

    plane: Bytes
    vectors: Floats
    drawn: bool  # whether chance had a part in it


def _plane(components: _Components, found: _Sums, length: int, source: RandomBits) -> tuple[Bytes, int, bool]:
    """The sign plane (V, bytes), how many rows had to change to be distinct, and whether chance had a part in it."""
    plane = found.plane

    def margins(ids: Integers) -> Floats:
        chosen = components.values[ids].astype(np.float64)
        costs = np.abs(_pulls(chosen.T, _signs(plane[ids], length).T, found.vectors)).T
        return np.asarray(components.weights[ids, None] * costs)

    for draws in range(MAX_REDRAWS):
        distinct, collisions = make_distinct(plane, length, margins)
        if not enough_binary_columns(len(plane), length):
            return distinct, collisions, found.drawn or bool(draws)
        faulty = column_faults(distinct, None, length).columns
        if not len(faulty):
            return distinct, collisions, found.drawn or bool(draws)
        plane = _redrawn(plane, length, faulty, components, source)
    message = f"bits={length} is too many for these {len(plane)} prototypes of rank {components.values.shape[1]}: they "
    raise CodebookError(f"{message}do not yield so many different columns; ask for fewer bits")


def fit(components: _Components, length: int, source: RandomBits) -> _Sums:
    """The sums that come nearest to the components, of the starts that there are."""
    found = _in_turns(components, _binary_expansions(components, length), length, drawn=False)
    if length > min(SHORT_LENGTH, components.values.shape[1]):
        return found
    other = _in_turns(components, _rotated_signs(components, length, source), length, drawn=True)
    return min(found, other, key=lambda sums: _squared_error(components, sums))


def expanded(components: _Components, length: int, source: RandomBits) -> _Sums:
    """The sums of a transform code: components rounded one by one."""
    plane = _binary_expansions(components, length)
    return _Sums(plane, _least_squares(components, plane, length), drawn=False)


def _in_turns(components: _Components, plane: Bytes, length: int, drawn: bool) -> _Sums:
    """Vectors and bits fitted to each other, from the bits of a plane."""
    for _ in range(ROUNDS):
        vectors = _least_squares(components, plane, length)
        parts = []
        for rows, values in components.chunks(length):
            parts.append(pack_bits(flipped(values.T, _signs(plane[rows], length).T, vectors).T > 0))
        plane = np.concatenate(parts)
    return _Sums(plane, _least_squares(components, plane, length), drawn)


def _squared_error(components: _Components, sums: _Sums) -> float:
    """Of all classes, each as much as its weight."""
    length, total = len(sums.vectors), 0.0
    for rows, values in components.chunks(length):
        left = values - _signs(sums.plane[rows], length) @ sums.vectors
        total += float(components.weights[rows] @ np.square(left).sum(axis=1))
    return total


def flipped(values: Floats, signs: Floats, vectors: Floats) -> Floats:
    """The signs (n, rows) after each had its turn to be what brings signsᵀ · vectors nearest to values (k, rows)."""
    signs, products = signs.copy(), vectors @ vectors.T
    left = vectors @ (values - vectors.T @ signs)
    for bit, row in enumerate(signs):
        wanted = np.where(left[bit] + products[bit, bit] * row >= 0, 1.0, -1.0)
        changed = np.flatnonzero(wanted != row)
        left[:, changed] -= np.outer(products[bit], wanted[changed] - row[changed])
        row[changed] = wanted[changed]
    return signs


def _pulls(values: Floats, signs: Floats, vectors: Floats) -> Floats:
    """How strongly every bit (n, rows) is drawn to +1 or −1 as long as the others stay; |·| is what a flip costs."""
    squares = np.square(vectors).sum(axis=1, keepdims=True)
    return np.asarray(vectors @ (values - vectors.T @ signs) + squares * signs)


def _binary_expansions(components: _Components, length: int) -> Bytes:
    """The plane (V, bytes) of the components, each rounded to 2ᵇ levels written in its b bits; any more bits are 0."""
    spread = np.sqrt(
        sum(components.weights[rows] @ np.square(values) for rows, values in components.chunks(length))
        / components.weights.sum()
    )
    digits = water_filling(np.square(spread), length)
    steps = spread * _loads(digits) * 2.0 ** (1 - digits)
    parts = []
    for _, values in components.chunks(length):
        levels = np.clip(np.floor(values / steps) + 2.0 ** (digits - 1), 0, 2.0**digits - 1).astype(np.int64)
        columns = [(levels[:, j] >> place) & 1 for j, count in enumerate(digits) for place in reversed(range(count))]
        written = np.zeros((len(values), length), dtype=np.uint8)
        written[:, : len(columns)] = np.stack(columns, axis=1)
        parts.append(pack_bits(written))
    return np.concatenate(parts)


def _rotated_signs(components: _Components, length: int, source: RandomBits) -> Bytes:
    """The plane (V, bytes) of the signs of so many leading components, rotated for the signs to be near them."""
    rows = np.sort(np.argsort(-components.weights, kind="stable")[:ROTATION_ROWS])
    heaviest = components.values[rows].astype(np.float64)
    rotation = fit_rotation(heaviest, random_rotation(source.normal(length, length)), components.weights[rows])
    parts = [pack_bits(values @ rotation >= 0) for _, values in components.chunks(length)]
    return np.concatenate(parts)


def water_filling(variances: Floats, total: int) -> Integers:
    """So many bits (k,) for each variance (k,): every bit quarters what is left of one.

    `total` in all, or MAX_DIGITS each if those are fewer.
    """
    left = np.log(variances) - np.log(4.0) * np.arange(MAX_DIGITS)[:, None]
    chosen = np.argsort(-left, axis=None, kind="stable")[:total]
    return np.bincount(chosen % len(variances), minlength=len(variances))


def _loads(digits: Integers) -> Floats:
    """Where 2ᵇ even levels for a normal variable best end, in standard deviations.

    A line through the optima of J. Max (1960, "Quantizing for Minimum Distortion", table II), off by 3% at most.
    """
    return np.asarray(1.26 + 0.345 * digits)


def _least_squares(components: _Components, plane: Bytes, length: int) -> Floats:
    """The vectors (n, k) that the codewords best add up to the components with."""
    width = components.values.shape[1]
    square, target = np.zeros((length, length)), np.zeros((length, width))
    for rows, values in components.chunks(length):
        signs = _signs(plane[rows], length)
        weighted = components.weights[rows, None] * signs
        square += signs.T @ weighted
        target += weighted.T @ values
    square += RIDGE * components.weights.sum() * np.eye(length)
    return np.asarray(np.linalg.solve(square, target))


def _redrawn(plane: Bytes, length: int, faulty: Integers, components: _Components, source: RandomBits) -> Bytes:
    """The plane with the signs of random projections in its faulty columns."""
    bits = unpack_bits(plane, length)
    directions = source.normal(components.values.shape[1], len(faulty))
    for rows, values in components.chunks(length):
        bits[rows, faulty] = values @ directions >= 0
    return pack_bits(bits)


def _signs(plane: Bytes, length: int) -> Floats:
    """±1 (rows, n) in float64."""
    return np.asarray(2.0 * unpack_bits(plane, length) - 1.0)
