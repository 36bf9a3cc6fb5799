"""In what precision scores are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from codehead.errors import ConfigurationError, DataError

NARROW = 1e3
"""Up to this size, sums of some hundred bit logits in float32 are right to a hundredth."""
UNEVEN = 1e8
"""Beyond this size, a bit logit of about 1 hardly changes a sum in float64."""
LARGEST = 1e300
"""Sums of some thousand numbers up to this size do not overflow float64."""


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
    """As `wide`, but in float64 where sums of values this large would round to equal numbers or overflow in float32.

    Raises:
        ConfigurationError: float64 would overflow too.
    """
    values, largest = wide(values), _largest(values)
    if LARGEST < largest < torch.inf:
        raise ConfigurationError(
            f"bit logits as large as {largest:.0e} overflow when they are added up; scale them to {LARGEST:.0e} at most"
        )
    return values.double() if NARROW < largest < torch.inf else values


def is_uneven(values: Tensor) -> bool:
    """Whether some of the values are so large that others are lost in a sum with them."""
    return _largest(values) > UNEVEN


def _largest(values: Tensor) -> float:
    """The largest absolute value, NaN if there is one; 0 where looking would wait for a device or break a graph."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return 0.0
    return float(values.detach().abs().max())


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
