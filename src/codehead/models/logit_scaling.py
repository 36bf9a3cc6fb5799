"""What a model does to the outputs of its head: most nothing, some multiply them, some cap them softly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.models.probe import probe
from codehead.models.stock import soft_cap

ROUNDING = 1e-4
"""A factor this near to 1 is none: a soft cap was undone to find it."""
CLOSE = 1e-2
"""Outputs this near to what is expected are it: some models round them to a low precision."""


@dataclass(frozen=True)
class LogitScaling:
    """`cap · tanh(scale · outputs / cap)`; without a cap, `scale · outputs`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        scaled = outputs if self.scale == 1 else self.scale * outputs
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    @classmethod
    def of(cls, model: Any, width: int = 1) -> LogitScaling:
        """That of a model, stock or coded, whose head has `width` outputs, from a forward pass of a few tokens.

        Granite divides, Cohere multiplies, and names in configurations mean one or the other; so it is looked at.
        ConfigurationError on the meta device, or if what leaves the model is anything else.
        """
        if next(model.parameters()).is_meta:
            raise ConfigurationError(
                f"what {type(model).__name__} does to its logits is seen by a forward pass, but its weights are on the "
                "meta device; load them first"
            )
        answer = torch.linspace(1, -1, width)
        outputs, _ = probe(model, answer)
        found, cap = outputs.logits.float().cpu(), soft_cap(model)
        first = float(found.flatten()[0])
        scale = first if cap is None or abs(first) >= cap else cap * math.atanh(first / cap)
        tail = cls(1.0 if math.isclose(scale, 1, rel_tol=ROUNDING) else scale, cap)
        expected = tail(answer).expand(*found.shape[:-1], -1)
        if found.shape != expected.shape or not torch.allclose(found, expected, CLOSE, CLOSE * abs(first)):
            raise ConfigurationError(
                f"{type(model).__name__} changes the outputs of its head, and not all in proportion (it masks tokens "
                "or adds to them): that would change bit logits; use code='one_vs_all' or another architecture"
            )
        return tail


@dataclass(frozen=True)
class SoftmaxHead:
    """What a stock model makes of hidden states `(…, hidden)`: its logits `(…, V)`, in float32.

    By the module `head` itself and no copy; scaled or capped where the model does so.
    """

    head: nn.Linear
    tail: LogitScaling

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.tail(self.head(hidden.to(self.head.weight)).float())

    def of_some(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits `(…, tokens)` of the tokens `ids` `(tokens,)` alone."""
        bias = None if self.head.bias is None else self.head.bias[ids]
        return self.tail(F.linear(hidden.to(self.head.weight), self.head.weight[ids], bias).float())


def softmax_head(model: Any) -> SoftmaxHead:
    """The head that a stock model has now."""
    return SoftmaxHead(model.get_output_embeddings(), LogitScaling.of(model))
