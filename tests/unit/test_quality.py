"""Quality measures against their plain definitions."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codehead.codes import Codebook, PackedCodebook, build, quality
from codehead.codes.packing import count_ones, count_ones_by_table
from codehead.errors import ConfigurationError

SHAPES = st.tuples(st.integers(2, 20), st.integers(1, 80))


def allwein(left: np.ndarray, right: np.ndarray) -> float:
    """Places that differ, and half a place where either is 0."""
    return float(sum(0.5 if a == 0 or b == 0 else float(a != b) for a, b in zip(left, right, strict=True)))


def expected(matrix: np.ndarray) -> dict[str, Any]:
    rows = [allwein(a, b) for a, b in combinations(matrix, 2)]
    columns = [allwein(a, b) for a, b in combinations(matrix.T, 2)]
    shares = [np.sum(column == 1) / max(np.sum(column != 0), 1) for column in matrix.T]
    return {
        "num_classes": matrix.shape[0],
        "length": matrix.shape[1],
        "row_distance_min": min(rows),
        "row_distance_mean": pytest.approx(np.mean(rows)),
        "row_histogram": dict(Counter(rows)),
        "exact": True,
        "pairs": len(rows),
        "correctable_bits": max(floor((min(rows) - 1) / 2), 0),
        "column_distance": min((min(h, len(matrix) - h) for h in columns), default=None),
        "columns_exact": True,
        "column_pairs": len(columns),
        "balance_min": pytest.approx(min(shares)),
        "balance_max": pytest.approx(max(shares)),
        "balance_mean": pytest.approx(np.mean(shares)),
    }


def measured(codebook: Codebook, **options: Any) -> dict[str, Any]:
    return vars(quality(codebook, **options))


@settings(deadline=None)
@given(hnp.arrays(np.int8, SHAPES, elements=st.sampled_from([-1, 1])))
def test_binary_codes(matrix: np.ndarray) -> None:
    assert measured(PackedCodebook.from_array(matrix, allow_duplicates=True)) == expected(matrix)


@settings(deadline=None)
@given(hnp.arrays(np.int8, SHAPES, elements=st.sampled_from([-1, 0, 1])))
def test_ternary_codes(matrix: np.ndarray) -> None:
    assert measured(PackedCodebook.from_array(matrix, allow_duplicates=True)) == expected(matrix)


@pytest.mark.parametrize("design", ["one_vs_all", "one_vs_one", "gray", "sparse_random", "minrandom"])
@pytest.mark.parametrize("num_classes", [2, 3, 17])
def test_designs(design: str, num_classes: int) -> None:
    codebook = build(design, num_classes)
    assert measured(codebook) == expected(codebook.to_array())


def test_blocks_of_rows_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = build("sparse_random", 50, candidates=1)
    whole = quality(codebook)
    monkeypatch.setattr("codehead.codes.packing.CHUNK_PAIRS", 7 * 50)
    monkeypatch.setattr("codehead.codes.packing.CHUNK_SYMBOLS", 16 * codebook.length)
    assert quality(codebook) == whole


def test_one_vs_all_of_a_whole_vocabulary() -> None:
    result = quality(build("one_vs_all", 262_144))
    assert result.row_histogram == {2.0: 262_144 * 262_143 // 2}
    assert (result.row_distance_min, result.row_distance_mean, result.exact) == (2, 2, True)
    assert result.balance_mean == 1 / 262_144


@pytest.mark.parametrize("design", ["minrandom", "sparse_random"])
def test_a_sample_says_so_and_bounds_the_minimum(design: str) -> None:
    codebook = build(design, 300, candidates=1)
    exact, sample = quality(codebook), quality(codebook, exact_limit=0, samples=5000)
    assert (exact.exact, exact.columns_exact) == (True, True)
    assert (sample.exact, sample.columns_exact) == (False, False)
    assert sample.pairs == 5000 == sum(sample.row_histogram.values())
    assert sample.row_distance_min >= exact.row_distance_min
    assert sample.column_distance is not None
    assert exact.column_distance is not None
    assert sample.column_distance >= exact.column_distance
    assert sample.row_distance_mean == pytest.approx(exact.row_distance_mean, rel=0.02)
    assert (sample.balance_min, sample.balance_max) == (exact.balance_min, exact.balance_max)
    assert sample == quality(codebook, exact_limit=0, samples=5000)
    assert sample != quality(codebook, exact_limit=0, samples=5000, seed=1)


def test_the_sample_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides which candidate is kept, and so the bytes of a codebook."""
    codebook = build("minrandom", 30)
    whole = quality(codebook, exact_limit=0, samples=1000)
    monkeypatch.setattr("codehead.codes.packing.CHUNK_PAIRS", 64)
    assert quality(codebook, exact_limit=0, samples=1000) == whole


def test_a_single_column_has_no_column_distance() -> None:
    assert quality(build("minimal", 2)).column_distance is None


def test_a_vocabulary_is_sampled_by_itself() -> None:
    result = quality(build("minimal", 50_272), samples=2**18)
    assert not result.exact
    assert result.columns_exact
    assert result.row_distance_min == 1


def test_as_dict_is_json() -> None:
    result = quality(build("sparse_random", 10))
    written = json.loads(json.dumps(result.as_dict()))
    assert {float(d): n for d, n in written["row_histogram"].items()} == result.row_histogram
    assert written["row_distance_min"] == result.row_distance_min


@pytest.mark.parametrize("options", [{"samples": 0}, {"exact_limit": -1}, {"samples": 2.5}])
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        quality(build("minimal", 8), **options)


@settings(deadline=None)
@given(hnp.arrays(np.uint64, hnp.array_shapes(max_dims=2), elements=st.integers(0, 2**64 - 1)))
def test_counting_ones(values: np.ndarray) -> None:
    counts = [int(value).bit_count() for value in values.ravel()]
    assert count_ones(values).ravel().tolist() == counts
    assert count_ones_by_table(values).ravel().tolist() == counts
