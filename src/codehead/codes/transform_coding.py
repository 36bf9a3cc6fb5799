"""Codewords that are principal components, rounded: transform coding, what `codehead screen` codes rows with.

Principal components of the prototypes get bits by reverse water-filling and are rounded to even cells in natural binary
(A. Gersho, R. Gray 1992, "Vector Quantization and Signal Compression", chapter 8). As in `additive`, where this is one
of the starts, but quick and with nothing fitted.
"""

from __future__ import annotations

from typing import Any

from codehead.codes.additive import expanded, summed
from codehead.codes.checks import enough_binary_columns
from codehead.codes.codebook import Codebook
from codehead.codes.design import register


@register("transform_coding", good_columns=enough_binary_columns)
def transform_coding(
    num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, weights: Any = None
) -> Codebook:
    """Every prototype's leading components, each in as many bits as keep the squared error least.

    Classes count as much as their `weights` (V,) for components and cells. Rows that come out equal are made distinct
    in the bits that matter least, `params["collisions"]` says how many; columns that repeat others, of more bits than
    the prototypes bear, are replaced by the signs of random projections, for which `seed` is.
    """
    return summed("transform_coding", num_classes, bits, seed, prototypes, weights, expanded)
