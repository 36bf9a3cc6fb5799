"""Errors a user can cause. Every message names the argument, its value and the remedy."""

from __future__ import annotations

from pathlib import Path


class CodeheadError(ValueError):
    """Base class: the command line prints these without a traceback and exits with status 2."""


class ConfigurationError(CodeheadError):
    """An option has an unknown name or an impossible value."""


class CodebookError(CodeheadError):
    """A coding matrix is invalid, or does not fit what is asked of it."""


class DataError(CodeheadError):
    """Text, records or labels are missing, empty or malformed."""


class CheckpointError(CodeheadError):
    """A checkpoint is damaged, or does not match its configuration."""


def not_loaded(what: str, name: str, error: Exception) -> ConfigurationError:
    """Why a model or tokenizer, of the hub or a local folder, could not be loaded."""
    folder, wanted = Path(name).expanduser(), {"model": "config.json", "tokenizer": "tokenizer*"}[what]
    if folder.is_dir() and not any(folder.glob(wanted)):
        reason = f"the folder holds none (no {wanted})"
    elif folder.exists():
        reason = str(error)
    else:
        reason = f"there is no such folder, and as a name of the hub: {error}"
    return ConfigurationError(f"{what} {name!r} could not be loaded: {reason}")
