"""Where a number comes from: versions, code, hardware, data and wall time, without host names or local paths."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy")


def provenance(*, seed: int | None = None, sources: Iterable[str | None] = ()) -> dict[str, Any]:
    """Everything a result must record besides its configuration; `sources` are the data files it read."""
    return {
        "codehead": _version("codehead"),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "git": git_state(),
        "hardware": hardware(),
        "data": file_records(source for source in sources if source),
        "seed": seed,
    }


def utc_now() -> str:
    """The time as `2025-01-31T12:00:00+00:00`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def file_records(sources: Iterable[str]) -> list[dict[str, Any]]:
    """The record of every source, in their order."""
    return [file_record(source) for source in sources]


def named_files(values: Any) -> list[dict[str, Any]]:
    """The record of every file that is named anywhere in some values, such as a code or its prototypes."""
    if isinstance(values, Mapping):
        return [record for value in values.values() for record in named_files(value)]
    is_file = isinstance(values, str) and Path(values).suffix and Path(os.path.expanduser(values)).is_file()
    return [file_record(values)] if is_file else []


def file_record(source: str) -> dict[str, Any]:
    """Name, sha256 and bytes of a data file; only the name of a hub id.

    A process hashes a file once, unless it changes.
    """
    path = Path(os.path.expanduser(source))
    if not path.is_file():
        return {"name": source if not path.is_absolute() else path.name}
    found = path.stat()
    return {
        "name": path.name,
        "sha256": _sha256(path, found.st_ino, found.st_size, found.st_mtime_ns),
        "bytes": found.st_size,
    }


@lru_cache(maxsize=1024)
def _sha256(path: Path, *identity: int) -> str:
    """The checksum (hex) of a file; `identity` tells the versions of a file apart."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether its code was changed; None if installed."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", "src", "constraints.txt")
        return {"commit": commit, "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, accelerator."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
