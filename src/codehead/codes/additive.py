"""Codes learnt from prototypes by quantising them: itq, additive, transform_coding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook, avoidable_faults, enough_binary_columns
from codehead.codes.design import MAX_REDRAWS, free_length, register
from codehead.codes.packing import Bytes, Floats, Integers, RandomBits, pack_bits, slices, unpack_bits
from codehead.codes.prototypes import (
    CHUNK_VALUES,
    Prototypes,
    class_weights,
    make_distinct,
    principal_directions,
    random_rotation,
)
from codehead.errors import CodebookError

LENGTH = 64
"""The default codeword length."""

ITERATIONS = 50
"""Rounds in which bits and rotation are fitted to each other, as in the paper."""

ROTATION_ROWS = 2**16
"""The most prototypes that determine a rotation: those of the largest weight, or else a random sample."""


@register("itq", good_columns=enough_binary_columns, length=lambda num_classes: LENGTH)
def itq(num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, weights: Any = None) -> Codebook:
    """Bit j of a class is the sign of its centred prototype along direction j of a rotated PCA basis.

    Y. Gong, S. Lazebnik (2011), "Iterative Quantization: A Procrustean Approach to Learning Binary Codes". With more
    bits than prototype dimensions, the columns come in ⌈n / d⌉ groups of nearly equal size, each starting from a
    different random rotation of the leading components. Equal rows are made distinct by flipping their least certain
    bits (`params["collisions"]` counts them); columns that repeat others are replaced by random directions.

    `weights` (V,), 0 or more, say how much each class counts for mean, components and rotation: for tokens, give their
    frequencies. Otherwise the vectors of rare tokens, most of a vocabulary, would determine the directions.
    """
    return _codebook("itq", num_classes, bits, seed, prototypes, weights, _rotated)


class _Draft(NamedTuple):
    """A sign plane (V, bytes) that may have equal rows and faulty columns, and how to mend them."""

    plane: Bytes
    margins: Callable[[Bytes, Integers], Floats]  # plane, ids (k,) → what it costs to flip each of their bits (k, n)
    redrawn: Callable[[Bytes, Integers], Bytes]  # plane, faulty columns → the plane with others in their place
    rank: int  # of the prototypes
    drawn: bool  # whether chance had a part in it


# Prototypes, how much each counts, the codeword length, a source of random bits → a draft.
Quantiser = Callable[[Prototypes, Floats | None, int, RandomBits], _Draft]


def _codebook(
    design: str, num_classes: int, bits: int | None, seed: int, prototypes: Any, weights: Any, quantised: Quantiser
) -> Codebook:
    """The codebook of the draft made from prototypes, each counted by its weight."""
    length = free_length(design, num_classes, bits)
    vectors = Prototypes.of(design, prototypes, num_classes)
    origin, importance = {"prototypes": vectors.origin()}, None
    if weights is not None:
        importance = class_weights(weights, num_classes)
        origin["weights"] = Prototypes(importance[:, None]).origin()
    draft = quantised(vectors, importance, length, RandomBits(seed))
    plane, collisions, draws = _mended(draft, length)
    params = {"collisions": collisions, **origin}
    drawn_from = seed if draft.drawn or draws else None
    return PackedCodebook(length=length, design=design, seed=drawn_from, params=params, sign_plane=plane)


def _mended(draft: _Draft, length: int) -> tuple[Bytes, int, int]:
    """The plane with distinct rows and, if they exist, good columns; rows changed; how often columns were redrawn."""
    plane = draft.plane
    for draws in range(MAX_REDRAWS):
        distinct, collisions = make_distinct(plane, length, partial(draft.margins, plane))
        faulty = avoidable_faults(distinct, length)
        if not len(faulty):
            return distinct, collisions, draws
        plane = draft.redrawn(plane, faulty)
    message = f"bits={length} is too many for these {len(plane)} prototypes of rank {draft.rank}: they do not yield "
    raise CodebookError(f"{message}as many different columns; ask for fewer bits")


def _rotated(vectors: Prototypes, weights: Floats | None, length: int, source: RandomBits) -> _Draft:
    """The signs of rotated components."""
    mean = vectors.mean(weights)
    basis = principal_directions(vectors, mean, weights)
    directions = _directions(vectors, mean, basis, weights, length, source)

    def plane() -> Bytes:
        return np.concatenate([pack_bits((chunk - mean) @ directions >= 0) for _, chunk in vectors.chunks()])

    def margins(plane: Bytes, ids: Integers) -> Floats:
        return np.abs(vectors.project(ids, mean, directions))

    def redrawn(old: Bytes, faulty: Integers) -> Bytes:
        directions[:, faulty] = basis @ source.normal(basis.shape[1], len(faulty))
        return plane()

    return _Draft(plane(), margins, redrawn, basis.shape[1], drawn=True)


def _directions(
    vectors: Prototypes, mean: Floats, basis: Floats, weights: Floats | None, length: int, source: RandomBits
) -> Floats:
    """The directions (d, length) whose projections give the columns' signs, in groups of rotated components."""
    order = source.permutation(vectors.shape[0])
    if weights is not None:
        order = order[np.argsort(-weights[order], kind="stable")]
    rows = np.sort(order[:ROTATION_ROWS])
    components = vectors.project(rows, mean, basis[:, :length])
    groups = -(-length // basis.shape[1])
    counted = None if weights is None else weights[rows]
    parts = []
    for group in range(groups):
        size = (length + group) // groups
        start = random_rotation(source.normal(size, size))
        parts.append(basis[:, :size] @ fit_rotation(components[:, :size], start, counted))
    return np.concatenate(parts, axis=1)


def fit_rotation(
    components: Floats, rotation: Floats, weights: Floats | None = None, iterations: int = ITERATIONS
) -> Floats:
    """The rotation R (m, m) for which ‖sign(X R) − X R‖ is smallest, starting from `rotation`.

    For fixed bits B the best R is U Vᵀ with U S Vᵀ the singular value decomposition of Xᵀ B (the paper's
    section 2.2); for fixed R the best bits are the signs. `components` are the vectors X (rows, m), weighted by
    `weights` (rows,).
    """
    targets = components if weights is None else weights[:, None] * components
    for _ in range(iterations):
        symbols = np.where(components @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(targets.T @ symbols)
        rotation = left @ right
    return rotation


# Codewords from which prototypes can be summed up: each bit chooses one of two vectors, +p or −p.
#
# Additive quantisation (A. Babenko, V. Lempitsky 2014, "Additive Quantization for Extreme Vector Compression") with
# two vectors per codebook. It starts as transform coding: principal components get bits by reverse water-filling and
# are rounded to levels in natural binary (A. Gersho, R. Gray 1992, "Vector Quantization and Signal Compression",
# chapter 8). Then vectors and bits are fitted in turns: the vectors by least squares, the bits one by one (iterated
# conditional modes, J. Besag 1986). A short code is also started from the signs of rotated components (`itq`); the
# better result is kept.


ROUNDS = 4
"""Rounds of fitting vectors and bits; more change little."""

RIDGE = 1e-6
"""Relative weight of a penalty on the vectors' squares, so that linearly dependent columns cause no failure."""

SHORT_LENGTH = 64
"""Bits; for longer codes binary expansions are by far the better start, and a rotation takes long."""

MAX_DIGITS = 24
"""The most bits of one component: a float32 has no more."""


@register("additive", good_columns=enough_binary_columns, length=lambda num_classes: LENGTH)
def additive(num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, weights: Any = None) -> Codebook:
    """The codewords C (V, n) in ±1, and n vectors P, for which C P is nearest to the centred prototypes.

    A linear head whose rows are close to P then scores every class nearly as its prototype would. The squared error of
    a class is multiplied by its entry in `weights` (V,), 0 or more, by default 1: for tokens, give their frequencies.
    Equal rows are made distinct by flipping the bits that matter least (`params["collisions"]` counts them); columns
    that repeat others are replaced by the signs of random projections. `seed` is for these, and for the rotation from
    which a code of up to SHORT_LENGTH bits may have started.
    """
    return _codebook("additive", num_classes, bits, seed, prototypes, weights, _fitted)


@dataclass(frozen=True)
class _Components:
    """What the sums approximate: principal components `values` (V, k), with a weight (V,) for each row."""

    values: np.ndarray  # float32: as large as the prototypes themselves
    weights: Floats

    @classmethod
    def of(cls, vectors: Prototypes, weights: Floats | None, length: int) -> _Components:
        """The leading components of prototypes, at most one per bit, scaled to suit float32."""
        mean = vectors.mean(weights)
        directions = principal_directions(vectors, mean, weights)[:, :length]
        unit = max(np.abs(chunk - mean).max() for _, chunk in vectors.chunks())
        parts = [((chunk - mean) / unit @ directions).astype(np.float32) for _, chunk in vectors.chunks()]
        values = np.concatenate(parts)
        return cls(values, np.ones(len(values)) if weights is None else weights)

    def plane(self, length: int, bits: Callable[[slice, Floats], np.ndarray]) -> Bytes:
        """The plane (V, bytes) of the truth values (rows, length) that `bits` gives for some rows and their values."""
        return np.concatenate([pack_bits(bits(rows, values)) for rows, values in self.chunks(length)])

    def chunks(self, length: int) -> Iterator[tuple[slice, Floats]]:
        """Consecutive rows (rows, k) in float64, few enough that neither they nor their codewords take much memory."""
        for rows in slices(len(self.values), CHUNK_VALUES // max(length, self.values.shape[1])):
            yield rows, self.values[rows].astype(np.float64)


def _summed(components: _Components, plane: Bytes, vectors: Floats, source: RandomBits, drawn: bool) -> _Draft:
    """The codewords of a plane (V, bytes), which times the vectors (length, k) approximate the components."""
    length = len(vectors)

    def margins(plane: Bytes, ids: Integers) -> Floats:
        chosen = components.values[ids].astype(np.float64)
        costs = np.abs(_pulls(chosen.T, _signs(plane[ids], length).T, vectors)).T
        return np.asarray(components.weights[ids, None] * costs)

    def redrawn(plane: Bytes, faulty: Integers) -> Bytes:
        """The plane with the signs of random projections in the faulty columns."""
        bits = unpack_bits(plane, length)
        directions = source.normal(components.values.shape[1], len(faulty))
        for rows, values in components.chunks(length):
            bits[rows, faulty] = values @ directions >= 0
        return pack_bits(bits)

    return _Draft(plane, margins, redrawn, components.values.shape[1], drawn)


def _fitted(vectors: Prototypes, weights: Floats | None, length: int, source: RandomBits) -> _Draft:
    """The sums nearest to the prototypes, over the possible starts."""
    components = _Components.of(vectors, weights, length)
    found, drawn = _in_turns(components, _binary_expansions(components, length), length), False
    if length <= min(SHORT_LENGTH, components.values.shape[1]):
        other = _in_turns(components, _rotated_signs(components, length, source), length)
        drawn = _squared_error(components, *other) < _squared_error(components, *found)
        found = other if drawn else found
    return _summed(components, *found, source, drawn)


def _expanded(vectors: Prototypes, weights: Floats | None, length: int, source: RandomBits) -> _Draft:
    """The sums of a transform code: components rounded one by one."""
    components = _Components.of(vectors, weights, length)
    plane = _binary_expansions(components, length)
    return _summed(components, plane, _least_squares(components, plane, length), source, drawn=False)


def _in_turns(components: _Components, plane: Bytes, length: int) -> tuple[Bytes, Floats]:
    """A plane (V, bytes) and vectors (length, k), fitted to each other from the bits of a plane."""

    def turned(plane: Bytes, vectors: Floats, rows: slice, values: Floats) -> np.ndarray:
        return flipped(values.T, _signs(plane[rows], length).T, vectors).T > 0

    for _ in range(ROUNDS):
        vectors = _least_squares(components, plane, length)
        plane = components.plane(length, partial(turned, plane, vectors))
    return plane, _least_squares(components, plane, length)


def _squared_error(components: _Components, plane: Bytes, vectors: Floats) -> float:
    """The squared error over all classes, multiplied by their weights."""
    length, total = len(vectors), 0.0
    for rows, values in components.chunks(length):
        left = values - _signs(plane[rows], length) @ vectors
        total += float(components.weights[rows] @ np.square(left).sum(axis=1))
    return total


def flipped(values: Floats, signs: Floats, vectors: Floats) -> Floats:
    """The signs (n, rows), after setting each in turn to bring signsᵀ · vectors nearest to values (k, rows)."""
    signs, products = signs.copy(), vectors @ vectors.T
    left = vectors @ (values - vectors.T @ signs)
    for bit, row in enumerate(signs):
        wanted = np.where(left[bit] + products[bit, bit] * row >= 0, 1.0, -1.0)
        changed = np.flatnonzero(wanted != row)
        left[:, changed] -= np.outer(products[bit], wanted[changed] - row[changed])
        row[changed] = wanted[changed]
    return signs


def _pulls(values: Floats, signs: Floats, vectors: Floats) -> Floats:
    """How strongly every bit (n, rows) is pulled to +1 or −1 if the others stay; |·| is the cost of a flip."""
    squares = np.square(vectors).sum(axis=1, keepdims=True)
    return np.asarray(vectors @ (values - vectors.T @ signs) + squares * signs)


def _binary_expansions(components: _Components, length: int) -> Bytes:
    """The plane (V, bytes) of the components, each rounded to 2ᵇ levels in its b bits; bits left over are 0."""
    spread = np.sqrt(
        sum(components.weights[rows] @ np.square(values) for rows, values in components.chunks(length))
        / components.weights.sum()
    )
    digits = water_filling(np.square(spread), length)
    # The best range for 2ᵇ even levels of a normal variable, in standard deviations: a line through the optima of J.
    # Max (1960, "Quantizing for Minimum Distortion", table II), off by 3% at most.
    ends = 1.26 + 0.345 * digits
    steps = spread * ends * 2.0 ** (1 - digits)

    def written(rows: slice, values: Floats) -> Bytes:
        levels = np.clip(np.floor(values / steps) + 2.0 ** (digits - 1), 0, 2.0**digits - 1).astype(np.int64)
        columns = [(levels[:, j] >> place) & 1 for j, count in enumerate(digits) for place in reversed(range(count))]
        bits = np.zeros((len(values), length), dtype=np.uint8)
        bits[:, : len(columns)] = np.stack(columns, axis=1)
        return bits

    return components.plane(length, written)


def _rotated_signs(components: _Components, length: int, source: RandomBits) -> Bytes:
    """The plane (V, bytes) of the signs of `length` leading components, rotated to be near their signs."""
    rows = np.sort(np.argsort(-components.weights, kind="stable")[:ROTATION_ROWS])
    heaviest = components.values[rows].astype(np.float64)
    rotation = fit_rotation(heaviest, random_rotation(source.normal(length, length)), components.weights[rows])
    return components.plane(length, lambda rows, values: values @ rotation >= 0)


def water_filling(variances: Floats, total: int) -> Integers:
    """The number of bits (k,) for each variance (k,): every bit divides the remaining variance by 4.

    They sum to `total`, or are MAX_DIGITS each if that gives fewer.
    """
    left = np.log(variances) - np.log(4.0) * np.arange(MAX_DIGITS)[:, None]
    chosen = np.argsort(-left, axis=None, kind="stable")[:total]
    return np.bincount(chosen % len(variances), minlength=len(variances))


def _least_squares(components: _Components, plane: Bytes, length: int) -> Floats:
    """The vectors (n, k) with which the codewords best sum up to the components."""
    width = components.values.shape[1]
    square, target = np.zeros((length, length)), np.zeros((length, width))
    for rows, values in components.chunks(length):
        signs = _signs(plane[rows], length)
        weighted = components.weights[rows, None] * signs
        square += signs.T @ weighted
        target += weighted.T @ values
    square += RIDGE * components.weights.sum() * np.eye(length)
    return np.asarray(np.linalg.solve(square, target))


def _signs(plane: Bytes, length: int) -> Floats:
    """±1 (rows, n) in float64."""
    return np.asarray(2.0 * unpack_bits(plane, length) - 1.0)


@register("transform_coding", good_columns=enough_binary_columns, length=lambda num_classes: LENGTH)
def transform_coding(
    num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, weights: Any = None
) -> Codebook:
    """Every prototype's leading components, with bits allotted to minimise the squared error; nothing is fitted.

    One of the starts of `additive`, and the code of `codehead screen`. `weights` (V,) say how much each class counts
    for components and cells. Equal rows are made distinct by flipping the bits that matter least
    (`params["collisions"]` counts them). Columns that repeat others, if there are more bits than the prototypes can
    fill, are replaced by the signs of random projections, drawn with `seed`.
    """
    return _codebook("transform_coding", num_classes, bits, seed, prototypes, weights, _expanded)
