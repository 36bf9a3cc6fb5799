"""Dichotomies made to tell one pair of classes apart: which others take the side of either.

* O. Pujol, S. Escalera, P. Radeva (2008), "An incremental node embedding technique for error correcting output
  codes", Pattern Recognition 41: sub-partitions by floating search.
* P. Pudil, J. Novovičová, J. Kittler (1994), "Floating search methods in feature selection".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import numpy as np

from codehead.codes.arrays import Floats, Integers, Symbols
from codehead.codes.prototypes import Prototypes
from codehead.errors import ConfigurationError

MAX_CLASSES = 1024
"""The most classes for floating search, which holds V² distances and takes V² steps a column and more."""

GAIN = 1e-12
"""What leaving a side has to gain, as a share of all confusions: less is rounding."""


class SubPartitions(ABC):
    """A way to make columns (V,) over {−1, 0, +1} that tell a pair of classes apart."""

    @abstractmethod
    def __init__(self, vectors: Prototypes) -> None: ...

    @abstractmethod
    def columns(self, pair: Integers, pairs: Integers, mass: Floats) -> Iterator[Symbols]:
        """Columns with +1 for the first class of `pair` (2,) and −1 for the second, the best first.

        `mass` (p,) is how often the classes of `pairs` (p, 2) are confused.
        """

    @abstractmethod
    def resolved(self, column: Symbols, pair: Integers, pairs: Integers) -> np.ndarray:
        """Which of `pairs` (p, 2) a column that was made for `pair` is made for: truth values (p,)."""


@final
class Floating(SubPartitions):
    """The two classes, and those that make the confusions between the sides many and the sides stay compact.

    The value of two sides is the confusions between them per class, times d / (d + s₊ + s₋): d is the squared
    distance of the pair, s₊ and s₋ are the variances of the sides. A class that is seldom confused with the other side,
    or lies far from its own, therefore stays out. Starting from the pair, the class that gains most joins a side; then,
    as long as that beats the best sides of the smaller number of classes, the one least needed leaves.
    """

    def __init__(self, vectors: Prototypes) -> None:
        num_classes = vectors.shape[0]
        if num_classes > MAX_CLASSES:
            message = f"partition='floating' searches V² steps for every column: at most {MAX_CLASSES:,} classes"
            raise ConfigurationError(f"{message}, not {num_classes:,}; choose partition='poles'")
        self._squared = vectors.squared_distances()

    def columns(self, pair: Integers, pairs: Integers, mass: Floats) -> Iterator[Symbols]:
        confused = np.zeros(self._squared.shape)
        confused[pairs[:, 0], pairs[:, 1]] = confused[pairs[:, 1], pairs[:, 0]] = mass / mass.sum()
        yield from _search(_Sides(self._squared, confused, pair), pair)

    def resolved(self, column: Symbols, pair: Integers, pairs: Integers) -> np.ndarray:
        return np.asarray(column[pairs[:, 0]] * column[pairs[:, 1]] < 0)


@final
class Poles(SubPartitions):
    """All classes, each on the side of the nearer of the two prototypes: near-linear in V."""

    def __init__(self, vectors: Prototypes) -> None:
        self._vectors = vectors

    def columns(self, pair: Integers, pairs: Integers, mass: Floats) -> Iterator[Symbols]:
        first, second = self._vectors.rows(pair)
        direction = first - second
        if not direction.any():
            return
        middle = direction @ (first + second) / 2
        parts = [chunk @ direction >= middle for _, chunk in self._vectors.chunks()]
        column = np.where(np.concatenate(parts), 1, -1).astype(np.int8)
        column[pair] = 1, -1  # whatever rounding says
        yield column

    def resolved(self, column: Symbols, pair: Integers, pairs: Integers) -> np.ndarray:
        return np.asarray((pairs == pair).all(axis=1))


PARTITIONS: dict[str, type[SubPartitions]] = {"floating": Floating, "poles": Poles}


class _Sides:
    """Two sides that classes join and leave; every step takes time linear in their number.

    Everything about sides is kept in the order +1, −1: sums of squared distances and of confusions to every class are
    (2, V).
    """

    def __init__(self, squared: Floats, confused: Floats, pair: Integers) -> None:
        self._squared, self._confused = squared, confused
        self._apart = float(squared[pair[0], pair[1]])
        self.member = np.zeros((2, len(squared)), dtype=bool)
        self._distance, self._mass = np.zeros((2, 2, len(squared)))
        for side in (0, 1):
            self.turn(side, int(pair[side]), 1)

    def turn(self, side: int, number: int, sign: int) -> None:
        """Let a class join (+1) or leave (−1) a side."""
        self.member[side, number] = sign > 0
        self._distance[side] += sign * self._squared[number]
        self._mass[side] += sign * self._confused[number]

    def value(self) -> float:
        """What the sides are worth as they are."""
        size, within, between = self._sums()
        return float(self._worth(np.array([between]), size.sum(), (within / size**2).sum() / 2)[0])

    def moved(self, sign: int) -> Floats:
        """The value (2, V) if each class joined (+1) or left (−1) each side."""
        size, within, between = self._sums()
        own_size = np.maximum(size + sign, 1)[:, None]  # the last class of a side never leaves it
        own = (within[:, None] + 2 * sign * self._distance) / own_size**2
        other = (within / size**2)[::-1, None]
        return self._worth(between + sign * self._mass[::-1], size.sum() + sign, (own + other) / 2)

    def _sums(self) -> tuple[Floats, Floats, float]:
        """Sizes of the sides and sums of squared distances inside of them (2,), and the confusions between them."""
        weight = self.member.astype(np.float64)
        return weight.sum(axis=1), (weight * self._distance).sum(axis=1), float(weight[0] @ self._mass[1])

    def _worth(self, between: Floats, size: float, variances: Floats) -> Floats:
        total = self._apart + variances
        share = np.divide(self._apart, total, out=np.ones(np.broadcast(between, total).shape), where=total > 0)
        return np.asarray(between / size * share)

    def column(self) -> Symbols:
        """The sides as symbols (V,)."""
        return self.member[0].astype(np.int8) - self.member[1].astype(np.int8)


def _search(sides: _Sides, pair: Integers) -> list[Symbols]:
    """The best column found for every number of classes, the best first, among equals the one of fewer classes."""
    num_classes, size = sides.member.shape[1], 2
    fixed = np.isin(np.arange(num_classes), pair)
    best = {2: (sides.value(), sides.column())}
    while size < num_classes:
        size += 1
        _step(sides, np.where(sides.member.any(axis=0), -np.inf, sides.moved(1)), 1, best, size)
        while size > 3:
            values = np.where(sides.member & ~fixed, sides.moved(-1), -np.inf)
            if values.max() <= best[size - 1][0] + GAIN:
                break
            size -= 1
            _step(sides, values, -1, best, size)
    ranked = sorted(best, key=lambda size: (-best[size][0], size))
    return [best[size][1] for size in ranked]


def _step(sides: _Sides, values: Floats, sign: int, best: dict[int, tuple[float, Symbols]], size: int) -> None:
    """Make the move with the largest of `values` (2, V), and keep the sides if they are the best of their `size`."""
    side, number = divmod(int(values.argmax()), values.shape[1])
    sides.turn(side, number, sign)
    value = float(values[side, number])
    if size not in best or value > best[size][0]:
        best[size] = value, sides.column()
