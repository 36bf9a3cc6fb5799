"""What a model does to the outputs of its head: most nothing, some multiply them, some cap them softly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError
from codehead.models.stock import replace_head, soft_cap

ROUNDING = 1e-4
"""A factor this near to 1 is none: a soft cap was undone to find it."""


@dataclass(frozen=True)
class Tail:
    """`cap · tanh(scale · outputs / cap)`; without a cap, `scale · outputs`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        scaled = outputs if self.scale == 1 else self.scale * outputs
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> Tail:
        """That of a model, stock or coded, from a forward pass of one token whose head says 1.

        Granite divides, Cohere multiplies, and names in configurations mean one or the other; so it is looked at.
        ConfigurationError on the meta device.
        """
        head, device = model.get_output_embeddings(), next(model.parameters()).device
        if device.type == "meta":
            raise ConfigurationError(
                f"what {type(model).__name__} does to its logits is seen by a forward pass, but its weights are on the "
                "meta device; load them first"
            )
        replace_head(model, _One())
        try:
            forward = getattr(model, "head_outputs", None) or (lambda **inputs: model(**inputs).logits)
            found = float(forward(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False).max())
        finally:
            replace_head(model, head)
        cap = soft_cap(model)
        scale = found if cap is None else cap * math.atanh(found / cap)
        return cls(1.0 if math.isclose(scale, 1, rel_tol=ROUNDING) else scale, cap)


def softmax_head(model: Any) -> Callable[[Tensor], Tensor]:
    """What a stock model makes of hidden states `(…, hidden)`: its logits `(…, V)`, in float32.

    By the head that it has now, the module itself and no copy; scaled or capped where the model does so.
    """
    head, tail = model.get_output_embeddings(), Tail.of(model)
    return lambda hidden: tail(head(hidden.to(head.weight)).float())


class _One(nn.Module):
    """Gives 1 where logits are expected, in float32 so that a factor is not rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.new_ones((*hidden.shape[:-1], 1), dtype=torch.float32)
