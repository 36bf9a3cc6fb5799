"""Discriminant ECOC: a column for every node of a tree over the classes, grown from data.

* decoc: O. Pujol, P. Radeva, J. Vitrià (2006), "Discriminant ECOC: A Heuristic Method for Application
  Dependent Design of Error Correcting Output Codes", IEEE TPAMI 28(6).
* forest_ecoc: S. Escalera, O. Pujol, P. Radeva (2007), "Boosted Landmarks of Contextual Descriptors and
  Forest-ECOC: A novel framework to detect and classify objects in cluttered scenes", Pattern Recognition
  Letters 28.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, final

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import fixed_length, register, whole_number
from codehead.codes.packing import Floats, Integers, Symbols
from codehead.codes.prototypes import Prototypes
from codehead.errors import CodebookError, ConfigurationError

MAX_CLASSES = 1024
"""The most classes for floating search: a tree may take V³ steps, a column of `ecoc_one` holds V² distances."""

MAX_SAMPLES = 4096
"""The most samples: their distances are held, 128 MiB."""

FOREST_TREES = 3
"""The default number of trees, as in the paper."""

LOOKED_AHEAD = 4
"""The most classes of a node for which it is checked whether it can still be split down to single classes."""

Members = tuple[int, ...]
"""The classes of a node, ascending."""


class Data(NamedTuple):
    """Squared distances (N, N) of samples, their classes (N,), ascending, and what a codebook records."""

    squared: Floats
    labels: Integers
    origin: dict[str, Any]

    def likeness(self, members: Members) -> Likeness:
        """The likeness of the samples of some classes."""
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
    """Split the classes in two for the most mutual information of data and side, recursively: V − 1 columns.

    A column has +1 for one side of its node (that of the first class), −1 for the other, 0 elsewhere. The data are
    `samples` (N, d) with class ids `labels` (N,), or `prototypes` as one sample per class.
    """
    remedy = "omit bits, or choose merged_decoc or merged_forest"
    fixed_length("decoc", num_classes, bits, num_classes - 1, remedy)
    data = _data("decoc", num_classes, prototypes, samples, labels)
    columns = _tree(num_classes, lambda members: best_partition(data.likeness(members)))
    return PackedCodebook.from_array(np.stack(columns, axis=1), design="decoc", params=data.origin)


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
    """The tree of decoc, and more trees that never split a node as an earlier one did: T(V − 1) columns.

    By default T = 3, or 1 for two classes, which can be split in only one way.
    """
    trees = (FOREST_TREES if num_classes > 2 else 1) if trees is None else whole_number("trees", trees, 1)
    remedy = "choose trees instead, or merged_forest, which takes any bits"
    fixed_length("forest_ecoc", num_classes, bits, trees * (num_classes - 1), remedy)
    data = _data("forest_ecoc", num_classes, prototypes, samples, labels)
    forest = _Forest(data)
    columns = [column for _ in range(trees) for column in _tree(num_classes, forest.split)]
    params = {**data.origin, "trees": trees}
    return PackedCodebook.from_array(np.stack(columns, axis=1), design="forest_ecoc", params=params)


def _data(design: str, num_classes: int, prototypes: Any, samples: Any, labels: Any) -> Data:
    if num_classes > MAX_CLASSES:
        message = f"{design} searches every node of a tree over the classes: up to V³ = {num_classes**3:.1e} steps and "
        message += f"V − 1 = {num_classes - 1:,} columns for num_classes={num_classes:,} (at most {MAX_CLASSES:,})"
        raise ConfigurationError(f"{message}; choose merged_decoc or merged_forest, of about log2 V columns per tree")
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
    by_class = Prototypes(vectors.rows(order))
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
    """Splits of nodes, none of them used twice."""

    def __init__(self, data: Data) -> None:
        # The partitions of a node that no tree has used yet, the best first.
        self._unused = cache(lambda members: ranked_partitions(data.likeness(members)))

    def split(self, members: Members) -> Partition:
        """The best partition of a node that no tree has used yet and whose sides can be split further."""
        left = self._unused(members)
        for place, partition in enumerate(left):
            if self._leads_on(members, partition):
                return left.pop(place)
        message = f"every partition of the classes {members[:5]} is in an earlier tree"
        raise CodebookError(f"trees: {message}; ask for fewer trees")

    def _can_be_split(self, members: Members) -> bool:
        """Whether a new tree can have this node; assumed for more than a few classes."""
        if len(members) == 1 or len(members) > LOOKED_AHEAD:
            return True
        return any(self._leads_on(members, partition) for partition in self._unused(members))

    def _leads_on(self, members: Members, partition: Partition) -> bool:
        """Whether a new tree can have both sides of a partition."""
        sides = (partition.side, ~partition.side)
        return all(self._can_be_split(tuple(np.array(members)[side].tolist())) for side in sides)


# The two sides of a set of classes that the data separate best: mutual information, and its floating search.
#
# * K. Torkkola (2003), "Feature Extraction by Non-Parametric Mutual Information Maximization", JMLR 3:
#   the quadratic mutual information of Parzen densities.
# * P. Pudil, J. Novovičová, J. Kittler (1994), "Floating search methods in feature selection".


GAIN = 1e-12
"""The least gain for leaving a side, on a scale where all confusions, or two equal samples, are 1: less is rounding."""

ALL_RANKED = 6
"""The most classes for which all partitions are ranked."""


class Partition(NamedTuple):
    """One side of a set of m classes as truth values (m,), the first class on it, and its information."""

    side: np.ndarray
    information: float


@final
@dataclass(frozen=True, eq=False)
class Likeness:
    """The similarity of the samples of classes: `kernel` (m, m), sums over pairs, and `sizes` (m,), samples."""

    kernel: Floats
    sizes: Floats

    @classmethod
    def of(cls, squared: Floats, labels: Integers) -> Likeness:
        """From squared distances (N, N) of samples of the classes `labels` (N,), ascending.

        The densities have Gaussian kernels whose standard deviation σ is half of the largest distance; the
        integral of two of them is a Gaussian of variance 2σ². Its constant factor is omitted, which
        changes no comparison.
        """
        width = squared.max() / 4 or 1.0
        values = np.exp(-squared / (4 * width))
        _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
        sums = np.add.reduceat(np.add.reduceat(values, first, axis=0), first, axis=1)
        return cls(sums, sizes.astype(np.float64))

    def information(self, within: Floats, across: Floats, size: Floats) -> Floats:
        """The quadratic mutual information of data and side, Σ_c ∫ (p(c, x) − P(c) p(x))² dx.

        For one side: `within`, the kernel summed over its pairs; `across`, over its pairs with all
        samples; `size`, its samples. The three terms are Torkkola's V_in + V_all − 2 V_btw.
        """
        total, samples = self.kernel.sum(), self.sizes.sum()
        share = size / samples
        inside = within + (total - 2 * across + within)
        overall = (share**2 + (1 - share) ** 2) * total
        between = share * across + (1 - share) * (total - across)
        return np.asarray((inside + overall - 2 * between) / samples**2)

    def of_side(self, side: np.ndarray) -> float:
        """The information of the partition with one side `side` (m,)."""
        within = self.kernel[np.ix_(side, side)].sum()
        return float(self.information(within, self.kernel[side].sum(), self.sizes[side].sum()))


class Sides(Protocol):
    """Sides that classes join and leave."""

    def moved(self, sign: int) -> Floats:
        """The value of the sides if each class joined (+1) or left (−1), in any shape; −∞ if it cannot."""

    def move(self, place: int, sign: int) -> None:
        """Let the class at a place of these values join or leave."""

    def taken(self) -> np.ndarray:
        """A copy of the current sides."""


BestSides = dict[int, tuple[float, np.ndarray]]
"""Number of classes on the sides → the value of the best sides found of this size, and these sides."""


def best_sides(sides: Sides, best: BestSides, most: int) -> BestSides:
    """Extend `best`, which holds at most the current sides, to up to `most` classes by floating search.

    The class with the largest gain joins a side; then, as long as that beats the best sides with one class fewer,
    the least needed class leaves.
    """
    size = max(best, default=0)
    least = max(size, 1)

    def step(values: Floats, sign: int) -> None:
        place = int(values.argmax())
        sides.move(place, sign)
        if size not in best or values.flat[place] > best[size][0]:
            best[size] = float(values.flat[place]), sides.taken()

    while size < most:
        size += 1
        step(sides.moved(1), 1)
        while size > least + 1:
            values = sides.moved(-1)
            if values.max() <= best[size - 1][0] + GAIN:
                break
            size -= 1
            step(values, -1)
    return best


@final
class _Side:
    """One side of a partition; every step takes time linear in the number of classes."""

    def __init__(self, likeness: Likeness) -> None:
        self._likeness = likeness
        self._to_all = likeness.kernel.sum(axis=1)
        self._to_own = np.diag(likeness.kernel)
        self._to_side = np.zeros(len(likeness.sizes))
        self._side = np.zeros(len(likeness.sizes), dtype=bool)

    def moved(self, sign: int) -> Floats:
        """The information (m,)."""
        weight, sizes = self._side.astype(np.float64), self._likeness.sizes
        within = weight @ self._to_side + 2 * sign * self._to_side + self._to_own
        across = self._to_all @ weight + sign * self._to_all
        information = self._likeness.information(within, across, sizes @ weight + sign * sizes)
        return np.where(self._side == (sign > 0), -np.inf, information)

    def move(self, place: int, sign: int) -> None:
        self._to_side += sign * self._likeness.kernel[place]
        self._side[place] = sign > 0

    def taken(self) -> np.ndarray:
        return self._side.copy()


def floating_search(likeness: Likeness) -> list[Partition]:
    """The best partition found for each size of one side, 1 … m − 1."""
    best = best_sides(_Side(likeness), {}, len(likeness.sizes) - 1)
    return [Partition(side, information) for _, (information, side) in sorted(best.items())]


def best_partition(likeness: Likeness) -> Partition:
    """The partition with the most information that floating search finds."""
    return _best(floating_search(likeness))


def ranked_partitions(likeness: Likeness) -> list[Partition]:
    """The best partition, then others by falling information, each once.

    For up to 6 classes, all partitions; for more, the best of each size and those that split off one class.
    """
    m = len(likeness.sizes)
    found = floating_search(likeness)
    if m <= ALL_RANKED:
        sides = (np.arange(1, 2**m - 1, 2)[:, None] >> np.arange(m)) & 1 == 1  # the first class is always up
        others = [Partition(side, likeness.of_side(side)) for side in sides]
    else:
        single = _Side(likeness).moved(1)
        others = [*found, *map(Partition, np.eye(m, dtype=bool), single.tolist())]
    others = sorted(map(_first_up, others), key=lambda partition: -partition.information)
    return list({partition.side.tobytes(): partition for partition in [_best(found), *others]}.values())


def _best(found: list[Partition]) -> Partition:
    return _first_up(max(found, key=lambda partition: partition.information))


def _first_up(partition: Partition) -> Partition:
    """The same partition, described by the side of the first class."""
    return partition if partition.side[0] else Partition(~partition.side, partition.information)
