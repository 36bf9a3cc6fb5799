"""Text that a causal language model writes itself: it needs no data, and is as varied as what the model has learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from codehead.models.probe import evaluating


def write(model: Any, first: Tensor, length: int, seed: int) -> Tensor:
    """Texts `(texts, length)` that continue the tokens `first` `(texts, n)`, on the CPU.

    They are sampled from the whole distribution, as the model learnt it, whatever its `generation_config` and mode, and
    none ends early: `length` is at most what the model takes.
    """
    device, missing, start = model.device, length - first.shape[1], first.to(model.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        with evaluating(model), _sampling(model, missing):
            ids = model.generate(start, attention_mask=torch.ones_like(start))
    return ids.clone().cpu()


@contextmanager
def _sampling(model: Any, length: int) -> Iterator[None]:
    """Let a model generate exactly `length` tokens; its own settings would fill whatever is not given."""
    kept = model.generation_config
    model.generation_config = type(kept)(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=length, max_new_tokens=length,
        pad_token_id=0, eos_token_id=kept.eos_token_id,
    )  # fmt: skip
    try:
        yield
    finally:
        model.generation_config = kept


def beginnings(start: Sequence[int], texts: int, vocabulary: int, seed: int) -> Tensor:
    """`(texts, n + 1)`: the `n` tokens that start every text, and one drawn from the whole vocabulary.

    A text goes on in the language or the kind of its beginning, so that rare tokens come up.
    """
    drawn = torch.randint(vocabulary, (texts, 1), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.tensor([list(start)] * texts, dtype=torch.long).view(texts, -1), drawn], 1)
