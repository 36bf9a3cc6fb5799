"""Errors a user can cause. Every message names the argument, its value and the remedy."""

from __future__ import annotations


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
