"""The result file: one JSON with configuration, metrics and provenance, under a checksum of its content; and where
the files of a protocol's run lie.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from codehead.boundaries import reading
from codehead.errors import CheckpointError

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Result:
    """The measurements, their configuration and their provenance. All values are plain JSON."""

    name: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]  # see `training.provenance`, plus started_at (UTC) and wall_seconds
    schema_version: int = SCHEMA_VERSION

    @property
    def checksum(self) -> str:
        """sha256 (hex) over the canonical JSON of every field."""
        return hashlib.sha256(canonical_json(asdict(self)).encode("utf-8")).hexdigest()

    def write(self, path: str | Path) -> Path:
        """Write the file in one step."""
        return write_json(Path(path), self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The content of the file: every field and the checksum."""
        return {**asdict(self), "checksum": self.checksum}

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read and verify; raises CheckpointError for a missing, broken, newer or hand-edited file."""
        values = _load(Path(path))
        if values.get("schema_version") != SCHEMA_VERSION:
            raise CheckpointError(
                f"result {str(path)!r} has schema_version {values.get('schema_version')!r}; "
                f"this version of codehead reads {SCHEMA_VERSION}"
            )
        recorded = values.pop("checksum", None)
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            wrong = ", ".join(sorted(known ^ set(values)))
            raise CheckpointError(f"result {str(path)!r} has missing or unknown fields: {wrong}")
        result = cls(**values)
        if recorded != result.checksum:
            raise CheckpointError(
                f"result {str(path)!r} does not match its checksum: it was damaged or edited by hand; measure it again"
            )
        return result


def canonical_json(values: Any) -> str:
    """Sorted keys, no spaces; NaN and infinity are refused, because JSON has neither."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write readable JSON in one step."""
    return replace_file(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def replace_file(path: Path, text: str) -> Path:
    """Write a file through a temporary one in the same folder: a killed process leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _load(path: Path) -> dict[str, Any]:
    with reading(path, "result", CheckpointError):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise CheckpointError(f"result {str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"result {str(path)!r} is not a JSON object")
    return values


# Places and names of the files of a protocol's run.


RESULTS = "results"
TIMING = "timing"  # a folder among the results
EVERY_SETTING = "all"  # names the times of a protocol without settings
FAILURES = "failures"


def result_path(out: Path, key: str) -> Path:
    """Where the result of a cell, by its key, is written."""
    return out / RESULTS / f"{_file_name(key)}.json"


def timing_path(results: Path, setting: str) -> Path:
    """Where the times of a setting are written."""
    return results / TIMING / f"{setting or EVERY_SETTING}.json"


def failure_path(out: Path, key: str) -> Path:
    """Where the traceback of a failure is written."""
    return out / FAILURES / f"{_file_name(key)}.txt"


def _file_name(key: str) -> str:
    """Different for every key, because names in a protocol contain neither a slash nor two hyphens in a row."""
    return key.replace("/", "--").replace(" ", "-")
