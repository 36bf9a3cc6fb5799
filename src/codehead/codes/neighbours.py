"""Which classes are alike: a graph of near prototypes, found in near-linear time."""

from __future__ import annotations

import numpy as np

from codehead.codes.arrays import Floats, Integers
from codehead.codes.bisection import bisect
from codehead.codes.prototypes import CHUNK_VALUES, Prototypes
from codehead.codes.random_bits import RandomBits

NEIGHBOURS = 4
"""Edges kept from each class to the nearest of its candidates."""

TREES = 3
"""Random bisections whose leaf orders name the candidates."""

REACH = 4
"""Candidates on either side in each of these orders."""

ORDER_STEPS = 1
"""Steps of power iteration in these trees."""


def near_pairs(vectors: Prototypes) -> Integers:
    """Pairs (edges, 2) of different classes, ascending, whose prototypes are near: a class and its
    NEIGHBOURS nearest (in Euclidean distance) among those that are leaves close by in some random tree.
    """
    candidates = np.concatenate([_close_by(order) for order in _orders(vectors)], axis=1)
    candidates.sort(axis=1)
    apart = _distances(vectors, candidates)
    repeated = np.zeros(candidates.shape, dtype=bool)
    repeated[:, 1:] = candidates[:, 1:] == candidates[:, :-1]
    own = np.arange(len(candidates))[:, None]
    apart[repeated | (candidates == own)] = np.inf
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :NEIGHBOURS]
    valid = np.isfinite(np.take_along_axis(apart, nearest, axis=1))
    ends = np.take_along_axis(candidates, nearest, axis=1)
    pairs = np.stack(np.broadcast_arrays(own, ends), axis=-1)[valid]
    return np.asarray(np.unique(np.sort(pairs, axis=1), axis=0))


def leaf_order(vectors: Prototypes, source: RandomBits) -> Integers:
    """The classes from the lowest leaf to the highest of a random balanced tree (V,): like ones lie close."""
    num_classes, dimensions = vectors.shape
    starts = source.normal((num_classes - 1).bit_length(), dimensions)
    return bisect(vectors, vectors.mean(), starts, ORDER_STEPS)[1]


def _orders(vectors: Prototypes) -> list[Integers]:
    source = RandomBits(0)
    return [leaf_order(vectors, source) for _ in range(TREES)]


def _close_by(order: Integers) -> Integers:
    """For each class those up to REACH places before and after it in `order`: (V, 2·REACH)."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    offsets = np.r_[-REACH:0, 1 : REACH + 1]
    return order[np.clip(places[:, None] + offsets, 0, len(order) - 1)]


def _distances(vectors: Prototypes, candidates: Integers) -> Floats:
    """Squared distances (V, candidates) of each class to its candidates."""
    apart = np.empty(candidates.shape)
    step = max(CHUNK_VALUES // (candidates.shape[1] * vectors.shape[1]), 1)
    for start in range(0, len(candidates), step):
        some = slice(start, start + step)
        differences = vectors.rows(candidates[some]) - vectors.rows(slice(start, start + step))[:, None]
        apart[some] = np.einsum("vcd,vcd->vc", differences, differences)
    return apart
