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
from codehead.codes.prototypes import Prototypes
from codehead.codes.random_bits import RandomBits
from codehead.errors import CodebookError

ITQ_LENGTH = 64
"""The default codeword length."""

ITERATIONS = 50
"""Rounds in which bits and rotation are fitted to each other, as in the paper."""

ROTATION_ROWS = 2**16
"""Up to so many prototypes, drawn at random, determine a rotation."""

MAX_REDRAWS = 100
"""Rounds in which faulty columns are drawn again before the code counts as impossible."""


@register("itq", good_columns=enough_binary_columns)
def itq(num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None) -> Codebook:
    """Bit j of a class is the sign of its centred prototype along direction j of a rotated PCA basis.

    With more bits than the prototypes have dimensions the columns come in ⌈n / d⌉ groups of nearly
    equal size; each starts from another random rotation of the leading components. Rows that come out
    equal are made distinct in their least certain bits, `params["collisions"]` says how many; columns
    that repeat others are replaced by random directions.
    """
    length = free_length("itq", num_classes, bits, ITQ_LENGTH)
    vectors = Prototypes.of("itq", prototypes, num_classes)
    plane, collisions = _plane(vectors, length, RandomBits(seed))
    return PackedCodebook(
        num_classes=num_classes,
        length=length,
        design="itq",
        seed=seed,
        params={"prototypes": vectors.origin(), "collisions": collisions},
        sign_plane=plane,
    )


def _plane(vectors: Prototypes, length: int, source: RandomBits) -> tuple[Bytes, int]:
    """The sign plane (V, bytes), and how many rows had to be changed to be distinct."""
    mean = vectors.mean()
    basis = principal_directions(vectors, mean)
    directions = _directions(vectors, mean, basis, length, source)

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


def _directions(vectors: Prototypes, mean: Floats, basis: Floats, length: int, source: RandomBits) -> Floats:
    """What the columns are the signs of the projections on: (d, length), in groups of rotated components."""
    rows = np.sort(source.permutation(vectors.shape[0])[:ROTATION_ROWS])
    components = vectors.project(rows, mean, basis[:, :length])
    groups = -(-length // basis.shape[1])
    parts = []
    for group in range(groups):
        size = (length + group) // groups
        start = random_rotation(source.normal(size, size))
        parts.append(basis[:, :size] @ fit_rotation(components[:, :size], start))
    return np.concatenate(parts, axis=1)


def fit_rotation(components: Floats, rotation: Floats, iterations: int = ITERATIONS) -> Floats:
    """The rotation R (m, m) for which ‖sign(X R) − X R‖ is smallest, starting from `rotation`.

    For fixed bits B the best R is U Vᵀ with U S Vᵀ the singular value decomposition of Xᵀ B (the paper's
    section 2.2); for fixed R the best bits are the signs. `components` are the vectors X (rows, m).
    """
    for _ in range(iterations):
        symbols = np.where(components @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(components.T @ symbols)
        rotation = left @ right
    return rotation
