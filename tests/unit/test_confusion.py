"""Confusions: the same counts from every form, what is refused, pairs and column errors by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codehead.codes import Confusion
from codehead.errors import ConfigurationError

MATRIX = np.array([[50, 4, 0], [6, 30, 0], [1, 0, 9]])


def dense(confusion: Confusion) -> np.ndarray:
    matrix = np.zeros((confusion.num_classes,) * 2)
    matrix[confusion.labels, confusion.choices] = confusion.counts
    return matrix


def sparse(matrix: np.ndarray) -> Any:
    """What a matrix of scipy.sparse shows of itself, an entry stored in two parts and an explicit 0 included."""
    rows, columns = np.nonzero(matrix + np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]]))
    values = matrix[rows, columns].astype(float)
    parts = np.r_[rows, rows[0]], np.r_[columns, columns[0]], np.r_[values, 1.0]
    parts[2][0] -= 1
    entries = SimpleNamespace(row=parts[0], col=parts[1], data=parts[2], shape=matrix.shape)
    return SimpleNamespace(tocoo=lambda: entries)


def test_every_form_gives_the_same_counts(tmp_path: Path) -> None:
    labels, choices = np.nonzero(MATRIX)
    np.save(tmp_path / "counts.npy", MATRIX)
    triple = labels[::-1], choices[::-1], MATRIX[labels, choices][::-1]
    Confusion.of(triple, 3).save(tmp_path / "counts.npz")
    forms = [MATRIX, MATRIX.tolist(), triple, sparse(MATRIX), tmp_path / "counts.npy", str(tmp_path / "counts.npz")]
    origins = []
    for form in forms:
        confusion = Confusion.of(form, 3)
        assert np.array_equal(dense(confusion), MATRIX)
        origins.append(confusion.origin())
    assert all(origin == origins[0] for origin in origins)
    assert origins[0]["total"] == 100
    assert Confusion.of(MATRIX.T, 3).origin() != origins[0]
    assert np.array_equal(dense(Confusion.of(Confusion.of(MATRIX, 3), 3)), MATRIX)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_ids_of_any_whole_type_stay_whole(kind: Any) -> None:
    labels, choices = np.array([0, 2, 0], kind), np.array([1, 0, 1], kind)
    found = Confusion.of((labels, choices, np.ones(3)), 3)
    assert found.labels.dtype == found.choices.dtype == np.int64
    assert found.pairs()[0].tolist() == [[0, 1], [0, 2]]


def test_error_and_pairs() -> None:
    confusion = Confusion.of(MATRIX, 3)
    assert confusion.error == pytest.approx(0.11)
    pairs, mass = confusion.pairs()
    assert (pairs.tolist(), mass.tolist()) == ([[0, 1], [0, 2]], [10, 1])


def test_shares_are_mixed() -> None:
    other = Confusion.of(np.diag([10, 10, 20]), 3)
    mixed = Confusion.of(MATRIX, 3).mixed(other, 0.25)
    assert np.allclose(dense(mixed), 0.25 * MATRIX / 100 + 0.75 * np.diag([10, 10, 20]) / 40)


def test_column_errors_by_hand() -> None:
    symbols = np.array([[1, 1, 0], [-1, 0, 0], [1, -1, 0]], dtype=np.int8)
    wrong, seen = np.array([10, 1, 0]), np.array([100, 60, 0])
    average = 11 / 160
    expected = (wrong + average) / (seen + 1)
    assert Confusion.of(MATRIX, 3).column_errors(symbols) == pytest.approx(expected)
    assert expected[2] == average


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.ones((2, 3)), r"confusion has the shape \(2, 3\)"),
        (np.ones((4, 4)), "confusion is of 4 classes for num_classes=3"),
        (np.zeros((3, 3)), "not all 0"),
        (-MATRIX, "counts of at least 0"),
        (MATRIX * np.nan, "finite counts"),
        (([0, 3], [1, 1], [1, 1]), "the label 3; classes go from 0 to 2"),
        (([0], [-1], [1]), "the choice -1"),
        (([0.5], [1], [1]), "the label 0.5"),
        (([0, 1], [1], [1]), "three arrays of one length"),
        ("nowhere.npz", "there is no such file"),
        ("counts.csv", "read from .npy and .npz files"),
    ],
)
def test_what_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Confusion.of(source, 3)


def test_other_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", matrix=MATRIX)
    with pytest.raises(ConfigurationError, match="holds no confusions"):
        Confusion.of(tmp_path / "other.npz", 3)
    with pytest.raises(ConfigurationError, match=r"confusions are written to \.npz files"):
        Confusion.of(MATRIX, 3).save(tmp_path / "counts.json")
