"""Prototypes: one vector per class, by which a design sees which classes are alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors import SafetensorError, safe_open

from codehead.codes.arrays import Floats
from codehead.errors import ConfigurationError

CHUNK_VALUES = 2**22
"""Numbers turned into float64 at a time (32 MiB), so that a large array is never held twice."""

LARGEST_VALUE = 1e150

TENSOR = "prototypes"
"""The tensor that is read from a safetensors file with several."""


@final
@dataclass(frozen=True, eq=False)
class Prototypes:
    """Vectors `values` (V, d) of any real type, finite and not all equal; arithmetic is done in float64."""

    values: np.ndarray
    name: str = "prototypes"

    @classmethod
    def of(cls, design: str, source: Any, num_classes: int) -> Prototypes:
        """The prototypes that a caller gave a design: an array (V, d), or a .npy or .safetensors file.

        ConfigurationError if there are none, or if they do not fit `num_classes`.
        """
        if source is None:
            message = f"{design!r} looks at the classes: give it prototypes=, an array "
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
        """An array (rows, d), or the one in a file, checked; `name` is the argument that errors speak of."""
        values = _load(Path(source), name) if isinstance(source, (str, Path)) else np.asarray(source)
        if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
            message = f"{name} is {values.dtype} {values.shape}; give numbers (rows, dimensions), a vector per row"
            raise ConfigurationError(message)
        own = cls(values, name)
        first, differ = own.rows(slice(1)), False
        for start, chunk in own.chunks():
            differ = differ or bool(np.any(chunk != first))
            wrong = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
            if len(wrong):
                message = f"{name} has a value that is not finite in row {start + wrong[0]}"
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
        rows, dimensions = self.values.shape
        return rows, dimensions

    def rows(self, ids: np.ndarray | slice) -> Floats:
        """Some of the vectors, as float64 (…, d)."""
        return self.values[ids].astype(np.float64)

    def chunks(self) -> Iterator[tuple[int, Floats]]:
        """Consecutive rows as float64 (rows, d), each with the number of its first."""
        step = max(CHUNK_VALUES // self.shape[1], 1)
        for start in range(0, len(self.values), step):
            yield start, self.rows(slice(start, start + step))

    def project(self, ids: np.ndarray, mean: Floats, directions: Floats) -> Floats:
        """The vectors of `ids` (k,), less `mean` (d,), along the columns of `directions` (d, m): (k, m)."""
        projections = np.empty((len(ids), directions.shape[1]))
        step = max(CHUNK_VALUES // self.shape[1], 1)
        for start in range(0, len(ids), step):
            some = slice(start, start + step)
            projections[some] = (self.rows(ids[some]) - mean) @ directions
        return projections

    def mean(self, weights: Floats | None = None) -> Floats:
        """The mean vector (d,), each vector weighted by one of `weights` (V,) if there are any."""
        if weights is None:
            return np.sum([chunk.sum(axis=0) for _, chunk in self.chunks()], axis=0) / len(self.values)
        sums = [weights[start : start + len(chunk)] @ chunk for start, chunk in self.chunks()]
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


def origins(vectors: Prototypes, weights: Floats | None) -> dict[str, Any]:
    """What a codebook records of the prototypes, and weights if there are any, that it was made from."""
    weighted = {} if weights is None else {"weights": Prototypes(weights[:, None]).origin()}
    return {"prototypes": vectors.origin(), **weighted}


def _load(path: Path, name: str) -> np.ndarray:
    """The array in a file."""
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix == ".safetensors":
            return _tensor(path, name)
    except FileNotFoundError:
        raise ConfigurationError(f"{name}={str(path)!r}: there is no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        message = f"{name}={str(path)!r} is not an array of numbers that NumPy can read ({error})"
        raise ConfigurationError(f"{message}; save it as float32") from error
    raise ConfigurationError(f"{name}={str(path)!r}: vectors are read from .npy and .safetensors files")


def _tensor(path: Path, name: str) -> np.ndarray:
    """The only tensor of a safetensors file, or the one called "prototypes"."""
    with safe_open(path, framework="numpy") as file:
        known = list(file.keys())
        chosen = known[0] if len(known) == 1 else TENSOR
        if chosen not in known:
            message = f"{name}={str(path)!r} holds the tensors {', '.join(known[:5]) or '(none)'}"
            raise ConfigurationError(f"{message}; save a file with one tensor, or call it {TENSOR!r}")
        return np.asarray(file.get_tensor(chosen))
