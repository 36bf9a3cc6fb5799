"""Which class gets which codeword: the objectives against their definitions, and what must not change."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes import assign, build, load
from codehead.codes.assignment import METHODS, _any_partners, _close_partners, _swapped, near_pairs
from codehead.codes.packing import PackedRows, RandomBits
from codehead.codes.prototypes import Prototypes
from codehead.errors import CodebookError, ConfigurationError


def plane(num_classes: int, seed: int = 0) -> np.ndarray:
    """Points of the plane: likeness is easily seen."""
    return np.random.default_rng(seed).standard_normal((num_classes, 2))


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """½ Σ (1 − u v), symbol by symbol."""
    return sum(1 - int(u) * int(v) for u, v in zip(left, right, strict=True)) / 2


def looked_at(method: str, num_classes: int) -> dict[str, Any]:
    if method == "frequency":
        return {"counts": 1000 // np.arange(1, num_classes + 1)}
    return {"prototypes": plane(num_classes)} if method.startswith("similar") else {}


@pytest.mark.parametrize("design", ["minimal", "minrandom", "sparse_random"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_codewords_in_another_order(design: str, method: str, tmp_path: Path) -> None:
    codebook = build(design, 90)
    dealt = assign(codebook, method, **looked_at(method, 90), seed=4)
    again = assign(codebook, method, **looked_at(method, 90), seed=4)
    assert sorted(map(bytes, dealt.to_array())) == sorted(map(bytes, codebook.to_array()))
    assert (dealt.checksum == codebook.checksum) == (method == "identity")
    assert (dealt.checksum, dealt.params) == (again.checksum, again.params)
    assert (dealt.design, dealt.seed) == (design, codebook.seed)
    assert dealt.params["assignment"]["method"] == method
    dealt.save(tmp_path / "code.safetensors")
    assert load(tmp_path / "code.safetensors").params == dealt.params


def test_random_depends_on_the_seed() -> None:
    codebook = build("minimal", 50)
    assert assign(codebook, "random", seed=1).checksum != assign(codebook, "random", seed=2).checksum


@pytest.mark.parametrize("method", ["similar_near", "similar_far"])
@pytest.mark.parametrize("design", ["minimal", "minrandom", "sparse_random"])
def test_objective_is_the_mean_distance_of_like_classes(design: str, method: str) -> None:
    codebook = build(design, 80)
    dealt = assign(codebook, method, plane(80), seed=1)
    pairs = near_pairs(Prototypes(plane(80)))
    record = dealt.params["assignment"]
    for symbols, name in ((codebook.to_array(), "before"), (dealt.to_array(), "after")):
        expected = np.mean([distance(symbols[a], symbols[b]) for a, b in pairs])
        assert record[name] == pytest.approx(expected)
    gain = record["before"] - record["after"]
    assert gain > 0 if method == "similar_near" else gain < 0


def test_near_undoes_a_shuffle() -> None:
    """A code made for the classes, dealt out at random, and dealt out by likeness again."""
    rows = plane(512)
    made = build("itq", 512, bits=24, prototypes=np.c_[rows, rows**2, rows[:, :1] * rows[:, 1:]])
    shuffled = assign(made, "random", seed=1)
    back = assign(shuffled, "similar_near", rows)
    record = back.params["assignment"]
    assert record["before"] > 9
    assert record["after"] < 0.6 * record["before"]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 20), st.sampled_from([1, -1]), st.booleans())
def test_no_sweep_makes_it_worse(num_classes: int, seed: int, sign: int, close: bool) -> None:
    codebook = build("dense_random", num_classes, bits=12, candidates=1, seed=seed)
    rows = PackedRows.from_planes(codebook.sign_plane, length=12)  # type: ignore[attr-defined]
    pairs, source = near_pairs(Prototypes(plane(num_classes, seed))), RandomBits(seed)
    symbols, held = codebook.to_array(), source.permutation(num_classes)
    order = source.permutation(num_classes)

    def total(holders: np.ndarray) -> float:
        return sign * sum(distance(symbols[holders[a]], symbols[holders[b]]) for a, b in pairs)

    for _ in range(4):
        partners = _close_partners(held, order, pairs, source) if close else _any_partners(held, source)
        assert np.array_equal(partners[partners], np.arange(num_classes))
        swapped = _swapped(rows, held, pairs, partners, sign)
        assert sorted(swapped.tolist()) == list(range(num_classes))
        changed = not np.array_equal(swapped, held)
        assert total(swapped) < total(held) if changed else total(swapped) == total(held)
        held = swapped


def test_a_swap_that_helps_is_made() -> None:
    """Two clusters of two with crossed codewords: one swap puts it right."""
    codebook = build("custom", 4, array=[[1, 1, 1, 1], [-1, -1, -1, -1], [1, 1, 1, -1], [-1, -1, -1, 1]])
    rows = PackedRows.from_planes(codebook.sign_plane, length=4)  # type: ignore[attr-defined]
    pairs = np.array([[0, 1], [2, 3]])
    held = _swapped(rows, np.arange(4), pairs, np.array([0, 2, 1, 3]), +1)
    assert held.tolist() == [0, 2, 1, 3]
    assert _swapped(rows, held, pairs, np.array([0, 2, 1, 3]), +1).tolist() == held.tolist()
    assert _swapped(rows, held, pairs, np.array([0, 2, 1, 3]), -1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 300])
def test_near_pairs_are_near(num_classes: int) -> None:
    rows = plane(num_classes)
    pairs = near_pairs(Prototypes(rows))
    assert np.all(pairs[:, 0] < pairs[:, 1])
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert set(pairs.ravel().tolist()) == set(range(num_classes))
    exact = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.fill_diagonal(exact, np.inf)
    nearest = {(min(a, b), max(a, b)) for a, b in enumerate(exact.argmin(axis=1).tolist())}
    assert len(nearest & set(map(tuple, pairs.tolist()))) >= 0.9 * len(nearest)


def test_frequent_classes_get_codewords_far_apart() -> None:
    codebook = build("minrandom", 300, bits=20)
    counts = np.random.default_rng(0).permutation(300)
    symbols = codebook.to_array()

    def least(code: np.ndarray) -> float:
        return min(distance(code[a], code[b]) for a, b in combinations(np.argsort(-counts)[:16], 2))

    dealt = assign(codebook, "frequency", counts=counts).to_array()
    assert least(dealt) >= 8 > least(symbols)


def test_farthest_first_against_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codehead.codes.assignment.FREQUENT", 12)
    codebook = build("dense_random", 60, bits=16)
    symbols, counts = codebook.to_array(), np.random.default_rng(1).permutation(60)
    order = np.argsort(-counts)
    chosen = [int(order[0])]
    while len(chosen) < 60:
        apart = [
            min(distance(symbols[c], symbols[v]) for c in chosen[:12]) if v not in chosen else -1 for v in range(60)
        ]
        chosen.append(int(np.argmax(apart)))
    dealt = assign(codebook, "frequency", counts=counts)
    assert np.array_equal(dealt.to_array()[order], symbols[chosen])
    record = dealt.params["assignment"]
    for code, ids, name in ((symbols, order[:12], "before"), (symbols, chosen[:12], "after")):
        assert record[name] == min(distance(code[a], code[b]) for a, b in combinations(ids, 2))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("similar", {}, "unknown method 'similar'; did you mean 'similar_"),
        ("frequency", {}, "method 'frequency' needs counts=, 10 numbers"),
        ("frequency", {"counts": [1, 2]}, r"counts is int64 \(2,\); give 10 finite numbers"),
        ("frequency", {"counts": [np.nan] * 10}, "give 10 finite numbers"),
        ("similar_near", {}, "give prototypes="),
        ("similar_far", {"prototypes": np.eye(9)}, "prototypes has 9 rows for num_classes=10"),
        ("random", {"seed": -1}, "seed=-1 is not possible"),
        ("similar_far", {"prototypes": np.eye(10), "sweeps": -1}, "sweeps=-1 is not possible"),
    ],
)
def test_refusals(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        assign(build("minimal", 10), method, **options)


def test_an_implicit_code_has_no_order() -> None:
    with pytest.raises(CodebookError, match="rows of one_vs_all are never written down"):
        assign(build("one_vs_all", 10), "random")
