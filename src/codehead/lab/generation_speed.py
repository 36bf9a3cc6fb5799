"""Tokens per second of greedy generation, several models in turns so that all meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError


@dataclass(frozen=True)
class Speed:
    """Generation speed of one model, prompts included."""

    new_tokens: int
    tokens_per_second: float
    """Median over the repeats."""
    repeats: list[float]
    """Tokens per second of every repeat, in order."""

    def as_dict(self) -> dict[str, Any]:
        """The speed as plain JSON values."""
        return asdict(self)


def generation_speed(
    models: Mapping[str, nn.Module],
    prompt: Tensor,
    *,
    attention_mask: Tensor | None = None,
    new_tokens: int = 32,
    repeats: int = 5,
) -> dict[str, Speed]:
    """Generate exactly `new_tokens` after every row of `prompt` (batch, length) `repeats` times with every model.

    Rows of different length are padded on the left, with 0 in `attention_mask` (batch, length) there.

    The models take turns (first repeat of all, second of all, …), so a machine that slows down slows all of
    them. One untimed round comes first.
    """
    if new_tokens < 1 or repeats < 1:
        raise ConfigurationError(f"new_tokens={new_tokens} and repeats={repeats} must be at least 1")
    mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            seconds = _generate(model, prompt, mask, new_tokens)
            if turn:
                rates[name].append(len(prompt) * new_tokens / seconds)
    return {name: Speed(new_tokens, median(values), values) for name, values in rates.items()}


@torch.no_grad()
def _generate(model: nn.Module, prompt: Tensor, mask: Tensor, new_tokens: int) -> float:
    """Seconds of one generation; an end-of-text token does not end it."""
    generator: Any = model
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    prompt, mask = prompt.to(device), mask.to(device)
    options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    _synchronise(prompt)
    start = time.perf_counter()
    generator.generate(prompt, attention_mask=mask, pad_token_id=0, **options)
    _synchronise(prompt)
    seconds = time.perf_counter() - start
    model.train(was_training)
    return seconds


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
