"""A forward pass of a few tokens with known numbers in the place of the head's outputs: what a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError
from codehead.models.stock import replace_head

LENGTH = 4
"""Tokens per sequence."""


class Probe(nn.Module):
    """Stands where the output embedding is: keeps what it is given, and answers every position with the same numbers.

    They are float32, so that a factor is not rounded. The weight is empty, but has the dtype of the output embedding's,
    which some models (Mamba) ask for.
    """

    seen: Tensor

    def __init__(self, answer: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return self.answer.to(hidden.device).expand(*hidden.shape[:-1], -1).clone()


@torch.no_grad()
def probe(model: Any, answer: Tensor, **inputs: Tensor) -> tuple[Any, Tensor]:
    """The outputs of a model, stock or coded, whose head answers every position with `answer` `(width,)`.

    With them what the head was given, `(2, LENGTH, hidden)`: two sequences that are different from the second token on.
    ConfigurationError if the model cannot be run on them.
    """
    head, modes = model.get_output_embeddings(), [(module, module.training) for module in model.modules()]
    stand_in = Probe(answer, next(head.parameters()).dtype)
    forward: Callable[..., Any] = getattr(model, "_stock_outputs", model)
    inputs["input_ids"] = _sequences(model)
    inputs = {name: values.to(next(model.parameters()).device) for name, values in inputs.items()}
    replace_head(model, stand_in)
    model.eval()
    try:
        outputs = forward(**inputs, use_cache=False, return_dict=True)
    except Exception as error:
        raise ConfigurationError(
            f"{type(model).__name__} cannot be run on {LENGTH} tokens with {len(answer)} outputs of its head "
            f"({type(error).__name__}: {error}); use a causal language model that runs on input_ids alone and takes "
            "any number of outputs from its head (as many as before, if code='one_vs_all')"
        ) from error
    finally:
        replace_head(model, head)
        for module, mode in modes:
            module.training = mode
    return outputs, stand_in.seen


def _sequences(model: Any) -> Tensor:
    """Two sequences of tokens that begin with the same one, `(2, LENGTH)`, without special tokens if possible."""
    num_tokens = model.get_input_embeddings().weight.shape[0]
    special = set(_special(model.config.to_dict()))
    usual = [token for token in range(min(num_tokens, len(special) + 3)) if token not in special]
    first, second, third = [*usual, *range(num_tokens), *usual, 0, 0][:3]
    rows = [[first] + [other] * (LENGTH - 1) for other in (second, third)]
    return torch.tensor(rows)


def _special(config: dict[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif isinstance(value, int) and name.endswith(("_id", "_index")):
            yield value
