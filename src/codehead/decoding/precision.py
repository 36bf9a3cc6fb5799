"""In what precision scores are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from codehead.errors import ConfigurationError, DataError

ROOM = {torch.float32: 1e30, torch.float64: 1e300}
"""The largest number of which many can be added up in a dtype without overflow."""


def require_real(name: str, values: Tensor) -> None:
    """Raise a ConfigurationError unless the values, the argument `name`, are real floating-point numbers."""
    if not values.is_floating_point():
        raise ConfigurationError(
            f"{name} must be floating-point numbers, got {values.dtype}; convert them first (hard bits to ±1.0, not to "
            "0 and 1)"
        )


def require_whole(name: str, values: Tensor) -> None:
    """Raise a DataError unless the values, the argument `name`, are whole numbers."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"{name} must be whole numbers, got {values.dtype}; give class ids, e.g. as torch.int64")


def wide(values: Tensor) -> Tensor:
    """In float32, or float64 if they are: sums of many bits rounded to bfloat16 would tie."""
    return values if values.dtype == torch.float64 else values.float()


def roomy(values: Tensor) -> Tensor:
    """As `wide`, but in float64 where sums of values this large would overflow float32.

    Values are looked at on the CPU alone: elsewhere it would wait for the device, and a graph cannot branch.

    Raises:
        ConfigurationError: float64 would overflow too.
    """
    values = wide(values)
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return values
    largest = float(values.detach().abs().max())
    if ROOM[torch.float64] < largest < torch.inf:
        raise ConfigurationError(
            f"bit logits as large as {largest:.0e} overflow when they are added up; scale them down (at most 1e300)"
        )
    return values.double() if ROOM[torch.float32] < largest < torch.inf else values


def narrowed(scores: Tensor, dtype: torch.dtype, *, shifted: bool) -> Tensor:
    """Scores `(…, V)` in a dtype that may not hold them: what is out of its range becomes its end.

    `shifted` log-likelihoods, which are defined up to a constant of the position, have their best at 0: so no
    probability is lost.
    """
    if scores.dtype == dtype:
        return scores
    if shifted:
        scores = scores - scores.detach().amax(-1, keepdim=True)
    limit = torch.finfo(dtype).max
    return scores.clamp(-limit, limit).to(dtype)


def no_autocast(device_type: str) -> AbstractContextManager[None]:
    """Switches automatic mixed precision off on such a device."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()
