"""Confusions: sparse counts of how often each class was the label and each the choice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from codehead.boundaries import read_array
from codehead.codes.codebook import Codebook
from codehead.codes.packing import Floats, Integers, Symbols
from codehead.errors import ConfigurationError

REMEDY = "give counts (V, V), label by choice, a sparse matrix, (labels, choices, counts), or a .npy or .npz file"


@final
@dataclass(frozen=True, eq=False)
class Confusion:
    """How often class `labels[k]` was answered with `choices[k]`: `counts[k]` > 0, each pair once, ascending.

    Correct answers are counted, too: without them there is no error rate.
    """

    num_classes: int
    labels: Integers
    choices: Integers
    counts: Floats

    @classmethod
    def of(cls, source: Any, num_classes: int, name: str = "confusion") -> Confusion:
        """From a Confusion, an array (V, V), a matrix of scipy.sparse, (labels, choices, counts), or a file.

        Files are `.npy` with an array (V, V), or `.npz` from `save`. ConfigurationError, which names the argument
        `name`, if the counts are not finite, negative or all 0, or of other classes than 0 … V − 1.
        """
        if isinstance(source, Confusion):
            source = source.labels, source.choices, source.counts, source.num_classes
        labels, choices, counts, classes = _entries(source, num_classes, name)
        if classes != num_classes:
            raise ConfigurationError(f"{name} is of {classes} classes for num_classes={num_classes}; {REMEDY}")
        if not (labels.shape == choices.shape == counts.shape and labels.ndim == 1):
            message = f"{name} has labels {labels.shape}, choices {choices.shape} and counts {counts.shape}"
            raise ConfigurationError(f"{message}; give three arrays of one length")
        for what, ids in (("label", labels), ("choice", choices)):
            wrong = ids[(ids < 0) | (ids >= num_classes)] if ids.dtype.kind in "iu" else ids[:1]
            if len(wrong):
                raise ConfigurationError(f"{name} has the {what} {wrong[0]}; classes go from 0 to {num_classes - 1}")
        if counts.dtype.kind not in "fiub" or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
            raise ConfigurationError(f"{name} must hold finite counts of at least 0, not all 0; {REMEDY}")
        return cls._merged(num_classes, labels, choices, counts)

    @classmethod
    def _merged(cls, num_classes: int, labels: np.ndarray, choices: np.ndarray, counts: np.ndarray) -> Confusion:
        """Add up the counts of equal pairs, and drop those of 0."""
        keys, places = np.unique(labels.astype(np.int64) * num_classes + choices.astype(np.int64), return_inverse=True)
        sums = np.bincount(places.reshape(-1), counts, minlength=len(keys)).astype(np.float64)
        keys, sums = keys[sums > 0], sums[sums > 0]
        return cls(num_classes, keys // num_classes, keys % num_classes, sums)

    @property
    def total(self) -> float:
        """The sum of all counts, correct answers included."""
        return float(self.counts.sum())

    @property
    def error(self) -> float:
        """The share of wrong answers."""
        return float(self.counts[self.labels != self.choices].sum()) / self.total

    def mixed(self, other: Confusion, weight: float) -> Confusion:
        """`weight` times the shares of these counts and 1 − `weight` times those of another."""
        return Confusion._merged(
            self.num_classes,
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.choices, other.choices]),
            np.concatenate([weight * self.counts / self.total, (1 - weight) * other.counts / other.total]),
        )

    def pairs(self) -> tuple[Integers, Floats]:
        """Pairs (p, 2) of different classes, ascending, and how often either was taken for the other (p,)."""
        wrong = self.labels != self.choices
        ends = np.sort(np.stack([self.labels[wrong], self.choices[wrong]], axis=1), axis=1)
        both = Confusion._merged(self.num_classes, ends[:, 0], ends[:, 1], self.counts[wrong])
        return np.stack([both.labels, both.choices], axis=1), both.counts

    def column_errors(self, symbols: Symbols) -> Floats:
        """Of the counts whose label and choice are both non-zero in a column, the share on different sides: (n,).

        An estimate of the error rates of dichotomizers that were not measured. One count with the average error
        rate of the columns is added to both sums, so that a column without counts gets the average.
        """
        sums = np.empty((symbols.shape[1], 2))
        for number, column in enumerate(symbols.T):
            agreement = column[self.labels] * column[self.choices]
            sums[number] = self.counts[agreement < 0].sum(), self.counts[agreement != 0].sum()
        wrong, seen = sums.T
        average = wrong.sum() / (seen.sum() or 1.0)
        return np.asarray((wrong + average) / (seen + 1))

    def origin(self) -> dict[str, Any]:
        """What a codebook records: the number of entries, their sum, and SHA-256 (hex) of all of them."""
        digest = hashlib.sha256()
        for part, kind in ((self.labels, "<i8"), (self.choices, "<i8"), (self.counts, "<f8")):
            digest.update(np.ascontiguousarray(part, dtype=kind).data)
        return {"entries": len(self.counts), "total": self.total, "sha256": digest.hexdigest()}

    def save(self, path: str | Path) -> None:
        """Write a .npz file, which `of` reads."""
        if Path(path).suffix != ".npz":
            raise ConfigurationError(f"path={str(path)!r}: confusions are written to .npz files")
        classes = np.array(self.num_classes)
        np.savez_compressed(path, num_classes=classes, labels=self.labels, choices=self.choices, counts=self.counts)


def _entries(source: Any, num_classes: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Labels, choices, counts, and the number of classes."""
    if isinstance(source, (str, Path)):
        readers: dict[str, Callable[[Path], Any]] = {".npy": partial(np.load, allow_pickle=False), ".npz": _saved}
        source = read_array(name, Path(source), readers, "confusions", f"holds no confusions ({{error}}); {REMEDY}")
    if hasattr(source, "tocoo"):  # scipy.sparse, which is not needed for anything else
        sparse = source.tocoo()
        source = sparse.row, sparse.col, sparse.data, _one_size(sparse.shape, name)
    if isinstance(source, tuple) and len(source) in (3, 4):
        labels, choices, counts = map(np.asarray, source[:3])
        return labels, choices, counts, int(source[3]) if len(source) == 4 else num_classes
    matrix = np.asarray(source)
    classes = _one_size(matrix.shape, name)
    labels, choices = np.nonzero(matrix)
    return labels, choices, matrix[labels, choices], classes


def _one_size(shape: tuple[int, ...], name: str) -> int:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ConfigurationError(f"{name} has the shape {shape}; {REMEDY}")
    return int(shape[0])


def _saved(path: Path) -> tuple[np.ndarray, ...]:
    """The entries in a file that `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return tuple(file[key] for key in ("labels", "choices", "counts", "num_classes"))


# The confusions of a growing code: counted once, or measured with every new column.


class Evaluation(NamedTuple):
    """The results of training and validating with a codebook.

    `validation` and `training` are confusions in any form that `Confusion.of` takes, on held-out data and on training
    data; without `training`, `validation` counts alone. `column_errors` (n,) are the error rates of the dichotomizers;
    if they are not given, they are estimated from the confusions.
    """

    validation: Any
    training: Any = None
    column_errors: Any = None


class Measured(NamedTuple):
    """Which classes a code confuses: the pairs (p, 2) of different classes, and how often they are confused (p,)."""

    confusion: Confusion
    pairs: Integers
    mass: Floats
    error: float  # of all answers
    rates: Floats | None = None  # error rates (n,) of the columns, if they were measured

    @classmethod
    def counted(cls, confusion: Confusion) -> Measured:
        """By fixed counts."""
        pairs, mass = confusion.pairs()
        return cls(confusion, pairs, mass, float(mass.sum()) / confusion.total)

    def without(self, resolved: np.ndarray) -> Measured:
        """The same, less the confusions of the pairs that are true in `resolved` (p,)."""
        mass = np.where(resolved, 0.0, self.mass)
        return self._replace(mass=mass, error=float(mass.sum()) / self.confusion.total)

    def column_errors(self, symbols: Symbols) -> Floats:
        """The error rates (n,) of the columns of the code (V, n), estimated unless they were measured."""
        return self.confusion.column_errors(symbols) if self.rates is None else self.rates


def evaluated(evaluate: Callable[[Codebook], Any], weight: float, codebook: Codebook) -> Measured:
    """By a callback: the shares of its confusions, mixed as `weight` · validation + (1 − `weight`) · training."""
    found = evaluate(codebook)
    found = found if isinstance(found, Evaluation) else Evaluation(found)
    mixed = Confusion.of(found.validation, codebook.num_classes, "the validation of evaluate()")
    if found.training is not None:
        training = Confusion.of(found.training, codebook.num_classes, "the training of evaluate()")
        mixed = mixed.mixed(training, weight)
    rates = None if found.column_errors is None else _rates(found.column_errors, codebook.length)
    return Measured(mixed, *mixed.pairs(), mixed.error, rates)


def _rates(errors: Any, length: int) -> Floats:
    rates = np.asarray(errors, dtype=np.float64)
    if rates.shape != (length,) or not ((rates >= 0) & (rates <= 1)).all():
        message = f"evaluate() returned column_errors {rates.shape} for a code of {length} columns"
        raise ConfigurationError(f"{message}; give one error rate from 0 to 1 for each")
    return rates
