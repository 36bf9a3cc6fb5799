"""Codebooks on disk: one safetensors file with the planes, and their origin in its header.

The metadata holds one JSON object under "codebook". Its `checksum` covers the symbols, its
`header_checksum` every other field, so no change goes unnoticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from codehead.boundaries import read_array, require_file
from codehead.codes.codebook import FORMAT, ORIGIN, Codebook, OneVsAllCodebook, PackedCodebook, header_checksum
from codehead.codes.design import register
from codehead.codes.packing import Bytes
from codehead.errors import CheckpointError, CodebookError, CodeheadError, ConfigurationError

PLANES = {"binary": {"sign_plane"}, "ternary": {"sign_plane", "support_plane"}, "one_vs_all": set[str]()}
"""The tensors in the file of each kind of codebook; the implicit one has none."""


def load(path: str | Path) -> Codebook:
    """Read a codebook; a CheckpointError names the field that is damaged or does not fit."""
    metadata, planes = _read(Path(path))
    fields = _fields(metadata, path)
    if planes.keys() != PLANES[fields["kind"]]:
        expected = sorted(PLANES[fields["kind"]])
        raise CheckpointError(f"{path}: the tensors are {sorted(planes)}, but kind={fields['kind']!r} has {expected}")
    own: dict[str, Any] = {name: fields[name] for name in ORIGIN} | planes
    try:
        codebook = PackedCodebook(**own) if planes else OneVsAllCodebook(fields["num_classes"])
    except CodeheadError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if codebook.checksum != fields["checksum"]:
        message = f"{path}: checksum is {codebook.checksum}, but the file was written with {fields['checksum']}"
        raise CheckpointError(f"{message}; the planes are damaged")
    return codebook


def _read(path: Path) -> tuple[dict[str, str], dict[str, Bytes]]:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: there is no such codebook file")
    require_file(path, "codebook file", CheckpointError)
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error


def _fields(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    """The fields of the header, after verifying its checksum."""
    if "codebook" not in metadata:
        raise CheckpointError(f"{path}: the metadata field 'codebook' is missing; this is not a codebook file")
    try:
        fields = json.loads(metadata["codebook"])
        written = fields.pop("header_checksum")
        found = header_checksum(fields)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: the metadata field 'codebook' is damaged ({error!r})") from error
    if written != found:
        raise CheckpointError(f"{path}: header_checksum is {written}, but the header has {found}; it was changed")
    for name, known in (("format", [FORMAT]), ("kind", list(PLANES))):
        if fields.get(name) not in known:
            raise CheckpointError(f"{path}: {name}={fields.get(name)!r} is not known; this version reads {known}")
    for name in (*ORIGIN, "checksum"):
        if name not in fields:
            raise CheckpointError(f"{path}: the header field {name!r} is missing")
    return dict(fields)


# The custom design: a coding matrix that the user supplies, as an array or in a file.


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": partial(np.load, allow_pickle=False),
    ".csv": partial(np.loadtxt, delimiter=",", ndmin=2),
    ".safetensors": load,
}


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

    A codebook from a file keeps the design, seed and parameters it was saved with.
    """
    if (array is None) == (path is None):
        raise ConfigurationError("design 'custom' takes its matrix from one of array= and path=; give exactly one")
    if path is not None:
        array = read_array(
            "path", Path(path), READERS, "custom codes", "is not a matrix of numbers: {error}", CodebookError
        )
    codebook = array
    if not isinstance(array, Codebook):
        matrix = np.asarray(array)
        if matrix.size and not np.any(matrix == -1):
            raise CodebookError("the matrix has no −1, so no column separates anything; write −1, not 0, for a bit 0")
        codebook = PackedCodebook.from_array(matrix, allow_duplicates=allow_duplicates)
    _expect("num_classes", num_classes, codebook.num_classes, "rows")
    _expect("bits", bits, codebook.length, "columns")
    return codebook


def _expect(name: str, asked: int | None, found: int, what: str) -> None:
    if asked is not None and asked != found:
        raise ConfigurationError(f"{name}={asked} does not fit the custom matrix, which has {found} {what}")
