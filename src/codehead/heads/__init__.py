"""Heads: hidden state → bit logits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from codehead.heads.adaptive import AdaptiveHead
from codehead.heads.chain import Chain, ChainHead
from codehead.heads.feedforward import HEADS, LinearHead, LowRankHead, MTLHead
from codehead.registry import check_options

__all__ = [
    "HEADS",
    "AdaptiveHead",
    "ChainHead",
    "LinearHead",
    "LowRankHead",
    "MTLHead",
    "build",
    "count_parameters",
]

IN_CHAIN = "chain."
"""Prefix of the names of a chain's parameters in the decision layer."""


def build(name: str, hidden_size: int, num_bits: int, **options: Any) -> nn.Module:
    """The head called `name`, mapping `(…, hidden_size)` to bit logits `(…, num_bits)`.

    Raises:
        ConfigurationError: unknown name or option, or an option out of range.
    """
    check(name, options)
    return HEADS.get(name)(hidden_size, num_bits, **options)


def check(name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for an unknown head, or an option that it does not have."""
    head = HEADS.get(name)
    check_options(f"head {name!r}", head, options, list(inspect.signature(head).parameters)[2:])


def shapes(name: str, hidden_size: int, num_bits: int, **options: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a head's parameters by name, without allocating it; for a chain, also those in the decision layer."""
    with torch.device("meta"):
        head = build(name, hidden_size, num_bits, **options)
        chain = Chain.of(head)
    named = [*head.named_parameters(), *(chain.named_parameters("chain") if chain else ())]
    return {key: tuple(values.shape) for key, values in named}


def count_parameters(name: str, hidden_size: int, num_bits: int, **options: Any) -> int:
    """The number of a head's parameters, without allocating it; for a chain, also those in the decision layer."""
    return sum(math.prod(form) for form in shapes(name, hidden_size, num_bits, **options).values())
