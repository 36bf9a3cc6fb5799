"""Where the files of a protocol's run lie, and what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codehead.lab.protocols.protocol import Entry

RESULTS = "results"
TIMING = "timing"  # a folder among the results
EVERY_SETTING = "all"  # names the times of a protocol without settings
FAILURES = "failures"


def result_path(out: Path, entry: Entry) -> Path:
    """Where the result of a cell is written."""
    return out / RESULTS / f"{_file_name(entry.key)}.json"


def timing_path(results: Path, setting: str) -> Path:
    """Where the times of a setting are written."""
    return results / TIMING / f"{setting or EVERY_SETTING}.json"


def failure_path(out: Path, key: str) -> Path:
    """Where the traceback of what failed is written."""
    return out / FAILURES / f"{_file_name(key)}.txt"


def _file_name(key: str) -> str:
    """Different for every key, because no name of a protocol holds a slash or two hyphens in a row."""
    return key.replace("/", "--").replace(" ", "-")
