"""Codes that prototypes can be added up from: against slow versions of the definitions, and where data are awkward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codehead.codes import build
from codehead.codes.additive import flipped, water_filling
from codehead.errors import CodebookError

SEEDS = st.integers(0, 2**32 - 1)


def signs(codebook: object) -> np.ndarray:
    return codebook.to_array().astype(np.float64)  # type: ignore[attr-defined]


def error(codewords: np.ndarray, prototypes: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The weighted share of the prototypes that no vectors make of the codewords, a common one included."""
    roots = np.ones(len(prototypes)) if weights is None else np.sqrt(weights)
    inputs = roots[:, None] * np.column_stack([codewords, np.ones(len(codewords))])
    mean = roots**2 @ prototypes / np.sum(roots**2)
    wanted = roots[:, None] * (prototypes - mean)
    left = wanted - inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    return float(np.sum(left**2) / np.sum(wanted**2))


def decaying(num_classes: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Vectors off the origin whose components vary the less the later they are, turned at random."""
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.standard_normal((dimensions, dimensions)))[0]
    return 3.0 + (random.standard_normal((num_classes, dimensions)) * 0.7 ** np.arange(dimensions)) @ turn


@given(rows=st.integers(1, 6), bits=st.integers(1, 5), width=st.integers(1, 4), seed=SEEDS)
def test_bits_take_the_side_that_is_nearer_one_after_the_other(rows: int, bits: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, vectors = random.standard_normal((width, rows)), random.standard_normal((bits, width))
    begun = np.where(random.random((bits, rows)) < 0.5, 1.0, -1.0)
    expected = begun.copy()
    for row, bit in itertools.product(range(rows), range(bits)):
        sides = {}
        for side in (1.0, -1.0):
            expected[bit, row] = side
            sides[side] = np.sum((values[:, row] - vectors.T @ expected[:, row]) ** 2)
        expected[bit, row] = min(sides, key=sides.__getitem__)
    assert np.array_equal(flipped(values, begun, vectors), expected)


@given(variances=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4), total=st.integers(1, 8))
def test_bits_go_where_they_leave_the_least(variances: list[float], total: int) -> None:
    found = water_filling(np.array(variances), total)
    assert found.sum() == total and len(found) == len(variances)
    least = min(
        sum(v * 4.0**-b for v, b in zip(variances, digits, strict=True))
        for digits in itertools.product(range(total + 1), repeat=len(variances))
        if sum(digits) == total
    )
    assert sum(v * 4.0**-b for v, b in zip(variances, found, strict=True)) == pytest.approx(least)


@pytest.mark.parametrize("decay", [1.0, 0.95])
def test_short_codes_also_start_from_rotated_signs(monkeypatch: pytest.MonkeyPatch, decay: float) -> None:
    random = np.random.default_rng(0)
    prototypes = random.standard_normal((400, 40)) * decay ** np.arange(40)
    found = build("additive", 400, bits=24, prototypes=prototypes, seed=3)
    monkeypatch.setattr("codehead.codes.additive.SHORT_LENGTH", 0)
    expanded = build("additive", 400, bits=24, prototypes=prototypes, seed=3)
    assert found.seed == 3 and expanded.seed is None
    assert error(signs(found), prototypes) < 0.98 * error(signs(expanded), prototypes)


def test_prototypes_that_are_sums_are_found() -> None:
    random = np.random.default_rng(0)
    summed = np.array(list(itertools.product((-1.0, 1.0), repeat=6)))
    vectors = np.linalg.qr(random.standard_normal((9, 6)))[0].T * np.linspace(6, 5, 6)[:, None]
    assert error(signs(build("additive", 64, bits=6, prototypes=summed @ vectors + 2.0)), summed @ vectors) < 1e-9


@pytest.mark.parametrize("bits", [9, 24, 60])
def test_closer_than_signs_of_rotated_components(bits: int) -> None:
    prototypes = decaying(300, 20)
    ours, theirs = (build(design, 300, bits=bits, prototypes=prototypes) for design in ("additive", "itq"))
    assert error(signs(ours), prototypes) < 0.7 * error(signs(theirs), prototypes)


def test_classes_count_as_much_as_their_weights() -> None:
    prototypes, weights = decaying(200, 16), np.r_[np.full(40, 50.0), np.full(160, 0.1)]
    alike = signs(build("additive", 200, bits=16, prototypes=prototypes))
    weighted = signs(build("additive", 200, bits=16, prototypes=prototypes, weights=weights))
    assert error(weighted[:40], prototypes[:40]) < 0.95 * error(alike[:40], prototypes[:40])
    assert error(weighted, prototypes, weights) < error(alike, prototypes, weights)


def test_of_equal_rows_those_that_count_most_stay() -> None:
    prototypes = np.repeat(decaying(16, 6), 8, axis=0)
    prototypes += 1e-3 * np.random.default_rng(1).standard_normal(prototypes.shape)
    weights = np.where(np.arange(128) % 8 == 0, 1000.0, 1.0)
    codebook = build("additive", 128, bits=8, prototypes=prototypes, weights=weights)
    assert codebook.params["collisions"] > 60
    heavy = signs(codebook)[::8]
    alone = error(heavy, prototypes[::8])
    assert alone < error(signs(codebook), prototypes) / 2


def test_chunks_and_seeds_that_draw_nothing_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prototypes = decaying(90, 7)
    expected = build("additive", 90, bits=20, prototypes=prototypes)
    again = build("additive", 90, bits=20, prototypes=prototypes, seed=5)
    assert again.checksum == expected.checksum and again.seed is expected.seed is None
    monkeypatch.setattr("codehead.codes.additive.CHUNK_VALUES", 100)
    assert build("additive", 90, bits=20, prototypes=prototypes).checksum == expected.checksum


@pytest.mark.parametrize(("num_classes", "dimensions"), [(2, 16), (2, 1), (3, 1), (5, 1), (5, 3)])
def test_few_classes_of_few_dimensions_have_codes_of_any_length(num_classes: int, dimensions: int) -> None:
    prototypes = decaying(num_classes, dimensions)
    codebook = build("additive", num_classes, prototypes=prototypes)
    assert codebook.length == 64
    assert len(np.unique(codebook.to_array(), axis=0)) == num_classes


def test_more_columns_than_splits_are_refused() -> None:
    with pytest.raises(
        CodebookError, match=r"bits=64 is too many for these 500 prototypes of rank 1: .* ask for fewer"
    ):
        build("additive", 500, bits=64, prototypes=decaying(500, 1))


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e145])
def test_the_scale_of_prototypes_makes_no_difference(scale: float) -> None:
    prototypes = decaying(100, 6)
    expected = build("additive", 100, bits=16, prototypes=prototypes)
    assert build("additive", 100, bits=16, prototypes=scale * prototypes).checksum == expected.checksum


def test_equal_rows_flip_what_costs_least_even_if_they_count_little() -> None:
    prototypes = decaying(60, 8)
    prototypes[58] = prototypes[59]
    weights = np.r_[np.ones(58), 1e-6, 1e-6]
    rows = signs(build("additive", 60, bits=24, prototypes=prototypes, weights=weights))
    (differing,) = np.flatnonzero(rows[58] != rows[59])
    sizes = np.linalg.norm(np.linalg.lstsq(rows, prototypes - prototypes.mean(0), rcond=None)[0], axis=1)
    assert sizes[differing] < np.median(sizes)


def test_columns_that_repeat_are_drawn_anew() -> None:
    prototypes = np.repeat(np.eye(6), 20, axis=0)
    codebook = build("additive", 120, bits=40, prototypes=prototypes)
    codebook.check_columns()
    assert len(np.unique(codebook.to_array(), axis=0)) == 120
    assert codebook.seed == 0
    assert build("additive", 120, bits=40, prototypes=prototypes, seed=1).checksum != codebook.checksum
