"""Weights of a decision layer as 8-bit integers with a scale per row: half of bf16's bytes.

The integers are turned back into numbers whenever they are used, so that every part of a decision layer works as
before; they cannot be trained, their scales can.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codehead.errors import ConfigurationError
from codehead.models.surgery import Model, describe

LARGEST = 127


@torch.no_grad()
def to_int8(model: Model) -> Model:
    """Round the weights of a coded model's head, shortlist and bias per token to int8, in place.

    Every row (everything along the last axis) gets one scale, the largest magnitude over 127; a bias is one row.
    ConfigurationError if the model has no decision layer, or is rounded already.
    """
    target: Any = model
    describe(target, "round to int8")
    parts = (target.get_output_embeddings(), target.decision)
    if any(values.is_meta for part in parts for values in part.parameters()):
        raise ConfigurationError("weights that are offloaded cannot be rounded; load the model without a device_map")
    check_unrounded(target)
    round_parts(*parts)
    target.config.quantization_config = {**target.config.quantization_config, "rounded": True}
    return model


def check_unrounded(model: Any) -> None:
    """Raise ConfigurationError if the decision layer of a coded model is in int8."""
    if describe(model, "round to int8").rounded:
        raise ConfigurationError(
            "the weights of this decision layer are int8 already; leave int8 away, or give the checkpoint before it"
        )


def round_parts(head: nn.Module, decision: nn.Module) -> None:
    """Put integers in the place of all weights of a head, and of those of a decision."""
    for module, name in [*_weights(head), *_weights(decision)]:
        weight = module.get_parameter(name)
        trained = weight.requires_grad
        weight.requires_grad_(False)  # of integers there is no gradient
        parametrize.register_parametrization(module, name, _Rows(), unsafe=True)
        parts: Any = module.parametrizations[name]  # type: ignore[index]
        integers = parts.original0.data
        del parts.original0  # a parameter, which would tell its dtype to those who ask for that of the head
        parts.register_buffer("original0", integers)
        parts.original1.requires_grad_(trained)


def rounded_weights(module: nn.Module) -> int:
    """How many weights of a module and those in it are integers."""
    return sum(values.numel() for values in module.buffers() if values.dtype == torch.int8)


def _weights(root: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(module, name) for module in root.modules() for name in _own_weights(module)]


def _own_weights(module: nn.Module) -> Iterator[str]:
    for name, weight in module.named_parameters(recurse=False):
        if weight.numel():
            yield name


class _Rows(nn.Module):
    """Integers and the scale of each row ↔ the weights that they stand for."""

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        return integers.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, nn.Parameter]:
        scale = weight.abs().amax(-1, keepdim=True) / LARGEST
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a row of zeros
        integers = (weight.float() / scale.float()).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return integers, nn.Parameter(scale)
