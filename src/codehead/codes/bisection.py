"""Balanced recursive bisection of prototypes, level by level: one bit of a class per level of the tree."""

from __future__ import annotations

import numpy as np

from codehead.codes.arrays import Floats, Integers
from codehead.codes.prototypes import CHUNK_VALUES, Prototypes


def bisect(vectors: Prototypes, mean: Floats, starts: Floats, steps: int) -> tuple[np.ndarray, Integers]:
    """Split the classes in two at every level of `starts` (levels, d), along a direction of each node.

    That direction is what `steps` of power iteration with the node's covariance make of the level's
    start, so that all nodes of a level turn the side up that lies further along its start. A node of
    size s becomes ⌈s/2⌉ classes below its median and ⌊s/2⌋ above, so that sizes of one level differ by at
    most 1. A node of a single class has nothing to split: such classes take turns in going up.

    Returns:
        upper: whether a class goes up at a level: bool (V, levels).
        order: the classes from the lowest leaf to the highest (V,).

    """
    num_classes = len(vectors.values)
    order, bounds = np.arange(num_classes), np.array([0, num_classes])
    upper = np.zeros((num_classes, len(starts)), dtype=bool)
    for level, start in enumerate(starts):
        sizes = np.diff(bounds)
        for size in np.unique(sizes):  # one size, or two that differ by 1
            nodes = bounds[:-1][sizes == size]
            if size == 1:
                upper[order[nodes[1::2]], level] = True
                continue
            for some in np.array_split(nodes, -(-len(nodes) * size * len(start) // CHUNK_VALUES)):
                places = some[:, None] + np.arange(size)
                ids = order[places]
                members = vectors.rows(ids)
                members -= mean  # in place: the root holds all of them
                positions = _positions(members, start, steps if size > 2 else min(steps, 1))
                ids = np.take_along_axis(ids, np.argsort(positions, axis=1, kind="stable"), axis=1)
                order[places] = ids
                upper[ids[:, (size + 1) // 2 :], level] = True
        bounds = np.union1d(bounds, bounds[:-1] + (sizes + 1) // 2)
    return upper, order


def _positions(nodes: Floats, start: Floats, steps: int) -> Floats:
    """Where the members of `nodes` (k, s, d) lie on the direction of their node: (k, s), centred."""
    direction = np.broadcast_to(start, (len(nodes), len(start)))
    for _ in range(steps):
        along = _along(nodes, direction)
        direction = np.matmul(along[:, None], nodes)[:, 0]
        length = np.linalg.norm(direction, axis=1, keepdims=True)
        direction = direction / np.where(length > 0, length, 1.0)  # 0: the members are all equal
    return _along(nodes, direction)


def _along(nodes: Floats, direction: Floats) -> Floats:
    """The members of `nodes` (k, s, d) along the `direction` (k, d) of their node, less their mean: (k, s)."""
    along = np.matmul(nodes, direction[:, :, None])[..., 0]
    return np.asarray(along - along.mean(axis=1, keepdims=True))
