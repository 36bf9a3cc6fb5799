"""Heads: hidden state → bit logits."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from codehead.errors import ConfigurationError
from codehead.heads.adaptive import AdaptiveHead
from codehead.heads.chain import ChainHead
from codehead.heads.feedforward import HEADS, LinearHead, LowRankHead, MTLHead
from codehead.registry import did_you_mean

__all__ = [
    "HEADS",
    "AdaptiveHead",
    "ChainHead",
    "LinearHead",
    "LowRankHead",
    "MTLHead",
    "build",
    "count_buffer_bytes",
    "count_parameters",
]

IN_CHAIN = "chain."
"""Before the names of the parameters that a chain has in the decision layer."""


def build(name: str, hidden_size: int, num_bits: int, **options: Any) -> nn.Module:
    """The head called `name`, mapping `(…, hidden_size)` to bit logits `(…, num_bits)`.

    Raises:
        ConfigurationError: unknown name or option, or an option out of range.
    """
    head = HEADS.get(name)
    known = list(inspect.signature(head).parameters)[2:]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or "."
            raise ConfigurationError(f"head {name!r} has no option {option!r}{hint} Its options: {', '.join(known)}")
    if not isinstance(options.get("bias", False), bool):
        raise ConfigurationError(f"bias={options['bias']!r} of head {name!r} must be true or false")
    return head(hidden_size, num_bits, **options)


def shapes(name: str, hidden_size: int, num_bits: int, **options: Any) -> dict[str, tuple[int, ...]]:
    """The parameters of such a head by name, without allocating it; of a chain, also those in the decision layer."""
    head = _on_meta(name, hidden_size, num_bits, options)
    found = {key: tuple(values.shape) for key, values in head.named_parameters()}
    chain = head.conditioning if isinstance(head, ChainHead) else {}
    return found | {IN_CHAIN + key: form for key, form in chain.items()}


def count_parameters(name: str, hidden_size: int, num_bits: int, **options: Any) -> int:
    """Parameters of such a head, counted without allocating it; of a chain, also those in the decision layer."""
    return sum(math.prod(form) for form in shapes(name, hidden_size, num_bits, **options).values())


def count_buffer_bytes(name: str, hidden_size: int, num_bits: int, **options: Any) -> int:
    """Bytes of what such a head holds beside its parameters, such as the order of the tokens of an adaptive softmax.

    Without checksums (`codehead.codes.table`).
    """
    buffers = _on_meta(name, hidden_size, num_bits, options).named_buffers()
    return sum(values.nbytes for name, values in buffers if not name.endswith("seal.digest"))


def _on_meta(name: str, hidden_size: int, num_bits: int, options: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build(name, hidden_size, num_bits, **options)
