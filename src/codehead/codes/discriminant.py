"""Two sides of a set of classes that the data tell apart best: mutual information, and its floating search.

* K. Torkkola (2003), "Feature Extraction by Non-Parametric Mutual Information Maximization", JMLR 3:
  the quadratic mutual information of Parzen densities.
* P. Pudil, J. Novovičová, J. Kittler (1994), "Floating search methods in feature selection".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from codehead.codes.arrays import Floats, Integers

GAIN = 1e-12
"""What leaving a side has to gain, on a scale where two samples at one place have 1: less is rounding."""

ALL_RANKED = 6
"""Up to so many classes all partitions are ranked."""


class Partition(NamedTuple):
    """One side of a set of m classes as truth values (m,), the first class on it, and its information."""

    side: np.ndarray
    information: float


@final
@dataclass(frozen=True, eq=False)
class Likeness:
    """How alike the samples of classes are: `kernel` (m, m), sums over pairs, and `sizes` (m,), samples."""

    kernel: Floats
    sizes: Floats

    @classmethod
    def of(cls, squared: Floats, labels: Integers) -> Likeness:
        """From squared distances (N, N) of samples of the classes `labels` (N,), ascending.

        The densities have Gaussian kernels whose standard deviation σ is half of the largest distance; the
        integral of two of them is a Gaussian of variance 2σ². Its constant factor is left out, which
        changes no comparison.
        """
        width = squared.max() / 4 or 1.0
        values = np.exp(-squared / (4 * width))
        first = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
        sums = np.add.reduceat(np.add.reduceat(values, first, axis=0), first, axis=1)
        return cls(sums, np.diff(np.r_[first, len(labels)]).astype(np.float64))

    def information(self, within: Floats, across: Floats, size: Floats) -> Floats:
        """The quadratic mutual information of data and side, Σ_c ∫ (p(c, x) − P(c) p(x))² dx.

        For one side: `within`, the kernel summed over its pairs; `across`, over pairs of it and all;
        `size`, its samples. The three terms are Torkkola's V_in + V_all − 2 V_btw.
        """
        total, samples = self.kernel.sum(), self.sizes.sum()
        share = size / samples
        inside = within + (total - 2 * across + within)
        overall = (share**2 + (1 - share) ** 2) * total
        between = share * across + (1 - share) * (total - across)
        return np.asarray((inside + overall - 2 * between) / samples**2)

    def of_side(self, side: np.ndarray) -> float:
        """The information of one partition, whose one side is `side` (m,)."""
        within = self.kernel[np.ix_(side, side)].sum()
        return float(self.information(within, self.kernel[side].sum(), self.sizes[side].sum()))


class _Search:
    """A side that classes join and leave; every step takes time linear in their number."""

    def __init__(self, likeness: Likeness) -> None:
        self._likeness = likeness
        self._to_all = likeness.kernel.sum(axis=1)
        self._to_own = np.diag(likeness.kernel)
        self._to_side = np.zeros(len(likeness.sizes))
        self.side = np.zeros(len(likeness.sizes), dtype=bool)

    def turned(self) -> Floats:
        """The information (m,) if each class in turn changed sides."""
        weight = self.side.astype(np.float64)
        sign = 1 - 2 * weight
        within = weight @ self._to_side + 2 * sign * self._to_side + self._to_own
        across = self._to_all @ weight + sign * self._to_all
        return self._likeness.information(within, across, self._likeness.sizes @ weight + sign * self._likeness.sizes)

    def turn(self, number: int) -> None:
        """Let one class change sides."""
        sign = -1.0 if self.side[number] else 1.0
        self._to_side += sign * self._likeness.kernel[number]
        self.side[number] ^= True


def floating_search(likeness: Likeness) -> list[Partition]:
    """The best partition found for each size of one side, 1 … m − 1, by sequential forward floating search.

    The class that gains most joins the side; then, as long as that beats the best side of the smaller
    size, the class that is least needed leaves it.
    """
    search, size = _Search(likeness), 0
    best: dict[int, Partition] = {}
    while size < len(likeness.sizes) - 1:
        size += 1
        values = np.where(search.side, -np.inf, search.turned())
        _step(search, values, best, size)
        while size > 2:
            values = np.where(search.side, search.turned(), -np.inf)
            if values.max() <= best[size - 1].information + GAIN:
                break
            size -= 1
            _step(search, values, best, size)
    return [best[size] for size in sorted(best)]


def _step(search: _Search, values: Floats, best: dict[int, Partition], size: int) -> None:
    """Turn the class with the largest of `values` (m,), and keep the side if it is the best of its `size`."""
    chosen = int(values.argmax())
    search.turn(chosen)
    if size not in best or values[chosen] > best[size].information:
        best[size] = Partition(search.side.copy(), float(values[chosen]))


def best_partition(likeness: Likeness) -> Partition:
    """The partition with the most information that floating search finds."""
    return _best(floating_search(likeness))


def ranked_partitions(likeness: Likeness) -> list[Partition]:
    """The best partition, then others by falling information, each once.

    All there are of up to 6 classes; of more, the best of each size and those that split off one class.
    """
    m = len(likeness.sizes)
    found = floating_search(likeness)
    if m <= ALL_RANKED:
        sides = (np.arange(1, 2**m - 1, 2)[:, None] >> np.arange(m)) & 1 == 1  # the first class is always up
        others = [Partition(side, likeness.of_side(side)) for side in sides]
    else:
        single = _Search(likeness).turned()
        others = [*found, *map(Partition, np.eye(m, dtype=bool), single.tolist())]
    others = sorted(map(_first_up, others), key=lambda partition: -partition.information)
    return list({partition.side.tobytes(): partition for partition in [_best(found), *others]}.values())


def _best(found: list[Partition]) -> Partition:
    return _first_up(max(found, key=lambda partition: partition.information))


def _first_up(partition: Partition) -> Partition:
    """The same partition, told by the side of the first class."""
    return partition if partition.side[0] else Partition(~partition.side, partition.information)
