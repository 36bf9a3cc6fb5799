"""Discriminant trees: mutual information by integration, floating search set by set, forests without repeats."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes import build
from codehead.codes.decoc import GAIN, Likeness, best_partition, floating_search, ranked_partitions
from codehead.errors import CodebookError, ConfigurationError


def squared(rows: np.ndarray) -> np.ndarray:
    return np.square(rows[:, None] - rows[None]).sum(axis=-1)


def likeness(rows: np.ndarray, labels: np.ndarray | None = None) -> Likeness:
    return Likeness.of(squared(rows), np.arange(len(rows)) if labels is None else labels)


def test_information_is_the_integral_of_its_definition() -> None:
    """Σ_c ∫ (p(c, x) − P(c) p(x))² dx of Parzen densities on a line, by summing over a fine grid."""
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, 4, size=30))
    rows = random.standard_normal((30, 1)) + labels[:, None]
    width = np.sqrt(squared(rows).max()) / 2
    grid = np.linspace(rows.min() - 8 * width, rows.max() + 8 * width, 20_001)
    kernels = np.exp(-((grid - rows) ** 2) / (2 * width**2)) / np.sqrt(2 * np.pi) / width  # (samples, grid)
    constant = np.sqrt(4 * np.pi) * width  # of the Gaussian of variance 2σ², which Likeness leaves out
    for side in ([True, False, False, False], [True, True, False, False], [False, True, False, True]):
        own = np.array(side)[labels]
        expected = 0.0
        for chosen in (own, ~own):
            joint = kernels[chosen].sum(axis=0) / len(rows)
            expected += np.square(joint - chosen.mean() * kernels.mean(axis=0)).sum() * (grid[1] - grid[0])
        assert likeness(rows, labels).of_side(np.array(side)) == pytest.approx(expected * constant, rel=1e-6)


def slow_search(model: Likeness) -> dict[int, tuple[frozenset[int], float]]:
    """Sequential forward floating search on sets, each judged on its own."""
    everyone = frozenset(range(len(model.sizes)))

    def information(some: frozenset[int]) -> float:
        return model.of_side(np.isin(np.arange(len(everyone)), list(some)))

    side: frozenset[int] = frozenset()
    best: dict[int, tuple[frozenset[int], float]] = {}

    def keep() -> None:
        if len(side) not in best or information(side) > best[len(side)][1] + GAIN:
            best[len(side)] = side, information(side)

    while len(side) < len(everyone) - 1:
        side |= {max(sorted(everyone - side), key=lambda v: information(side | {v}))}
        keep()
        while len(side) > 2:
            least = max(sorted(side), key=lambda v: information(side - {v}))
            if information(side - {least}) <= best[len(side) - 1][1] + GAIN:
                break
            side -= {least}
            keep()
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 100))
def test_floating_search_against_its_definition(num_classes: int, dimensions: int, seed: int) -> None:
    model = likeness(np.random.default_rng(seed).standard_normal((num_classes, dimensions)))
    expected = slow_search(model)
    found = floating_search(model)
    assert [partition.side.sum() for partition in found] == list(range(1, num_classes))
    for partition in found:
        assert partition.information == pytest.approx(expected[int(partition.side.sum())][1], abs=1e-12)
        assert partition.information == pytest.approx(model.of_side(partition.side), abs=1e-12)


def test_floating_search_takes_back_what_it_took() -> None:
    """Somewhere a plain forward search, which never lets a class leave, is beaten."""
    better = 0
    for seed in range(30):
        model = likeness(np.random.default_rng(seed).standard_normal((10, 2)))
        side, plain = np.zeros(10, dtype=bool), []
        for _ in range(9):
            values = [model.of_side(side | (np.arange(10) == v)) if not side[v] else -1 for v in range(10)]
            side[int(np.argmax(values))] = True
            plain.append(max(values))
        found = [partition.information for partition in floating_search(model)]
        assert max(found) >= max(plain) - 1e-12
        better += any(f > p + 1e-9 for f, p in zip(found, plain, strict=True))
    assert better > 0


@pytest.mark.parametrize("sizes", [(4, 4), (2, 6), (1, 7)])
def test_clusters_are_the_best_partition(sizes: tuple[int, int]) -> None:
    """Also where they are unbalanced: no other partition of eight classes has more information."""
    random = np.random.default_rng(1)
    rows = np.repeat([0.0, 5.0], sizes)[:, None] + 0.1 * random.standard_normal((8, 3))
    model = likeness(rows)
    best = best_partition(model)
    assert best.side.tolist() == [True] * sizes[0] + [False] * sizes[1]
    every = [model.of_side(np.isin(np.arange(8), c)) for size in range(1, 8) for c in combinations(range(8), size)]
    assert best.information == pytest.approx(max(every))


@pytest.mark.parametrize("num_classes", [2, 3, 5, 6, 12])
def test_ranked_partitions_fall_and_differ(num_classes: int) -> None:
    model = likeness(np.random.default_rng(0).standard_normal((num_classes, 3)))
    found = ranked_partitions(model)
    assert all(partition.side[0] and not partition.side.all() for partition in found)
    assert len({partition.side.tobytes() for partition in found}) == len(found)
    falling = [partition.information for partition in found[1:]]
    assert falling == sorted(falling, reverse=True)
    if num_classes <= 6:
        assert len(found) == 2 ** (num_classes - 1) - 1


def nodes(symbols: np.ndarray) -> list[tuple[frozenset[int], frozenset[int]]]:
    return [(frozenset(np.flatnonzero(c == 1)), frozenset(np.flatnonzero(c == -1))) for c in symbols.T]


def assert_is_a_tree(columns: list[tuple[frozenset[int], frozenset[int]]], num_classes: int) -> None:
    open_nodes = {frozenset(range(num_classes))}
    for up, down in columns:
        assert up | down in open_nodes
        assert min(up) < min(down)
        open_nodes = (open_nodes - {up | down}) | {part for part in (up, down) if len(part) > 1}
    assert not open_nodes


@pytest.mark.parametrize("num_classes", [2, 3, 10, 40])
def test_columns_are_the_nodes_of_a_tree(num_classes: int) -> None:
    rows = np.random.default_rng(num_classes).standard_normal((num_classes, 4))
    symbols = build("decoc", num_classes, prototypes=rows).to_array()
    assert symbols.shape == (num_classes, num_classes - 1)
    assert_is_a_tree(nodes(symbols), num_classes)
    for up, down in nodes(symbols):
        members = sorted(up | down)
        best = best_partition(likeness(rows[members]))
        assert {m for m, on in zip(members, best.side, strict=True) if on} == up


def test_samples_say_more_than_their_means() -> None:
    """Classes 0 and 1 surround the same point, 2 and 3 lie on it: only the samples tell which are alike."""
    random = np.random.default_rng(0)
    angles = random.uniform(0, 2 * np.pi, size=160)
    radii = np.repeat([5.0, 5.0, 0.1, 0.1], 40)
    samples = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.repeat(np.arange(4), 40)
    shuffle = random.permutation(160)
    codebook = build("decoc", 4, samples=samples[shuffle], labels=labels[shuffle])
    assert codebook.to_array()[:, 0].tolist() == [1, 1, -1, -1]
    assert codebook.params["samples"]["shape"] == [160, 2]
    assert codebook.checksum == build("decoc", 4, samples=samples, labels=labels).checksum


def test_one_sample_per_class_is_a_prototype() -> None:
    rows = np.random.default_rng(0).standard_normal((12, 5))
    one = build("decoc", 12, samples=rows, labels=np.arange(12))
    assert one.checksum == build("decoc", 12, prototypes=rows).checksum


@pytest.mark.parametrize(("num_classes", "trees"), [(3, 3), (4, 3), (5, 3), (7, 5), (20, 3), (40, 6)])
def test_no_partition_is_repeated(num_classes: int, trees: int) -> None:
    rows = np.random.default_rng(0).standard_normal((num_classes, 6))
    codebook = build("forest_ecoc", num_classes, prototypes=rows, trees=trees)
    columns = nodes(codebook.to_array())
    assert len(columns) == trees * (num_classes - 1)
    assert len({frozenset(column) for column in columns}) == len(columns)
    for tree in range(trees):
        assert_is_a_tree(columns[tree * (num_classes - 1) :][: num_classes - 1], num_classes)
    first = build("decoc", num_classes, prototypes=rows).to_array()
    assert np.array_equal(codebook.to_array()[:, : num_classes - 1], first)
    assert codebook.params["trees"] == trees


def test_as_many_trees_as_partitions_allow() -> None:
    assert build("forest_ecoc", 2, prototypes=np.eye(2)).length == 1
    for num_classes, trees in ((2, 2), (3, 4)):
        with pytest.raises(CodebookError, match=r"every partition of the classes .* ask for fewer trees"):
            build("forest_ecoc", num_classes, prototypes=np.eye(num_classes), trees=trees)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'decoc' needs prototypes: give prototypes="),
        (
            {"prototypes": np.eye(4), "samples": np.eye(4), "labels": range(4)},
            "prototypes=.*or from samples= and labels=",
        ),
        ({"samples": np.eye(4)}, "samples= and labels=; give either"),
        ({"samples": np.eye(4), "labels": [0, 1, 2]}, r"labels is int64 \(3,\); give 4 class ids, one per sample"),
        ({"samples": np.eye(4), "labels": [0.0, 1.0, 2.0, 3.0]}, "labels is float64"),
        ({"samples": np.eye(4), "labels": [0, 1, 2, 2]}, "labels has no sample of class 3"),
        ({"samples": np.eye(5), "labels": [0, 1, 2, 3, 4]}, "labels has unknown classes; every class from 0 to 3"),
        ({"samples": np.ones((4, 2)), "labels": range(4)}, "all rows of samples are equal"),
        ({"prototypes": np.eye(4), "bits": 4}, "decoc has exactly 3 columns for 4 classes; .* merged_decoc"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build("decoc", 4, **options)


@pytest.mark.parametrize("design", ["decoc", "forest_ecoc"])
def test_what_a_large_tree_would_cost(design: str) -> None:
    message = r"V³ = 3.5e\+15 steps and V − 1 = 151,935 columns .* choose merged_decoc"
    with pytest.raises(ConfigurationError, match=message):
        build(design, 151_936, prototypes=np.eye(2))


def test_too_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codehead.codes.decoc.MAX_SAMPLES", 3)
    with pytest.raises(ConfigurationError, match=r"samples has 4 rows, whose pairs would take .* give at most 3"):
        build("decoc", 4, samples=np.eye(4), labels=range(4))
