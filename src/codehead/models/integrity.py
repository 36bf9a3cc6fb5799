"""Checks that a checkpoint loads as it was saved: its files, its integers, and the names of its tensors.

Weights are saved all or nothing, with their checksums in `codehead.json`. The integers of a coded model (codewords,
token ids, int8 and int4 weights) must not change; configurations are checked against files; some architectures rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils import parametrize

from codehead.codes.table import Seal
from codehead.errors import CheckpointError, ConfigurationError
from codehead.models import card, stock

INDEX = "*.safetensors.index*.json"
"""The index of which file holds which tensor, if there are several."""
WEIGHTS = "model*.safetensors*"
"""The weights and their index; adapters saved beside them are not ours."""
CHUNK = 2**22
"""Bytes read at a time."""

Files = dict[str, dict[str, Any]]
"""File name → its `size` in bytes and its `sha256`."""


@contextmanager
def staged(folder: str | os.PathLike[str], variant: str | None = None) -> Iterator[Path]:
    """An empty folder to save into; its files move into `folder` once all are written.

    A crash before that leaves `folder` unchanged. The manifest moves last: a crash between two moves leaves
    either the old manifest, which the new weights contradict, or none.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(".saving-*"):  # left by a killed process: two cannot save into one folder at once
        shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield stage
        _publish(stage, target, "codehead.json" if variant is None else f"codehead.{variant}.json")
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
    """Check weight files and their indices against the manifests beside them, if there are any.

    A CheckpointError names the file whose size or checksum differs, or which no manifest lists.
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
    """Raise a CheckpointError for a weight file whose path is outside the folder of a checkpoint."""
    own = os.path.abspath(folder)
    for path in paths:
        if os.path.commonpath([own, os.path.abspath(path)]) != own:
            raise CheckpointError(
                f"the index of weight files in {folder} names {path}, which is outside that folder; copy "
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
            raise TypeError("an entry is not a block of size and sha256")
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


SEALS = r"(^|\.)seal\.digest$"
"""The names of checksums of integers (`codehead.codes.table`), as a regular expression."""
MANY_LAYERS = 1000
"""Layers that are built in seconds, and more than any model has."""


def check_integers(model: Any) -> None:
    """Raise a CheckpointError if integers of a coded model do not match their checksums."""
    for name, seal, integers in _sealed(model):
        seal.check(integers, f"{name}.")


def set_guards(model: Any) -> None:
    """Turn on the checks of loaded integers; those of an old checkpoint without checksums get them now."""
    for _, seal, integers in _sealed(model):
        if seal.is_open:
            seal.close(integers)
        seal.on_guard = True


def _sealed(model: Any) -> Iterator[tuple[str, Seal, dict[str, Tensor]]]:
    """The sealed modules by name, with the seal and its integers; a rounded weight's seal is in its parametrization."""
    for name, part in model.named_modules():
        is_rounded = isinstance(part, parametrize.ParametrizationList)
        seal = getattr(part[0] if is_rounded else part, "seal", None)
        if isinstance(seal, Seal) and (is_rounded or hasattr(part, "integers")):
            yield name, seal, {"original0": part.original0} if is_rounded else part.integers()


def check_state(model: Any, state: Mapping[str, Tensor] | None) -> None:
    """Raise a CheckpointError if a state to be saved instead of the model's own has other integers.

    A state of averaged models may.
    """
    own = model.state_dict() if state is not None else {}
    for name, values in (state or {}).items():
        integers = own.get(name)
        if integers is None or integers.is_floating_point() or integers.is_meta or values.is_meta:
            continue
        if values.dtype != integers.dtype or not torch.equal(values.to(integers.device), integers):
            raise CheckpointError(
                f"{name} of the state_dict to be saved is not that of the model: integers that are meaningful only as "
                "a whole were changed, as averaging does; take them from the model"
            )


def refuse_missing(missing: set[str]) -> None:
    """Raise a CheckpointError if a checkpoint lacks tensors, which would be initialised at random."""
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(
            f"the checkpoint lacks {', '.join(names[:3])}{more}, which would be random numbers; restore the "
            "weights from the original checkpoint"
        )


def expect_layers(config: Any) -> None:
    """Raise a CheckpointError if a configuration claims more layers than its files have tensors.

    Building them would take hours and exhaust the memory.
    """
    layers, folder = getattr(config.get_text_config(), "num_hidden_layers", 0), Path(config._name_or_path)
    if isinstance(layers, int) and layers > MANY_LAYERS and folder.is_dir():
        tensors = sum(len(shapes_in(str(file))) for file in folder.glob("*.safetensors"))
        if layers > tensors:
            raise CheckpointError(
                f"num_hidden_layers in config.json is {layers}, but the weights in {folder} are {tensors} tensors; "
                "restore config.json from the original checkpoint"
            )


def shapes_in(file: str) -> dict[str, list[int]]:
    """The shapes of the tensors in a file, by name; CheckpointError for a truncated file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}); copy it again from the original checkpoint"
        ) from error


def own_names(model: Any) -> list[str]:
    """The names of the tensors of a coded model's head and decision layer."""
    prefixes = ("decision.", f"{stock.head_path(model)}.")
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def names_in_memory(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Names in files → the names under which `from_pretrained` loads them, by its own conversion mapping."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # circular: see registration.py
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping, state, prefix = get_model_conversion_mapping(model), model.state_dict(), model.base_model_prefix
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    found = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, _ = rename_source_key(name, [], [], prefix, state)
        found[name] = renamed
    return found


def refuse_lost_names(model: Any) -> None:
    """Raise a ConfigurationError if a tensor of a coded model's decision layer would not come back from a checkpoint.

    It simulates saving and loading the names, without the tensors.
    """
    from transformers.core_model_loading import revert_weight_conversion

    for name in own_names(model):
        saved = revert_weight_conversion(model, {name: torch.empty(1, device="meta")})
        if list(names_in_memory(model, saved).values()) != [name]:
            raise ConfigurationError(
                f"{type(model).__name__} renames tensors on saving: a checkpoint calls {name} {', '.join(saved)}, and "
                "loading would not find it again; choose another head or another architecture"
            )
