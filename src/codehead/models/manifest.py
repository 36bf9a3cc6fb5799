"""`codehead.json`: checksums of a checkpoint's weights, and saving that is all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codehead.errors import CheckpointError
from codehead.models import card

INDEX = "*.safetensors.index*.json"
"""What says which file holds which tensor, if there are several."""
WEIGHTS = "model*.safetensors*"
"""The weights and their index; adapters saved beside them are not ours."""
CHUNK = 2**22
"""Bytes read at a time."""

Files = dict[str, dict[str, Any]]
"""File name → its `size` in bytes and its `sha256`."""


@contextmanager
def staged(folder: str | os.PathLike[str], variant: str | None = None) -> Iterator[Path]:
    """An empty folder to save into; its files move into `folder` once all are written.

    A crash before that leaves `folder` as it was. The manifest moves last: a crash between two moves leaves
    either the old manifest, which the new weights contradict, or none.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(".saving-*"):  # by a process that was killed: two cannot save into one folder at once
        shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield stage
        _publish(stage, target, _name(variant))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, target: Path, manifest: str) -> None:
    files = {path.name: _fingerprint(path) for path in sorted(stage.glob(WEIGHTS))}
    left = {path.name for path in target.glob(WEIGHTS)} - set(files)
    stale = left & set(_read(target / manifest)) if files else set()
    for path in sorted(stage.iterdir(), key=lambda path: path.name not in files):
        (card.publish if path.name == card.NAME else os.replace)(path, target / path.name)
    for name in stale:
        (target / name).unlink(missing_ok=True)
    if files:
        (stage / manifest).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
        os.replace(stage / manifest, target / manifest)


def verify(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Check weight files, and the indices of them, against the manifests that lie beside them, if there are any.

    A CheckpointError names the file whose size or checksum differs, or that no manifest knows.
    """
    files = [Path(path) for path in paths]
    for folder in dict.fromkeys(path.parent for path in files):
        known: Files = {}
        for manifest in sorted(folder.glob("codehead*.json")):
            known.update(_read(manifest))
        own = [path for path in files if path.parent == folder]
        for path in (*(path for path in folder.glob(INDEX) if path.name in known), *own) if known else ():
            _verify_file(path, known)


def indexed(folder: Path) -> list[Path]:
    """The weight files that the indices in a folder name; a CheckpointError if one cannot be read."""
    files: list[Path] = []
    for index in sorted(folder.glob(INDEX)):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files += [folder / name for name in sorted(names)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is not a readable index of weight files ({error!r}); copy it again from the original "
                "checkpoint"
            ) from None
    return files


def refuse_outside(folder: Path, paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raise a CheckpointError for a weight file that lies outside the folder of a checkpoint, or does by its name."""
    own = os.path.abspath(folder)
    for path in paths:
        if os.path.commonpath([own, os.path.abspath(path)]) != own:
            raise CheckpointError(
                f"the index of weight files in {folder} names {path}, which is outside of that folder; copy "
                "model.safetensors.index.json again from the original checkpoint"
            )


def _verify_file(path: Path, known: Files) -> None:
    if path.name not in known:
        raise CheckpointError(
            f"{path} is not among the files listed in codehead.json: it is left over from another "
            "checkpoint; remove it, or save the model into an empty folder"
        )
    size, expected = path.stat().st_size, known[path.name]
    if size != expected.get("size"):
        raise CheckpointError(
            f"{path} has {size} bytes, codehead.json says {expected.get('size')}: it is incomplete or was "
            "replaced; copy it again from the original checkpoint"
        )
    if _fingerprint(path) != expected:
        raise CheckpointError(
            f"{path} differs from its sha256 in codehead.json: the file is damaged or was replaced; copy it "
            "again from the original checkpoint, or delete codehead.json if you changed the weights on "
            "purpose"
        )


def _read(manifest: Path) -> Files:
    if not manifest.exists():
        return {}
    try:
        files: Files = dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
        if not all(isinstance(entry, dict) for entry in files.values()):
            raise TypeError("an entry is no block of size and sha256")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{manifest} is not a readable list of files ({error!r}); copy it again from the original "
            "checkpoint, or delete it to load without checksums"
        ) from None
    return files


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _name(variant: str | None) -> str:
    return "codehead.json" if variant is None else f"codehead.{variant}.json"
