"""Discriminant ECOC: a column for every node of a tree that data grow over the classes.

* decoc: O. Pujol, P. Radeva, J. Vitrià (2006), "Discriminant ECOC: A Heuristic Method for Application
  Dependent Design of Error Correcting Output Codes", IEEE TPAMI 28(6).
* forest_ecoc: S. Escalera, O. Pujol, P. Radeva (2007), "Boosted Landmarks of Contextual Descriptors and
  Forest-ECOC: A novel framework to detect and classify objects in cluttered scenes", Pattern Recognition
  Letters 28.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from codehead.codes.arrays import Floats, Integers, Symbols
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import fixed_length, register, whole_number
from codehead.codes.discriminant import Likeness, Partition, best_partition, ranked_partitions
from codehead.codes.prototypes import Prototypes
from codehead.errors import CodebookError, ConfigurationError

MAX_CLASSES = 1024
"""The most classes for which a tree is grown: floating search may take V³ steps."""

MAX_SAMPLES = 4096
"""The most samples: their distances are held, 128 MiB."""

FOREST_TREES = 3
"""The default number of trees, the paper's."""

LOOKED_AHEAD = 4
"""Up to so many classes it is found out whether a node can still be split down to single classes."""

Members = tuple[int, ...]
"""The classes of a node, ascending."""


class Data(NamedTuple):
    """Squared distances (N, N) of samples, their classes (N,), ascending, and what a codebook records."""

    squared: Floats
    labels: Integers
    origin: dict[str, Any]

    def likeness(self, members: Members) -> Likeness:
        """Of the samples of some classes."""
        chosen = np.flatnonzero(np.isin(self.labels, members))
        return Likeness.of(self.squared[np.ix_(chosen, chosen)], self.labels[chosen])


@register("decoc", good_columns=lambda num_classes, length: True, length=lambda num_classes: num_classes - 1)
def decoc(
    num_classes: int,
    bits: int | None,
    seed: int,
    *,
    prototypes: Any = None,
    samples: Any = None,
    labels: Any = None,
) -> Codebook:
    """Split the classes in two where data and side have most mutual information, and so on: V − 1 columns.

    A column has +1 for one side of its node (that of its first class), −1 for the other, 0 elsewhere. The data are
    `samples` (N, d) with class ids `labels` (N,), or `prototypes` as one sample per class.
    """
    remedy = "omit bits, or choose merged_decoc or merged_forest"
    length = fixed_length("decoc", num_classes, bits, num_classes - 1, remedy)
    data = _data("decoc", num_classes, prototypes, samples, labels)
    columns = _tree(num_classes, lambda members: best_partition(data.likeness(members)))
    return _codebook("decoc", columns, length, data.origin)


@register("forest_ecoc", good_columns=lambda num_classes, length: True)
def forest_ecoc(
    num_classes: int,
    bits: int | None,
    seed: int,
    *,
    prototypes: Any = None,
    samples: Any = None,
    labels: Any = None,
    trees: int | None = None,
) -> Codebook:
    """The tree of decoc, and others that never split a node as an earlier one did: T(V − 1) columns.

    By default T = 3, or 1 for two classes, which can be split in one way only.
    """
    trees = (FOREST_TREES if num_classes > 2 else 1) if trees is None else whole_number("trees", trees, 1)
    remedy = "choose trees instead, or merged_forest, which takes any bits"
    length = fixed_length("forest_ecoc", num_classes, bits, trees * (num_classes - 1), remedy)
    data = _data("forest_ecoc", num_classes, prototypes, samples, labels)
    forest = _Forest(data)
    columns = [column for _ in range(trees) for column in _tree(num_classes, forest.split)]
    return _codebook("forest_ecoc", columns, length, {**data.origin, "trees": trees})


def _data(design: str, num_classes: int, prototypes: Any, samples: Any, labels: Any) -> Data:
    if num_classes > MAX_CLASSES:
        message = f"{design} searches every node of a tree over the classes: up to V³ = {num_classes**3:.1e} steps and "
        message += f"V − 1 = {num_classes - 1:,} columns for num_classes={num_classes:,} (at most {MAX_CLASSES:,})"
        raise ConfigurationError(f"{message}; choose merged_decoc or merged_forest, of about log2 V columns a tree")
    if (samples is None) != (labels is None) or (samples is not None and prototypes is not None):
        message = f"design {design!r} learns from prototypes=, one vector per class, or from samples= and labels="
        raise ConfigurationError(f"{message}; give either")
    if samples is None:
        vectors = Prototypes.of(design, prototypes, num_classes)
        return Data(vectors.squared_distances(), np.arange(num_classes), {"prototypes": vectors.origin()})
    vectors = Prototypes.read(samples, "samples")
    numbers = np.asarray(labels)
    _check_samples(vectors, numbers, num_classes)
    order = np.argsort(numbers, kind="stable")
    by_class = Prototypes(vectors.rows(order), "samples")
    return Data(by_class.squared_distances(), numbers[order], {"samples": by_class.origin()})


def _check_samples(vectors: Prototypes, labels: np.ndarray, num_classes: int) -> None:
    count = vectors.shape[0]
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigurationError(f"labels is {labels.dtype} {labels.shape}; give {count} class ids, one per sample")
    missing = np.setdiff1d(np.arange(num_classes), labels)
    if len(missing) or len(np.unique(labels)) > num_classes:
        message = f"labels has no sample of class {missing[0]}" if len(missing) else "labels has unknown classes"
        raise ConfigurationError(f"{message}; every class from 0 to {num_classes - 1} needs one, and no other")
    if count > MAX_SAMPLES:
        message = f"samples has {count:,} rows, whose pairs would take {8 * count**2 / 2**30:.1f} GiB"
        raise ConfigurationError(f"{message}; give at most {MAX_SAMPLES:,}, or class means as prototypes=")


def _tree(num_classes: int, split: Callable[[Members], Partition]) -> list[Symbols]:
    """The columns (V,) of the nodes of a tree, each before those below it."""
    columns = []
    nodes = [tuple(range(num_classes))]
    while nodes:
        members = nodes.pop()
        if len(members) == 1:
            continue
        side = split(members).side
        column = np.zeros(num_classes, dtype=np.int8)
        column[list(members)] = np.where(side, 1, -1)
        columns.append(column)
        nodes += [tuple(np.flatnonzero(column == symbol).tolist()) for symbol in (-1, 1)]
    return columns


class _Forest:
    """Splits of nodes, none of them twice."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._unused: dict[Members, list[Partition]] = {}

    def split(self, members: Members) -> Partition:
        """The best partition of a node that no tree has used yet and after which all can be split further."""
        left = self._left(members)
        for place, partition in enumerate(left):
            if all(self._can_be_split(part) for part in _parts(members, partition)):
                return left.pop(place)
        message = f"every partition of the classes {members[:5]} is in an earlier tree"
        raise CodebookError(f"trees: {message}; ask for fewer trees")

    def _left(self, members: Members) -> list[Partition]:
        """The partitions of a node that no tree has used yet, the best first."""
        if members not in self._unused:
            self._unused[members] = ranked_partitions(self._data.likeness(members))
        return self._unused[members]

    def _can_be_split(self, members: Members) -> bool:
        """Whether a new tree can have this node; of more than a few classes it is taken for granted."""
        if len(members) == 1 or len(members) > LOOKED_AHEAD:
            return True
        return any(
            all(self._can_be_split(part) for part in _parts(members, partition)) for partition in self._left(members)
        )


def _parts(members: Members, partition: Partition) -> list[Members]:
    return [tuple(m for m, on in zip(members, partition.side, strict=True) if on == side) for side in (True, False)]


def _codebook(design: str, columns: list[Symbols], length: int, params: dict[str, Any]) -> Codebook:
    symbols = np.stack(columns, axis=1)
    assert symbols.shape[1] == length
    return PackedCodebook.from_array(symbols, design=design, params=params)
