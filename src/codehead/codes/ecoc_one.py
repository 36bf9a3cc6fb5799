"""ECOC-ONE: a code that grows by dichotomies that separate its most confused classes.

* S. Escalera, O. Pujol, P. Radeva (2006), "ECOC-ONE: A novel coding and decoding strategy", ICPR 18.
* O. Pujol, S. Escalera, P. Radeva (2008), "An incremental node embedding technique for error correcting output
  codes", Pattern Recognition 41.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook, enough_binary_columns
from codehead.codes.confusion import Confusion, Measured, evaluated
from codehead.codes.decoc import MAX_CLASSES, best_sides
from codehead.codes.design import DESIGNS, build, check_size, minimal_length, register
from codehead.codes.files import load
from codehead.codes.packing import Floats, Integers, Symbols
from codehead.codes.prototypes import Prototypes
from codehead.errors import ConfigurationError
from codehead.registry import unknown

VALIDATION_SHARE = 0.15
"""The share of the training data that `evaluate` should hold out, as in the paper."""

MIN_ERROR = 1e-3
"""The least error rate counted for a column: a smaller one, seen on few samples, would outweigh all other columns."""

Measure = Callable[[Codebook], Measured]


@register("ecoc_one", good_columns=enough_binary_columns)
def ecoc_one(
    num_classes: int,
    bits: int | None,
    seed: int,
    *,
    prototypes: Any = None,
    confusion: Any = None,
    evaluate: Callable[[Codebook], Any] | None = None,
    start: str | Path | Codebook | None = None,
    partition: str | None = None,
    validation_weight: float = 0.5,
    stop_error: float = 0.05,
) -> Codebook:
    """The columns of `start`, then one at a time for the two classes confused most often.

    Columns are added until the error rate is below `stop_error`, there are `bits` columns (by default ⌈log2 V⌉ more
    than at the start), or no confused pair allows a new column.

    Args:
        num_classes: V.
        bits: the most columns n.
        seed: of a `start` that draws at random.
        prototypes: one vector per class, (V, d), used to search for sub-partitions.
        confusion: how often each class was taken for each other, as `Confusion.of` reads it; confusions that a column
            was made for then count as resolved.
        evaluate: instead, a function that trains and validates with a codebook and returns an `Evaluation`; it is
            called for the start and after every column.
        start: a design, a codebook or its file; by default decoc, above 1,024 classes merged_decoc.
        partition: "floating", a sub-partition of the classes by floating search, or "poles", all classes by the
            nearer of the pair's prototypes; by default "floating" up to 1,024 classes, "poles" above.
        validation_weight: w, the weight of the validation in w · validation + (1 − w) · training.
        stop_error: ε.

    `params["column_weights"]` holds ½ ln((1 − e) / e) for every column with error rate e; see `column_weights`.

    """
    measure, origin = _source(num_classes, confusion, evaluate, _share("validation_weight", validation_weight))
    stop_error = _share("stop_error", stop_error)
    vectors = Prototypes.of("ecoc_one", prototypes, num_classes)
    name = partition if partition is not None else ("floating" if num_classes <= MAX_CLASSES else "poles")
    if name not in PARTITIONS:
        raise unknown("partition", name, PARTITIONS)
    partitions = PARTITIONS[name](vectors)
    first = _start(num_classes, seed, start, prototypes)
    limit = _limit(first, bits)
    symbols, record = _grown(first, limit, stop_error, measure, partitions, evaluate is None)
    params = {"prototypes": vectors.origin(), "partition": name, "confusion": origin, "stop_error": stop_error}
    begun = {"design": first.design, "length": first.length, "checksum": first.checksum}
    return _codebook(symbols, first.seed, {**params, "start": begun, **record})


def error_weights(errors: Any) -> Floats:
    """½ ln((1 − e) / e) for the error rates e (n,) of columns, clipped to 0.001 … ½.

    A column that errs half of the time carries no information: its weight is 0.
    """
    rates = np.clip(np.asarray(errors, dtype=np.float64), MIN_ERROR, 0.5)
    return np.asarray(np.log((1 - rates) / rates) / 2)


def column_weights(codebook: Codebook) -> Floats:
    """The weight of each column of a codebook (n,): 1 where none is recorded.

    To use them with decoders that depend on the size of bit logits, multiply the bit logits `(…, n)` by them.
    """
    recorded = codebook.params.get("column_weights", [])
    return np.concatenate([np.asarray(recorded, dtype=np.float64), np.ones(codebook.length - len(recorded))])


def _source(
    num_classes: int, confusion: Any, evaluate: Callable[[Codebook], Any] | None, weight: float
) -> tuple[Measure, dict[str, Any]]:
    """What measures the confusions of a code, and what a codebook records about it."""
    if (confusion is None) == (evaluate is None):
        raise ConfigurationError(
            "design 'ecoc_one' adds columns where classes are confused: give it either confusion=, how often each "
            "class was taken for each, or evaluate=, a function that trains with a codebook and measures that"
        )
    if evaluate is None:
        counts = Confusion.of(confusion, num_classes)
        return lambda codebook: Measured.counted(counts), counts.origin()
    if not callable(evaluate):
        raise ConfigurationError(f"evaluate={evaluate!r} cannot be called; give a function of a codebook")
    return partial(evaluated, evaluate, weight), {"validation_weight": weight}


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name}={value!r} is not possible; give a number from 0 to 1")
    return float(value)


def _start(num_classes: int, seed: int, start: str | Path | Codebook | None, prototypes: Any) -> Codebook:
    """The code whose columns come first."""
    if start is None:
        start = "decoc" if num_classes <= MAX_CLASSES else "merged_decoc"
    if isinstance(start, (str, Path)) and Path(start).suffix != ".safetensors":
        own = {"prototypes": prototypes} if "prototypes" in DESIGNS.get(str(start)).params() else {}
        return build(str(start), num_classes, seed=seed, **own)
    codebook = start if isinstance(start, Codebook) else load(start)
    if codebook.num_classes != num_classes:
        message = f"start is a code of {codebook.num_classes} classes for num_classes={num_classes}"
        raise ConfigurationError(f"{message}; give a codebook of as many classes, or the name of a design")
    return codebook


def _limit(start: Codebook, bits: int | None) -> int:
    """The most columns."""
    limit = start.length + minimal_length(start.num_classes) if bits is None else bits
    if limit < start.length:
        message = f"bits={limit} is too short for ecoc_one: its start, {start.design}, has {start.length} columns"
        raise ConfigurationError(f"{message}; give bits={start.length} or more, or another start")
    check_size("ecoc_one", start.num_classes, limit)
    return limit


def _grown(
    start: Codebook, limit: int, stop_error: float, measure: Measure, partitions: Floating | Poles, is_fixed: bool
) -> tuple[Symbols, dict[str, Any]]:
    """The symbols (V, n), and a record: error rates before every step, pairs, column weights.

    If the counts are fixed, a new column resolves some of them; otherwise they are measured again.
    """
    symbols = start.to_array()
    known = {_key(column) for column in symbols.T}
    errors: list[float] = []
    pairs: list[list[int]] = []
    found = measure(start)
    while True:
        errors.append(found.error)
        if found.error < stop_error or symbols.shape[1] == limit:
            break
        new = _new_column(found, partitions, known)
        if new is None:
            break
        column, pair = new
        known.add(_key(column))
        symbols = np.column_stack([symbols, column])
        pairs.append(pair.tolist())
        if is_fixed:
            found = found.without(partitions.resolved(column, pair, found.pairs))
        else:
            found = measure(_codebook(symbols, start.seed, {}))
    weights = error_weights(found.column_errors(symbols))
    return symbols, {"errors": errors, "pairs": pairs, "column_weights": weights.tolist()}


def _new_column(found: Measured, partitions: Floating | Poles, known: set[bytes]) -> tuple[Symbols, Integers] | None:
    """The best column (V,) that is not `known`, for the most confused pair (2,) with one; None if there is none."""
    mass = found.mass.copy()
    while mass.any():
        place = int(mass.argmax())
        pair = found.pairs[place]
        for column in partitions.columns(pair, found.pairs, mass):
            if _key(column) not in known:
                return column, pair
        mass[place] = 0
    return None


def _key(column: Symbols) -> bytes:
    """A key shared by a column (V,) and its complement, and no other."""
    return bytes(column * column[np.flatnonzero(column)[0]]) if column.any() else bytes(column)


def _codebook(symbols: Symbols, seed: int | None, params: dict[str, Any]) -> PackedCodebook:
    return PackedCodebook.from_array(symbols, design="ecoc_one", seed=seed, params=params)


# Dichotomies that separate one pair of classes: which other classes join either side.
#
# * O. Pujol, S. Escalera, P. Radeva (2008), "An incremental node embedding technique for error correcting output
#   codes", Pattern Recognition 41: sub-partitions by floating search.
# * P. Pudil, J. Novovičová, J. Kittler (1994), "Floating search methods in feature selection".
#
# `columns` are (V,) over {−1, 0, +1}, with +1 for the first class of `pair` (2,) and −1 for the second, the best first;
# `mass` (p,) is how often the classes of `pairs` (p, 2) are confused. `resolved` tells which of `pairs` a column that
# was made for `pair` resolves: truth values (p,).


@final
class Floating:
    """The two classes, and others that add many confusions between the sides while keeping the sides compact.

    The value of two sides is the confusions between them per class, times d / (d + s₊ + s₋), where d is the squared
    distance of the pair, and s₊ and s₋ are the variances of the sides. So a class that is rarely confused with the
    other side, or is far from its own, stays out. The search (`best_sides`) starts from the pair.
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
        sides = _Sides(self._squared, confused, pair)
        best = best_sides(sides, {2: (confused[tuple(pair)] / 2, sides.taken())}, len(confused))
        ranked = sorted(best, key=lambda size: (-best[size][0], size))
        return (best[size][1] for size in ranked)

    def resolved(self, column: Symbols, pair: Integers, pairs: Integers) -> np.ndarray:
        return np.asarray(column[pairs[:, 0]] * column[pairs[:, 1]] < 0)


@final
class Poles:
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


PARTITIONS: dict[str, type[Floating] | type[Poles]] = {"floating": Floating, "poles": Poles}


@final
class _Sides:
    """Two sides; every step takes time linear in the number of classes. The classes of a pair never leave.

    Arrays about sides are in the order +1, −1: sums of squared distances and of confusions to every class are (2, V).
    """

    def __init__(self, squared: Floats, confused: Floats, pair: Integers) -> None:
        self._squared, self._confused = squared, confused
        self._apart = float(squared[pair[0], pair[1]])
        self._may_leave = ~np.isin(np.arange(len(squared)), pair)
        self._member = np.zeros((2, len(squared)), dtype=bool)
        self._distance, self._mass = np.zeros((2, 2, len(squared)))
        for side in (0, 1):
            self.move(side * len(squared) + int(pair[side]), 1)

    def move(self, place: int, sign: int) -> None:
        side, number = divmod(place, len(self._squared))
        self._member[side, number] = sign > 0
        self._distance[side] += sign * self._squared[number]
        self._mass[side] += sign * self._confused[number]

    def moved(self, sign: int) -> Floats:
        """The value if each class moved to or from each side: (2, V)."""
        weight = self._member.astype(np.float64)
        size, within = weight.sum(axis=1), (weight * self._distance).sum(axis=1)
        own_size = np.maximum(size + sign, 1)[:, None]  # the last class of a side never leaves it
        own = (within[:, None] + 2 * sign * self._distance) / own_size**2
        other = (within / size**2)[::-1, None]
        between = float(weight[0] @ self._mass[1]) + sign * self._mass[::-1]
        total = self._apart + (own + other) / 2
        share = np.divide(self._apart, total, out=np.ones(total.shape), where=total > 0)
        can_move = ~self._member.any(axis=0) if sign > 0 else self._member & self._may_leave
        return np.where(can_move, between / (size.sum() + sign) * share, -np.inf)

    def taken(self) -> Symbols:
        """The column (V,)."""
        return self._member[0].astype(np.int8) - self._member[1].astype(np.int8)
