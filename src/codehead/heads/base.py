"""The registry of heads and what every head agrees on."""

from __future__ import annotations

from torch import nn

from codehead.errors import ConfigurationError
from codehead.registry import Registry

HEADS: Registry[type[nn.Module]] = Registry("head")


def gives_log_probabilities(head: nn.Module | type[nn.Module]) -> bool:
    """Whether the outputs of a head are log-probabilities of tokens, as its attribute `log_probabilities` says.

    They are bit logits otherwise, or the features of a chain.
    """
    return bool(getattr(head, "log_probabilities", False))


def require_positive(name: str, value: object) -> int:
    """`value` as a positive integer; a ConfigurationError names the argument otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a positive integer, got {value!r}")
    return value
