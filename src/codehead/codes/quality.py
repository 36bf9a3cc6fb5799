"""How good a code is: row separation, column separation and balance, exact or by sampling."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from codehead.codes.codebook import Codebook, OneVsAllCodebook, PackedCodebook
from codehead.codes.design import whole_number
from codehead.codes.packing import Integers, PackedRows, all_pairs, count_ones, sampled_pairs, transpose

EXACT_LIMIT = 2**28
"""Default limit of the 64-bit words compared for an exact answer: about 23,000 classes of 64 bits."""

COLUMN_FACTOR = 8
"""Columns are few and long, so that a word of theirs costs less: so much more of them is compared."""

SAMPLES = 2**22
"""Default number of pairs sampled above that limit."""


@final
@dataclass(frozen=True)
class Quality:
    """Measures of a codebook; distances count places, a place where either symbol is 0 counts ½.

    * `row_distance_min`, `row_distance_mean`, `row_histogram` (distance → pairs): between codewords.
      Unless `exact`, they come from `pairs` sampled pairs and the minimum is an upper bound.
    * `correctable_bits`: wrong bits that nearest-codeword decoding is sure to repair, ⌊(d − 1) / 2⌋ for
      the minimum distance d (an upper bound unless `exact`). A 0 in the true codeword counts as half
      a wrong bit, since the prediction there is left open.
    * `column_distance`: the least min(h, V − h) over pairs of columns at distance h, 0 for a duplicate
      or complementary pair; None for a single column. Sampled unless `columns_exact`.
    * `balance_min`, `balance_max`, `balance_mean`: a column's share of +1 among its non-zero symbols.
    """

    num_classes: int
    length: int
    row_distance_min: float
    row_distance_mean: float
    row_histogram: dict[float, int]
    exact: bool
    pairs: int
    correctable_bits: int
    column_distance: float | None
    columns_exact: bool
    column_pairs: int
    balance_min: float
    balance_max: float
    balance_mean: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the keys of the histogram become strings, as JSON has them."""
        return {**asdict(self), "row_histogram": {f"{d:g}": n for d, n in self.row_histogram.items()}}


def quality(codebook: Codebook, *, exact_limit: int = EXACT_LIMIT, samples: int = SAMPLES, seed: int = 0) -> Quality:
    """Measure a codebook.

    All pairs of rows are compared if that takes at most `exact_limit` 64-bit words (of columns, eight
    times as many), otherwise `samples` pairs drawn with `seed` (of columns, fewer as they are longer).
    one_vs_all is known in closed form at any size.
    """
    exact_limit, samples = whole_number("exact_limit", exact_limit, 0), whole_number("samples", samples, 1)
    if isinstance(codebook, OneVsAllCodebook):
        return _one_vs_all(codebook.num_classes)
    assert isinstance(codebook, PackedCodebook)
    rows = PackedRows.from_planes(codebook.sign_plane, codebook.support_plane, codebook.length)
    row_counts, exact = _distances(rows, exact_limit, samples, seed)
    columns = _columns(codebook)
    column_samples = max(samples // len(columns.sign), 1)
    column_counts, columns_exact = _distances(columns, COLUMN_FACTOR * exact_limit, column_samples, seed)
    shares = _shares(columns)
    doubled = np.flatnonzero(row_counts)
    histogram = {int(d) / 2: int(row_counts[d]) for d in doubled}
    pairs = int(row_counts.sum())
    minimum = int(doubled[0])
    return Quality(
        num_classes=codebook.num_classes,
        length=codebook.length,
        row_distance_min=minimum / 2,
        row_distance_mean=int(row_counts @ np.arange(len(row_counts))) / (2 * pairs),
        row_histogram=histogram,
        exact=exact,
        pairs=pairs,
        correctable_bits=max((minimum - 2) // 4, 0),
        column_distance=_column_distance(column_counts),
        columns_exact=columns_exact,
        column_pairs=int(column_counts.sum()),
        balance_min=float(shares.min()),
        balance_max=float(shares.max()),
        balance_mean=float(shares.mean()),
    )


def _distances(rows: PackedRows, limit: int, samples: int, seed: int) -> tuple[Integers, bool]:
    """Counts by doubled distance, and whether they are of all pairs."""
    exact = rows.num_pairs * len(rows.sign) <= limit
    return (all_pairs(rows) if exact else sampled_pairs(rows, samples, seed)), exact


def _columns(codebook: PackedCodebook) -> PackedRows:
    """The columns of a codebook as packed rows of V symbols."""
    sign = transpose(codebook.sign_plane, codebook.length)
    support = codebook.support_plane
    support = None if support is None else transpose(support, codebook.length)
    return PackedRows.from_planes(sign, support, codebook.num_classes)


def _column_distance(counts: Integers) -> float | None:
    """The least min(h, V − h) among counts (2V + 1,) by doubled distance h."""
    doubled = np.flatnonzero(counts)
    return float(np.minimum(doubled, len(counts) - 1 - doubled).min()) / 2 if len(doubled) else None


def _shares(columns: PackedRows) -> np.ndarray:
    """The share of +1 among the non-zero symbols of each column (n,); 0 for an empty column."""
    positive = count_ones(columns.sign).sum(axis=0, dtype=np.int64)
    if columns.support is None:
        return positive / columns.length
    return positive / np.maximum(count_ones(columns.support).sum(axis=0, dtype=np.int64), 1)


def _one_vs_all(num_classes: int) -> Quality:
    """Any two rows differ in two places, and so do any two columns."""
    pairs = num_classes * (num_classes - 1) // 2
    return Quality(
        num_classes=num_classes,
        length=num_classes,
        row_distance_min=2.0,
        row_distance_mean=2.0,
        row_histogram={2.0: pairs},
        exact=True,
        pairs=pairs,
        correctable_bits=0,
        column_distance=float(min(2, num_classes - 2)),
        columns_exact=True,
        column_pairs=pairs,
        balance_min=1 / num_classes,
        balance_max=1 / num_classes,
        balance_mean=1 / num_classes,
    )
