"""Where a command may write: told before any work is done."""

from __future__ import annotations

from pathlib import Path

from codehead.errors import ConfigurationError


def check_folder(out: Path) -> None:
    """Raise ConfigurationError if a file stands where the folder of --out, or one above it, should be."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise ConfigurationError(f"--out is {str(out)!r}, but {str(place)!r} is a file; name another folder")


def check_empty_folder(out: Path, overwrite: bool) -> None:
    """Raise ConfigurationError as `check_folder`, or if the folder holds files that may not be overwritten."""
    check_folder(out)
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} is not empty; choose another folder or use --overwrite")


def check_file(out: Path | None, overwrite: bool) -> None:
    """Raise ConfigurationError if the file of --out is a folder, or exists and may not be overwritten."""
    if out is None:
        return
    check_folder(out.parent)
    if out.is_dir():
        raise ConfigurationError(f"--out is {str(out)!r}, which is a folder; name a file in it")
    if out.exists() and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} exists already; choose another file or use --overwrite")
