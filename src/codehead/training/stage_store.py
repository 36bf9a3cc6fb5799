"""What the stages of a long computation have come to, kept in a folder, so that a killed process goes on after them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codehead.errors import CheckpointError

KINDS = (".json", ".safetensors", ".tmp")
NOTES = "notes"
"""The entry of a safetensors header that holds plain values, as JSON."""


class Stages:
    """Results of stages by name: plain values in `NAME.json`, tensors in `NAME.safetensors`.

    Files are written in one step, so that whatever is there is whole. Without a path nothing is kept. Of several
    processes one writes (`is_main`), and all read.
    """

    def __init__(self, path: Path | None = None, *, is_main: bool = True) -> None:
        self.path = path
        self.is_main = is_main

    def values(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept values of a stage; computed, and kept, if there are none. Floats come back as they were."""
        kept = self._file(f"{name}.json")
        if kept is not None and kept.exists():
            return self._read(kept)
        found = compute()
        self._write(kept, lambda file: file.write_text(json.dumps(found), encoding="utf-8"))
        return found

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The kept tensors of a stage, on the CPU; computed, and kept, if there are none."""
        kept = self.load(name)
        if kept is not None:
            return kept[0]
        found = compute()
        self.save(name, found)
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
        """Keep tensors, and plain values with them, in the place of what was kept under that name."""
        whole = {key: value.detach().contiguous() for key, value in tensors.items()}
        metadata = {NOTES: json.dumps(notes or {})}
        self._write(self._file(f"{name}.safetensors"), lambda file: save_file(whole, file, metadata))

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and values that `save` kept under a name; None if there are none."""
        kept = self._file(f"{name}.safetensors")
        if kept is None or not kept.exists():
            return None
        try:
            with safe_open(kept, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
                return tensors, json.loads(file.metadata()[NOTES])
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise self._damaged(kept, error) from error

    def exist(self) -> bool:
        """Whether anything is kept."""
        return self.path is not None and self.path.is_dir() and any(self.path.iterdir())

    def remove(self) -> None:
        """Forget everything, and remove the folder unless somebody else has put something into it."""
        if self.path is None or not self.is_main or not self.path.is_dir():
            return
        for kind in KINDS:
            for file in self.path.glob(f"*{kind}"):
                file.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _file(self, name: str) -> Path | None:
        return None if self.path is None else self.path / name

    def _read(self, kept: Path) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self._damaged(kept, error) from error
        return values

    def _write(self, kept: Path | None, write: Callable[[Path], Any]) -> None:
        """Through a temporary file beside it, so that a killed process leaves the old file or the new one."""
        if kept is None or not self.is_main:
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}.tmp")
        write(temporary)
        os.replace(temporary, kept)

    @staticmethod
    def _damaged(kept: Path, error: Exception) -> CheckpointError:
        return CheckpointError(f"{str(kept)!r} is damaged ({error}); remove it, and that stage is computed again")
