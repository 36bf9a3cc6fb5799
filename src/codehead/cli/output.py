"""Where a command may write: told before any work is done."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from codehead.boundaries import system_failure
from codehead.errors import ConfigurationError


def check_folder(out: Path) -> None:
    """Raise ConfigurationError if the folder of --out cannot be made or written into.

    A file may stand in its place or above it, its name be too long, its place be read-only.
    """
    _refuse_files(out)
    _try(out)


def _refuse_files(out: Path) -> None:
    for place in (out, *out.parents):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise ConfigurationError(f"--out is {str(out)!r}, but {str(place)!r} is a file; name another folder")


def _try(out: Path) -> None:
    """Raise ConfigurationError if nothing can be made at the place of --out; leaves nothing there."""
    try:
        with suppress(FileNotFoundError):
            out.lstat()  # raises for a name that is too long
        place = next(place for place in (out, *out.absolute().parents) if os.path.isdir(place))
        with tempfile.TemporaryDirectory(prefix=".codehead-", dir=place):
            pass
    except OSError as error:
        error.filename = None
        raise ConfigurationError(
            f"--out is {str(out)!r}, where nothing can be written: {system_failure(error)}"
        ) from None


def check_empty_folder(out: Path, overwrite: bool) -> None:
    """Raise ConfigurationError as `check_folder`, or if the folder holds files that may not be overwritten."""
    check_folder(out)
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} is not empty; choose another folder or use --overwrite")


def check_file(out: Path | None, overwrite: bool) -> None:
    """Raise ConfigurationError if the file of --out is a folder, or exists and may not be overwritten."""
    if out is None:
        return
    _refuse_files(out.parent)
    if os.path.isdir(out):
        raise ConfigurationError(f"--out is {str(out)!r}, which is a folder; name a file in it")
    if os.path.lexists(out) and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} exists already; choose another file or use --overwrite")
    _try(out)


# What a command has changed of a model, as a table.


MEASURES = {
    "top1": ("top-1 accuracy", "{:.2%}"),
    "top5": ("top-5 accuracy", "{:.2%}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "bytes_in_bf16": ("bytes of the head, stored", "{:,}"),
}


def show_change(record: dict[str, Any], *names: str) -> None:
    """Print what was measured `before` and `after` a change of a model, in columns of these names."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    before, after = record["before"], record["after"]
    table = Table(title=f"{before['tokens']:,} held-out tokens", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for name in (*names, "ratio"):
        table.add_column(name, justify="right")
    for name, (label, form) in MEASURES.items():
        old, new = before[name], after[name]
        if old is not None and new is not None:
            table.add_row(label, form.format(old), form.format(new), f"{new / old:.3f}" if old else "–")
    Console(highlight=False).print(table)
