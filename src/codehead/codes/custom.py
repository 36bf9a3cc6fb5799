"""The custom design: a coding matrix that the user brings, as an array or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import register
from codehead.codes.files import load
from codehead.errors import CodebookError, ConfigurationError

READERS = (".npy", ".csv", ".safetensors")


@register("custom", good_columns=lambda num_classes, length: False)
def custom(
    num_classes: int,
    bits: int | None,
    seed: int,
    *,
    array: Any = None,
    path: str | Path | None = None,
    allow_duplicates: bool = False,
) -> Codebook:
    """A matrix (V, n) of −1, 0, +1 from `array`, or from a .npy, .csv or codebook .safetensors file.

    A codebook file keeps the design, seed and parameters it was saved with.
    """
    if (array is None) == (path is None):
        raise ConfigurationError("design 'custom' takes its matrix from one of array= and path=; give exactly one")
    if path is not None and Path(path).suffix == ".safetensors":
        codebook = load(path)
    else:
        matrix = np.asarray(array) if path is None else _read(Path(path))
        if matrix.size and not np.any(matrix == -1):
            raise CodebookError("the matrix has no −1, so no column separates anything; write −1, not 0, for a bit 0")
        codebook = PackedCodebook.from_array(matrix, allow_duplicates=allow_duplicates)
    _expect("num_classes", num_classes, codebook.num_classes, "rows")
    _expect("bits", bits, codebook.length, "columns")
    return codebook


def _read(path: Path) -> np.ndarray:
    """The matrix in a .npy or .csv file."""
    if path.suffix not in READERS:
        raise ConfigurationError(f"path={str(path)!r}: a custom code is read from {', '.join(READERS)} files")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise ConfigurationError(f"path={str(path)!r}: there is no such file") from None
    except (ValueError, OSError) as error:
        message = f"path={str(path)!r} is not a matrix of numbers in {path.suffix} form: {error}"
        raise CodebookError(message) from error


def _expect(name: str, asked: int | None, found: int, what: str) -> None:
    if asked is not None and asked != found:
        raise ConfigurationError(f"{name}={asked} does not fit the custom matrix, which has {found} {what}")
