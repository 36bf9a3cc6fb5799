"""Which class gets which codeword of a finished code: the same rows in another order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import minimal_length, whole_number
from codehead.codes.packing import Floats, Integers, PackedRows, RandomBits, all_pairs, doubled_distances, slices
from codehead.codes.prototypes import CHUNK_VALUES, Prototypes
from codehead.codes.trees import bisect
from codehead.errors import CodebookError, ConfigurationError
from codehead.registry import unknown

METHODS = ("identity", "random", "frequency", "similar_near", "similar_far")

FREQUENT = 1024
"""How many of the most frequent classes are kept apart: in text nearly every token is one of them."""

SWEEPS = 30
"""Default rounds of swaps."""


def check_method(method: str) -> None:
    """Raise ConfigurationError for an unknown method."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)


def assign(
    codebook: Codebook,
    method: str,
    prototypes: Any = None,
    counts: Any = None,
    seed: int = 0,
    *,
    sweeps: int = SWEEPS,
) -> PackedCodebook:
    """The codebook with its codewords reassigned to the classes.

    * "identity": as they are; "random": in random order, from `seed`.
    * "frequency": the 1,024 most frequent classes by `counts` (V,) get codewords far apart, each the one
      farthest from those before it (farthest-first traversal, Gonzalez 1985); among the rest, more
      frequent classes get codewords farther from these. Objective: the least distance among the 1,024.
    * "similar_near", "similar_far": classes with similar `prototypes` (an array (V, d) or a file) get
      codewords that are near, so that a wrong bit leads to a similar class, or far, so that similar classes
      are not confused. Local search: up to `sweeps` rounds of swaps, each near-linear in V, none of which
      worsens the objective: the mean codeword distance over a graph of near prototypes.

    `params["assignment"]` of the result holds the method, and the objective `before` and `after`.

    Raises:
        ConfigurationError: an unknown method, or missing prototypes or counts.
        CodebookError: the code is implicit, so its rows are not stored.

    """
    check_method(method)
    if not isinstance(codebook, PackedCodebook):
        raise CodebookError(f"the rows of {codebook.design} are never written down, so they have no other order")
    seed, sweeps = whole_number("seed", seed, 0), whole_number("sweeps", sweeps, 0)
    rows = PackedRows.from_planes(*codebook.planes.values(), length=codebook.length)
    if method == "identity":
        return _in_order(codebook, np.arange(codebook.num_classes), {"method": method})
    if method == "random":
        held = RandomBits(seed).permutation(codebook.num_classes)
        return _in_order(codebook, held, {"method": method, "seed": seed})
    if method == "frequency":
        return _by_frequency(codebook, rows, _counts(counts, codebook.num_classes))
    vectors = Prototypes.of(method, prototypes, codebook.num_classes)
    return _by_likeness(codebook, rows, vectors, method, seed, sweeps)


def _in_order(codebook: PackedCodebook, held: Integers, record: dict[str, Any]) -> PackedCodebook:
    """Give class v the codeword that class `held[v]` had."""
    planes: dict[str, Any] = {name: plane[held] for name, plane in codebook.planes.items()}
    return replace(codebook, params={**codebook.params, "assignment": record}, **planes)


# By frequency


def _counts(counts: Any, num_classes: int) -> Floats:
    if counts is None:
        raise ConfigurationError(
            f"method 'frequency' needs counts=, {num_classes} numbers: how often each class occurs"
        )
    values = np.asarray(counts)
    if values.shape != (num_classes,) or values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        message = f"counts is {values.dtype} {values.shape}; give {num_classes} finite numbers, one per class"
        raise ConfigurationError(message)
    return values.astype(np.float64)


def _by_frequency(codebook: PackedCodebook, rows: PackedRows, counts: Floats) -> PackedCodebook:
    classes = np.argsort(-counts, kind="stable")
    frequent = classes[:FREQUENT]
    chosen, nearest = _farthest_first(rows, frequent[0], len(frequent))
    nearest[chosen] = -1
    others = np.argsort(-nearest, kind="stable")[: len(classes) - len(chosen)]
    held = np.empty_like(classes)
    held[classes] = np.concatenate([chosen, others])
    before, after = _least_distance(rows, frequent), _least_distance(rows, chosen)
    if after < before:
        held, after = np.arange(len(classes)), before
    return _in_order(codebook, held, {"method": "frequency", "before": before, "after": after})


def _farthest_first(rows: PackedRows, first: int, count: int) -> tuple[Integers, Integers]:
    """`count` rows, each the farthest from those before it, and every row's doubled least distance to them (V,)."""
    chosen = [int(first)]
    nearest = np.full(rows.num_rows, 2 * rows.length + 1, dtype=np.int64)
    while True:
        last = rows.take(np.array(chosen[-1:]))
        nearest = np.minimum(nearest, doubled_distances(last.spread(), rows)[0])
        if len(chosen) == count:
            return np.array(chosen), nearest
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))


def _least_distance(rows: PackedRows, ids: Integers) -> float:
    return float(np.flatnonzero(all_pairs(rows.take(ids)))[0]) / 2


# By similarity


def _by_likeness(
    codebook: PackedCodebook, rows: PackedRows, vectors: Prototypes, method: str, seed: int, sweeps: int
) -> PackedCodebook:
    pairs, source = near_pairs(vectors), RandomBits(seed)
    held = np.arange(codebook.num_classes)
    before = _mean_distance(rows, held, pairs)
    order = None
    if method == "similar_near":
        order = leaf_order(Prototypes(codebook.to_array()), RandomBits(0))
        matched = np.empty_like(held)
        matched[leaf_order(vectors, RandomBits(0))] = order
        held = matched if _mean_distance(rows, matched, pairs) < before else held
    for _ in range(sweeps):
        partners = _any_partners(held, source) if order is None else _close_partners(held, order, pairs, source)
        held = _swapped(rows, held, pairs, partners, +1 if method == "similar_near" else -1)
    after = _mean_distance(rows, held, pairs)
    record = {"method": method, "seed": seed, "sweeps": sweeps, "before": before, "after": after}
    return _in_order(codebook, held, {**record, "prototypes": vectors.origin()})


def _mean_distance(rows: PackedRows, held: Integers, pairs: Integers) -> float:
    """The mean codeword distance over the pairs (edges, 2) of classes."""
    return float(_apart(rows, held[pairs[:, 0]], held[pairs[:, 1]]).mean()) / 2


def _apart(rows: PackedRows, left: Integers, right: Integers) -> Integers:
    return doubled_distances(rows.take(left), rows.take(right))


def _any_partners(held: Integers, source: RandomBits) -> Integers:
    """A random partner for every class (V,); if V is odd, one class is its own partner."""
    order = source.permutation(len(held))
    half = len(held) // 2
    partners = np.arange(len(held))
    partners[order[:half]], partners[order[half : 2 * half]] = order[half : 2 * half], order[:half]
    return partners


def _close_partners(held: Integers, order: Integers, pairs: Integers, source: RandomBits) -> Integers:
    """Partners (V,) that hold a codeword close to that of a neighbour, in the `order` of similar codewords."""
    num_classes = len(held)
    place, owner = np.argsort(order), np.argsort(held)  # the inverse permutations
    edges = pairs[source.below(len(pairs), num_classes)]
    turned = source.below(2, num_classes)
    mover, neighbour = edges[np.arange(num_classes), turned], edges[np.arange(num_classes), 1 - turned]
    spread = 1 + source.below(8, num_classes)
    offset = np.where(source.below(2, num_classes) == 0, spread, -spread)
    other = owner[order[np.clip(place[held[neighbour]] + offset, 0, num_classes - 1)]]
    claims = np.full(num_classes, num_classes)
    for end in (mover, other):
        np.minimum.at(claims, end, np.arange(num_classes))
    won = (claims[mover] == np.arange(num_classes)) & (claims[other] == np.arange(num_classes))
    partners = np.arange(num_classes)
    partners[mover[won]], partners[other[won]] = other[won], mover[won]
    return partners


def _swapped(rows: PackedRows, held: Integers, pairs: Integers, partners: Integers, sign: int) -> Integers:
    """`held` after the swaps with partners that reduce `sign` times the sum of distances.

    A gain is computed as if nothing else moved. Of two swaps whose classes are joined by an edge, only the
    better is made, so that every gain is as computed.
    """
    start, end = np.concatenate([pairs, pairs[:, ::-1]]).T
    outside = partners[start] != end  # swapping partners does not change the edge between them
    start, end = start[outside], end[outside]
    change = _apart(rows, held[partners[start]], held[end]) - _apart(rows, held[start], held[end])
    total = np.bincount(start, change, minlength=len(held))
    swap = np.minimum(np.arange(len(held)), partners)  # a swap is identified by its lower class
    gain = -sign * (total + total[partners])
    wanted = gain > 0
    rivals = wanted[start] & wanted[end] & (swap[start] != swap[end])
    left, right = swap[start[rivals]], swap[end[rivals]]
    worse = np.where((gain[left] < gain[right]) | ((gain[left] == gain[right]) & (left > right)), left, right)
    wanted[worse] = False
    return np.where(wanted[swap], held[partners], held)


# Which classes are similar: a graph of near prototypes, found in near-linear time.


NEIGHBOURS = 4
"""Edges kept from each class to the nearest of its candidates."""

TREES = 3
"""Random bisections whose leaf orders give the candidates."""

REACH = 4
"""Candidates on either side in each of these orders."""

ORDER_STEPS = 1
"""Steps of power iteration in these trees."""


def near_pairs(vectors: Prototypes) -> Integers:
    """Pairs (edges, 2) of different classes, ascending, whose prototypes are near: a class and its
    NEIGHBOURS nearest (in Euclidean distance) among those that are leaves close by in some random tree.
    """
    source = RandomBits(0)
    candidates = np.concatenate([_close_by(leaf_order(vectors, source)) for _ in range(TREES)], axis=1)
    candidates.sort(axis=1)
    apart = _distances(vectors, candidates)
    repeated = np.diff(candidates, axis=1, prepend=-1) == 0
    own = np.arange(len(candidates))[:, None]
    apart[repeated | (candidates == own)] = np.inf
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :NEIGHBOURS]
    valid = np.isfinite(np.take_along_axis(apart, nearest, axis=1))
    ends = np.take_along_axis(candidates, nearest, axis=1)
    pairs = np.stack(np.broadcast_arrays(own, ends), axis=-1)[valid]
    return np.asarray(np.unique(np.sort(pairs, axis=1), axis=0))


def leaf_order(vectors: Prototypes, source: RandomBits) -> Integers:
    """The classes (V,) from the lowest to the highest leaf of a random balanced tree: similar ones are close."""
    num_classes, dimensions = vectors.shape
    starts = source.normal(minimal_length(num_classes), dimensions)
    return bisect(vectors, vectors.mean(), starts, ORDER_STEPS)[1]


def _close_by(order: Integers) -> Integers:
    """For each class, those up to REACH places before and after it in `order`: (V, 2·REACH)."""
    places = np.argsort(order)  # the inverse permutation
    offsets = np.r_[-REACH:0, 1 : REACH + 1]
    return order[np.clip(places[:, None] + offsets, 0, len(order) - 1)]


def _distances(vectors: Prototypes, candidates: Integers) -> Floats:
    """Squared distances (V, candidates) of each class to its candidates."""
    apart = np.empty(candidates.shape)
    for some in slices(len(candidates), CHUNK_VALUES // (candidates.shape[1] * vectors.shape[1])):
        differences = vectors.rows(candidates[some]) - vectors.rows(some)[:, None]
        apart[some] = np.einsum("vcd,vcd->vc", differences, differences)
    return apart
