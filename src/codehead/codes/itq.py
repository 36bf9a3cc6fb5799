"""Codewords that are alike where classes are: the signs of rotated principal components (ITQ).

Y. Gong, S. Lazebnik (2011), "Iterative Quantization: A Procrustean Approach to Learning Binary Codes".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codehead.codes.arrays import Bytes, Floats, Integers
from codehead.codes.checks import column_faults, enough_binary_columns
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import free_length, register
from codehead.codes.distinct import make_distinct
from codehead.codes.packing import pack_bits
from codehead.codes.principal import principal_directions, random_rotation
from codehead.codes.prototypes import Prototypes, class_weights, origins
from codehead.codes.random_bits import RandomBits
from codehead.errors import CodebookError

ITQ_LENGTH = 64
"""The default codeword length."""

ITERATIONS = 50
"""Rounds in which bits and rotation are fitted to each other, as in the paper."""

ROTATION_ROWS = 2**16
"""Up to so many prototypes, those of the largest weight or else drawn at random, determine a rotation."""

MAX_REDRAWS = 100
"""Rounds in which faulty columns are drawn again before the code counts as impossible."""


@register("itq", good_columns=enough_binary_columns, length=lambda num_classes: ITQ_LENGTH)
def itq(num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, weights: Any = None) -> Codebook:
    """Bit j of a class is the sign of its centred prototype along direction j of a rotated PCA basis.

    With more bits than the prototypes have dimensions the columns come in ⌈n / d⌉ groups of nearly
    equal size; each starts from another random rotation of the leading components. Rows that come out
    equal are made distinct in their least certain bits, `params["collisions"]` says how many; columns
    that repeat others are replaced by random directions.

    `weights` (V,), 0 or more, say how much each class counts for mean, components and rotation: for tokens,
    how often they occur. Most of a vocabulary is rare, and its vectors would otherwise choose the directions.
    """
    length = free_length("itq", num_classes, bits, ITQ_LENGTH)
    vectors = Prototypes.of("itq", prototypes, num_classes)
    importance = None if weights is None else class_weights(weights, num_classes)
    plane, collisions = _plane(vectors, importance, length, RandomBits(seed))
    return PackedCodebook(
        num_classes=num_classes,
        length=length,
        design="itq",
        seed=seed,
        params={"collisions": collisions, **origins(vectors, importance)},
        sign_plane=plane,
    )


def _plane(vectors: Prototypes, weights: Floats | None, length: int, source: RandomBits) -> tuple[Bytes, int]:
    """The sign plane (V, bytes), and how many rows had to be changed to be distinct."""
    mean = vectors.mean(weights)
    basis = principal_directions(vectors, mean, weights)
    directions = _directions(vectors, mean, basis, weights, length, source)

    def margins(ids: Integers) -> Floats:
        return np.abs(vectors.project(ids, mean, directions))

    for _ in range(MAX_REDRAWS):
        parts = [pack_bits((chunk - mean) @ directions >= 0) for _, chunk in vectors.chunks()]
        plane, collisions = make_distinct(np.concatenate(parts), length, margins)
        if not enough_binary_columns(len(plane), length):
            return plane, collisions
        faulty = column_faults(plane, None, length).columns
        if not len(faulty):
            return plane, collisions
        directions[:, faulty] = basis @ source.normal(basis.shape[1], len(faulty))
    message = f"bits={length} is too many for these {len(plane)} prototypes of {vectors.shape[1]} dimensions: they "
    raise CodebookError(f"{message}do not yield so many different columns; ask for fewer bits")


def _directions(
    vectors: Prototypes, mean: Floats, basis: Floats, weights: Floats | None, length: int, source: RandomBits
) -> Floats:
    """What the columns are the signs of the projections on: (d, length), in groups of rotated components."""
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
    section 2.2); for fixed R the best bits are the signs. `components` are the vectors X (rows, m), which count as
    much as their `weights` (rows,).
    """
    targets = components if weights is None else weights[:, None] * components
    for _ in range(iterations):
        symbols = np.where(components @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(targets.T @ symbols)
        rotation = left @ right
    return rotation
