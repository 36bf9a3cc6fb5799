"""What dtype `auto` means: the checkpoint's own, unless the processor has no arithmetic in it.

A processor without instructions for bf16 converts every number to float32 and back: where many positions are computed
at once, that takes several times as long as float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

INSTRUCTIONS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
"""What torch calls the instructions, x86 and ARM, of which one is enough."""


def in_native_dtype(model: Any, device: torch.device) -> Any:
    """The model, in float32 if it will compute on a processor without its dtype's arithmetic; a warning says so."""
    if device.type != "cpu" or is_native(model.dtype):
        return model
    name = str(model.dtype).removeprefix("torch.")
    warnings.warn(
        f"this processor has no {name} arithmetic, so the model is computed and saved in float32, which is faster "
        f"here and takes twice the memory; --dtype {name} keeps it as stored",
        stacklevel=2,
    )
    return model.float()


def is_native(dtype: torch.dtype) -> bool:
    """Whether the processor has instructions for arithmetic in a dtype."""
    return dtype not in INSTRUCTIONS or any(capabilities().get(name) for name in INSTRUCTIONS[dtype])


def capabilities() -> Mapping[str, Any]:
    """What the processor can do, as torch tells it; a torch too old for that tells of nothing."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found
