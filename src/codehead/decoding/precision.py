"""In what precision scores are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """In float32, or float64 if they are: sums of many bits rounded to bfloat16 would tie."""
    return values if values.dtype == torch.float64 else values.float()


def no_autocast(device_type: str) -> AbstractContextManager[None]:
    """Switches automatic mixed precision off on such a device."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()
