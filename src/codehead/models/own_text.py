"""Text that a causal language model writes itself: it needs no data, and is as varied as what the model has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def write(model: Any, first: Tensor, length: int, seed: int) -> Tensor:
    """Texts `(texts, length)` that continue the tokens `first` `(texts, n)`, on the CPU.

    They are sampled from the whole distribution, as the model learnt it, and none ends early: `length` is at most what
    the model takes.
    """
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        missing, start = length - first.shape[1], first.to(device)
        ids = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            repetition_penalty=1.0, min_new_tokens=missing, max_new_tokens=missing, pad_token_id=0,
        )  # fmt: skip
    return ids.clone().cpu()


def beginnings(start: Sequence[int], texts: int, vocabulary: int, seed: int) -> Tensor:
    """`(texts, n + 1)`: the `n` tokens that start every text, and one drawn from the whole vocabulary.

    A text goes on in the language or the kind of its beginning, so that rare tokens come up.
    """
    drawn = torch.randint(vocabulary, (texts, 1), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.tensor([list(start)] * texts, dtype=torch.long).view(texts, -1), drawn], 1)
