"""The principal directions of prototypes."""

from __future__ import annotations

import numpy as np

from codehead.codes.arrays import Floats
from codehead.codes.prototypes import Prototypes
from codehead.errors import ConfigurationError


def principal_directions(prototypes: Prototypes, mean: Floats, weights: Floats | None = None) -> Floats:
    """Orthonormal directions (d, r) of the vectors less their `mean` (d,), the widest first.

    Each vector counts as much as its one of `weights` (V,), by default all the same. r is the rank: directions in
    which the vectors do not differ are left out. Of the two signs, the one that makes the largest component of a
    direction positive. ConfigurationError if the vectors that count do not differ.
    """
    rows, dimensions = prototypes.shape
    scatter = np.zeros((dimensions, dimensions))
    for start, chunk in prototypes.chunks():
        centred = chunk - mean
        scatter += centred.T @ (centred if weights is None else weights[start : start + len(chunk), None] * centred)
    if not np.trace(scatter) > 0:
        raise ConfigurationError(
            "prototypes: those that count (weights above 0) are equal, or differ by less than float64 can square; give "
            "vectors that tell the classes apart, with values near 1"
        )
    variances, directions = np.linalg.eigh(scatter)
    variances, directions = variances[::-1], directions[:, ::-1]
    noise = max(rows, dimensions) * np.finfo(np.float64).eps * variances[0]
    return with_fixed_signs(directions[:, variances > noise])


def with_fixed_signs(directions: Floats) -> Floats:
    """The columns, each times the sign of its largest component."""
    largest = np.abs(directions).argmax(axis=0)
    return directions * np.sign(directions[largest, np.arange(directions.shape[1])])


def random_rotation(values: Floats) -> Floats:
    """An orthogonal matrix (m, m) from m × m independent normal numbers, uniform over all of them.

    The Q of a QR factorisation whose R has a positive diagonal (Mezzadri 2007, "How to generate random
    matrices from the classical compact groups").
    """
    orthogonal, triangle = np.linalg.qr(values)
    return np.asarray(orthogonal * np.where(np.diag(triangle) < 0, -1.0, 1.0))
