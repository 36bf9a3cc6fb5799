"""The registry of heads and what every head agrees on."""

from __future__ import annotations

from torch import nn

from codehead.errors import ConfigurationError
from codehead.registry import Registry

HEADS: Registry[type[nn.Module]] = Registry("head")


def require_positive(name: str, value: object) -> int:
    """`value` as a positive integer; a ConfigurationError names the argument otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a positive integer, got {value!r}")
    return value
