"""Scales of a head's outputs, folded into its last map: no new parameter, no new code path."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codehead.errors import ConfigurationError
from codehead.heads.shortlist import ShortlistHead


def last_map(head: nn.Module) -> list[nn.Parameter]:
    """The weight `(n, …)` and, if there is one, the bias `(n,)` that a row each makes the n bit logits.

    They are `output_weight` and `output_bias` of a head that has them, otherwise weight and bias of a linear map; of a
    head with a shortlist, those of its bits. ConfigurationError if the head ends in something else.
    """
    bits = head.bits if isinstance(head, ShortlistHead) else head
    if parametrize.is_parametrized(bits):
        raise ConfigurationError(
            f"the weights of this {type(bits).__name__} are made from others, such as int8, and cannot be scaled; "
            "scale them before they are rounded"
        )
    parameters = dict(bits.named_parameters(recurse=False))
    prefix = "output_" if "output_weight" in parameters else ""
    if not prefix and not isinstance(bits, nn.Linear):
        raise ConfigurationError(
            f"the outputs of a {type(bits).__name__} cannot be scaled: it does not end in one linear map with a row "
            "per bit; choose head='linear', 'mtl', 'tower' or 'low_rank', or call that map output_weight, output_bias"
        )
    return [parameters[prefix + name] for name in ("weight", "bias") if prefix + name in parameters]


@torch.no_grad()
def scale_outputs(head: nn.Module, scales: Tensor) -> None:
    """Multiply the bit logits of a head by `scales`, `(n,)`, or `(1,)` for all; a shortlist's rows stay.

    ConfigurationError as `last_map`.
    """
    for parameter in last_map(head):
        precision = torch.promote_types(parameter.dtype, torch.float32)
        factors = scales.to(parameter.device, precision).reshape(-1, *[1] * (parameter.ndim - 1))
        parameter.copy_(parameter * factors)
