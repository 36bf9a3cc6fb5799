"""Trees over the classes with the columns of each depth merged: codes of ⌈log2 V⌉ bits per tree.

DECOC (Pujol, Radeva, Vitrià 2006) gives every node of a tree a column, −1 and +1 for its two sides and 0
for the classes outside: V − 1 columns. Nodes of one depth have no class in common, so their columns fit
into one. Nodes are split in half, so the tree has the least depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook, avoidable_faults, enough_binary_columns
from codehead.codes.design import fixed_length, free_length, minimal_length, register, whole_number
from codehead.codes.packing import Floats, Integers, RandomBits, pack_bits
from codehead.codes.prototypes import CHUNK_VALUES, Prototypes, principal_directions
from codehead.errors import CodebookError

STEPS = 1
"""Default steps of power iteration from a level's direction towards the principal direction of a node."""

FOREST_TREES = 3
"""The default number of trees in merged_forest, as in Forest-ECOC."""

MAX_REDRAWS = 200
"""How often a tree that repeats a column is drawn again before giving up."""


@register("merged_decoc", good_columns=lambda num_classes, length: True, length=minimal_length)
def merged_decoc(
    num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, steps: int = STEPS
) -> Codebook:
    """The path of a class through one tree: every node is split at its median along a direction.

    Level l starts from the l-th principal direction of all classes; `steps` of power iteration turn it
    towards the principal direction of each node. With 0 steps a level has one direction, which a linear
    head learns best; with many, every node is split along its widest direction.
    """
    remedy = "for a longer code choose merged_forest, or append parity bits (parity=)"
    length = fixed_length("merged_decoc", num_classes, bits, minimal_length(num_classes), remedy)
    return _merged("merged_decoc", num_classes, length, None, prototypes, steps)


@register(
    "merged_forest",
    good_columns=enough_binary_columns,
    length=lambda num_classes: FOREST_TREES * minimal_length(num_classes),
)
def merged_forest(
    num_classes: int, bits: int | None, seed: int, *, prototypes: Any = None, steps: int = STEPS
) -> Codebook:
    """The tree of merged_decoc, then trees whose levels start from random directions, up to `bits` columns.

    By default there are three trees. The last one is cut off after `bits` columns. A tree that repeats
    an existing column is drawn again.
    """
    length = free_length("merged_forest", num_classes, bits)
    return _merged("merged_forest", num_classes, length, seed, prototypes, steps)


def _merged(
    design: str, num_classes: int, length: int, seed: int | None, prototypes: Any, steps: int
) -> PackedCodebook:
    """The principal tree and, with a seed, random ones."""
    steps = whole_number("steps", steps, 0)
    vectors = Prototypes.of(design, prototypes, num_classes)
    mean, depth, source = vectors.mean(), minimal_length(num_classes), RandomBits(seed or 0)
    directions = principal_directions(vectors, mean).T
    columns, _ = bisect(vectors, mean, directions[np.arange(depth) % len(directions)], steps)
    while columns.shape[1] < length:
        columns = _with_new_tree(vectors, mean, columns, min(depth, length - columns.shape[1]), steps, source)
    params = {"prototypes": vectors.origin(), "steps": steps}
    return PackedCodebook(length=length, design=design, seed=seed, params=params, sign_plane=pack_bits(columns))


def _with_new_tree(
    vectors: Prototypes, mean: Floats, columns: np.ndarray, levels: int, steps: int, source: RandomBits
) -> np.ndarray:
    """`columns` (V, n) and those of a random tree that repeats none of them: (V, n + levels)."""
    for _ in range(MAX_REDRAWS):
        upper, _ = bisect(vectors, mean, source.normal(levels, len(mean)), steps)
        wider = np.concatenate([columns, upper], axis=1)
        if not len(avoidable_faults(pack_bits(wider), wider.shape[1])):
            return wider
    message = f"no tree without a repeated column was found after {columns.shape[1]} bits: these {len(columns)} "
    raise CodebookError(f"{message}prototypes of {len(mean)} dimensions yield too few splits; ask for fewer bits")


# Balanced recursive bisection of prototypes, level by level: one bit of a class per level of the tree.


def bisect(vectors: Prototypes, mean: Floats, starts: Floats, steps: int) -> tuple[np.ndarray, Integers]:
    """Split every node of classes in two at each level of `starts` (levels, d), along a direction of the node.

    The direction is the level's start after `steps` of power iteration with the node's covariance, so in
    all nodes of a level the upper side lies further along the start. A node of size s becomes ⌈s/2⌉ classes
    below its median and ⌊s/2⌋ above, so sizes on one level differ by at most 1. A node of a single class
    cannot be split: such classes alternate between down and up.

    Returns:
        upper: whether a class goes up at a level: bool (V, levels).
        order: the classes (V,) from the lowest leaf to the highest.

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
    """The positions of the members of `nodes` (k, s, d) along the direction of their node: (k, s), centred."""
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
