"""What adapters are put on: the linear maps of attention blocks. The head beside them gets a weight of its own."""

from __future__ import annotations

from typing import Any

from torch import nn


def untie(model: nn.Module) -> None:
    """Give a tied Softmax head its own copy of the embedding, so that training it leaves the input alone."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    if getattr(head, "weight", None) is not getattr(embedding, "weight", None):
        return
    head.weight = nn.Parameter(embedding.weight.detach().clone())
    config: Any = model.config
    config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]


def attention_projections(model: nn.Module) -> list[str]:
    """Paths of the linear maps inside attention blocks, whatever the architecture calls them."""
    from transformers.pytorch_utils import Conv1D

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and any("attn" in part or "attention" in part for part in name.split(".")[:-1])
    ]


def is_transposed(model: nn.Module, names: list[str]) -> bool:
    """Whether these maps store their weight as (in, out), as GPT-2's Conv1D does."""
    return bool(names) and not isinstance(model.get_submodule(names[0]), nn.Linear)
