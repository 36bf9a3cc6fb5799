"""Prototypes: one vector per class, from which a design learns which classes are similar."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors import safe_open

from codehead.boundaries import read_array
from codehead.codes.packing import Bytes, Floats, Integers, RandomBits, Words, pack_bits, slices, unpack_bits
from codehead.errors import ConfigurationError

CHUNK_VALUES = 2**22
"""Numbers of 8 bytes computed with at a time (32 MiB), so that a large array is never held twice."""

LARGEST_VALUE = 1e150

TENSOR = "prototypes"
"""The tensor that is read from a safetensors file with several tensors."""


@final
@dataclass(frozen=True, eq=False)
class Prototypes:
    """Vectors `values` (V, d) of any real type, finite and not all equal; arithmetic is done in float64."""

    values: np.ndarray

    @classmethod
    def of(cls, design: str, source: Any, num_classes: int) -> Prototypes:
        """The prototypes that a user gave to a design: an array (V, d), or a .npy or .safetensors file.

        ConfigurationError if there are none, or if they do not fit `num_classes`.
        """
        if source is None:
            message = f"{design!r} needs prototypes: give prototypes=, an array "
            raise ConfigurationError(
                f"{message}({num_classes}, d) with a vector per class (token embeddings, the rows of a trained "
                "head, class means), or a .npy or .safetensors file of one"
            )
        own = cls.read(source)
        if len(own.values) != num_classes:
            message = f"prototypes has {len(own.values)} rows for num_classes={num_classes}"
            raise ConfigurationError(f"{message}; give one vector per class, in the order of the class ids")
        return own

    @classmethod
    def read(cls, source: Any, name: str = "prototypes") -> Prototypes:
        """An array (rows, d), or the one in a file, checked; `name` is the argument named in errors."""
        if isinstance(source, (str, Path)):
            readers = {
                ".npy": partial(np.load, mmap_mode="r", allow_pickle=False),
                ".safetensors": partial(_tensor, name),
            }
            failed = "is not an array of numbers that NumPy can read ({error}); save it as float32"
            source = read_array(name, Path(source), readers, "vectors", failed)
        values = np.asarray(source)
        if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
            message = f"{name} is {values.dtype} {values.shape}; give numbers (rows, dimensions), a vector per row"
            raise ConfigurationError(message)
        own = cls(values)
        first, differ = own.rows(slice(1)), False
        for some, chunk in own.chunks():
            differ = differ or bool(np.any(chunk != first))
            wrong = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
            if len(wrong):
                message = f"{name} has a value that is not finite in row {some.start + wrong[0]}"
                raise ConfigurationError(f"{message}; replace it, e.g. by the mean of the other rows")
            if np.abs(chunk).max() > LARGEST_VALUE:
                message = f"{name} has values beyond ±{LARGEST_VALUE:g}, whose squares float64 cannot add up"
                raise ConfigurationError(f"{message}; scale them down")
        if not differ:
            message = f"all rows of {name} are equal, so nothing tells the classes apart"
            raise ConfigurationError(f"{message}; give vectors that were trained, or choose a random design")
        return own

    @property
    def shape(self) -> tuple[int, int]:
        """V and d."""
        return self.values.shape

    def rows(self, ids: np.ndarray | slice) -> Floats:
        """Some of the vectors, as float64 (…, d)."""
        return self.values[ids].astype(np.float64)

    def chunks(self) -> Iterator[tuple[slice, Floats]]:
        """Consecutive rows as float64 (rows, d), with their slices."""
        return ((some, self.rows(some)) for some in slices(len(self.values), CHUNK_VALUES // self.shape[1]))

    def project(self, ids: np.ndarray, mean: Floats, directions: Floats) -> Floats:
        """The vectors of `ids` (k,), minus `mean` (d,), along the columns of `directions` (d, m): (k, m)."""
        projections = np.empty((len(ids), directions.shape[1]))
        for some in slices(len(ids), CHUNK_VALUES // self.shape[1]):
            projections[some] = (self.rows(ids[some]) - mean) @ directions
        return projections

    def mean(self, weights: Floats | None = None) -> Floats:
        """The mean vector (d,), weighted by `weights` (V,) if they are given."""
        if weights is None:
            return np.sum([chunk.sum(axis=0) for _, chunk in self.chunks()], axis=0) / len(self.values)
        sums = [weights[some] @ chunk for some, chunk in self.chunks()]
        return np.sum(sums, axis=0) / weights.sum()

    def squared_distances(self) -> Floats:
        """The squared distances of all pairs (V, V)."""
        rows = self.rows(slice(None)) - self.mean()
        lengths = np.square(rows).sum(axis=1)
        return np.asarray(np.maximum(lengths[:, None] + lengths - 2 * rows @ rows.T, 0))

    def origin(self) -> dict[str, Any]:
        """What a codebook records: the shape, and SHA-256 (hex) of the values as little-endian float64."""
        digest = hashlib.sha256()
        for _, chunk in self.chunks():
            digest.update(np.ascontiguousarray(chunk, dtype="<f8").data)
        return {"shape": list(self.shape), "sha256": digest.hexdigest()}


def class_weights(weights: Any, num_classes: int) -> Floats:
    """How much each class counts, float64 (V,), scaled to a mean of 1.

    ConfigurationError if the weights are not one finite number per class, 0 or more, and at least two above 0.
    """
    values = np.asarray(weights)
    fits = values.shape == (num_classes,) and values.dtype.kind in "fiu"
    if not fits or not np.isfinite(values).all() or values.min() < 0 or np.count_nonzero(values) < 2:
        raise ConfigurationError(
            f"weights is {values.dtype} {values.shape}; give {num_classes} numbers of 0 or more, one per class, at "
            "least two of them above 0, e.g. how often each token occurs"
        )
    return np.asarray(values / values.mean(dtype=np.float64), dtype=np.float64)


def _tensor(name: str, path: Path) -> np.ndarray:
    """The only tensor of a safetensors file, or the one called "prototypes"."""
    with safe_open(path, framework="numpy") as file:
        known = list(file.keys())
        chosen = known[0] if len(known) == 1 else TENSOR
        if chosen not in known:
            message = f"{name}={str(path)!r} holds the tensors {', '.join(known[:5]) or '(none)'}"
            raise ConfigurationError(f"{message}; save a file with one tensor, or call it {TENSOR!r}")
        return np.asarray(file.get_tensor(chosen))


# The principal directions of prototypes.


def principal_directions(prototypes: Prototypes, mean: Floats, weights: Floats | None = None) -> Floats:
    """Orthonormal directions (d, r) of the vectors minus their `mean` (d,), the widest first.

    The vectors are weighted by `weights` (V,), by default equally. r is the rank: directions in which the vectors do
    not differ are omitted. Signs are chosen so that the largest component of a direction is positive.
    ConfigurationError if the vectors that count do not differ.
    """
    rows, dimensions = prototypes.shape
    scatter = np.zeros((dimensions, dimensions))
    for some, chunk in prototypes.chunks():
        centred = chunk - mean
        scatter += centred.T @ (centred if weights is None else weights[some, None] * centred)
    if not np.trace(scatter) > 0:
        raise ConfigurationError(
            "prototypes: those that count (weights above 0) are equal, or differ by less than float64 can square; give "
            "vectors that tell the classes apart, with values near 1"
        )
    variances, directions = np.linalg.eigh(scatter)
    variances, directions = variances[::-1], directions[:, ::-1]
    noise = max(rows, dimensions) * np.finfo(np.float64).eps * variances[0]
    directions = directions[:, variances > noise]
    largest = np.abs(directions).argmax(axis=0)
    return directions * np.sign(directions[largest, np.arange(directions.shape[1])])


def random_rotation(values: Floats) -> Floats:
    """An orthogonal matrix (m, m), uniformly distributed, from m × m independent normal numbers.

    The Q of a QR factorisation whose R has a positive diagonal (Mezzadri 2007, "How to generate random
    matrices from the classical compact groups").
    """
    orthogonal, triangle = np.linalg.qr(values)
    return np.asarray(orthogonal * np.where(np.diag(triangle) < 0, -1.0, 1.0))


# Equal codewords are made distinct by flipping their least certain bits.


Margins = Callable[[Integers], Floats]
"""Rows `ids` (k,) → how certain each of their bits is: floats (k, n), at least 0."""

TRIED = 2**16
"""Candidates tried at a time."""

MAX_PATTERN_BITS = 62
"""Flip patterns are numbers of at most this many bits, more than could ever be used up."""

KEY_SEED = 0
"""The seed of the hash that identifies rows of more than 64 bits."""


def make_distinct(plane: Bytes, length: int, margins: Margins) -> tuple[Bytes, int]:
    """A binary plane (V, bytes) without equal rows, and how many rows were changed to get it.

    Of equal rows, the one whose least certain bit is the most certain stays. The others try flip patterns:
    pattern p flips a row's i-th least certain bit where p has the binary digit i, so cheap flips come first
    and, since V is at most 2^n, a free codeword is always found. The r-th of the others starts with pattern
    r, so that equal prototypes spread out at once. Near-linear in V unless most codewords are taken.
    """
    weights = _key_weights(length)
    keys = _keys(plane, length, weights)
    movers, ranks, sizes = _movers(keys, margins)
    if not len(movers):
        return plane, 0
    order = np.argsort(sizes, axis=1, kind="stable")[:, :MAX_PATTERN_BITS]
    stay = np.delete(keys, movers)
    patterns = _search(stay, keys[movers], weights[order], ranks)
    flips = np.zeros(sizes.shape, dtype=np.uint8)
    digits = (patterns[:, None] >> np.arange(order.shape[1])) & 1
    np.put_along_axis(flips, order, digits.astype(np.uint8), axis=1)
    changed = plane.copy()
    changed[movers] ^= pack_bits(flips)
    return changed, len(movers)


def _key_weights(length: int) -> Words:
    """One word per column (n,), so that a row's key is the XOR of the words of its 1 bits.

    For up to 64 columns, keys and rows are one to one; beyond, equal rows have equal keys, and different
    rows have equal keys so rarely (2^-64 per pair) that changing one needlessly does no harm.
    """
    low = np.uint64(1) << np.arange(min(length, 64), dtype=np.uint64)
    return np.concatenate([low, RandomBits(KEY_SEED).words(max(length - 64, 0))])


def _keys(plane: Bytes, length: int, weights: Words) -> Words:
    """The key of every row (V,)."""
    pieces = slices(len(plane), CHUNK_VALUES // length)
    parts = [np.bitwise_xor.reduce(unpack_bits(plane[some], length) * weights, axis=1) for some in pieces]
    return np.concatenate(parts)


def _movers(keys: Words, margins: Margins) -> tuple[Integers, Integers, Floats]:
    """The rows that must change (k,), their ranks (k,) among equal rows, from 1, and their margins (k, n)."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    members = np.flatnonzero(counts[inverse] > 1)
    sizes = margins(members)
    order = np.lexsort((-sizes.min(axis=1), keys[members])) if len(members) else members
    members, sizes = members[order], sizes[order]
    _, first, group = np.unique(keys[members], return_index=True, return_inverse=True)
    ranks = np.arange(len(members)) - first[group]
    moving = ranks > 0
    return members[moving], ranks[moving], sizes[moving]


def _search(taken: Words, keys: Words, flips: Words, start: Integers) -> Integers:
    """A flip pattern (k,) for each of `keys` (k,) that makes them differ from `taken` and from each other.

    `flips` (k, bits) is the change that each digit of a pattern makes to a key; row i tries the patterns
    from `start[i]` on, and after the last one from 0.
    """
    patterns = np.zeros(len(keys), dtype=np.int64)
    pending = np.arange(len(keys))
    following = start.astype(np.int64)
    while len(pending):
        block = max(TRIED // len(pending), 1)
        tried = (following[pending] + np.arange(block)[:, None]) & ((1 << flips.shape[1]) - 1)
        candidates = np.broadcast_to(keys[pending], tried.shape).copy()
        for digit in range(int(tried.max()).bit_length()):
            candidates ^= np.where((tried >> digit) & 1, flips[pending, digit], np.uint64(0))
        _, where = np.unique(np.concatenate([taken, candidates.ravel()]), return_index=True)
        free = np.zeros(candidates.shape, dtype=bool)
        free.ravel()[where[where >= len(taken)] - len(taken)] = True  # the first of equal candidates
        found, choice = free.any(axis=0), free.argmax(axis=0)
        chosen = choice[found], np.flatnonzero(found)
        patterns[pending[found]] = tried[chosen]
        taken = np.concatenate([taken, candidates[chosen]])
        following[pending] += block
        pending = pending[~found]
    return patterns
