"""What the tensors of a decision layer are called in the files of a checkpoint: some architectures rename them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from codehead.errors import ConfigurationError
from codehead.models import stock


def own_names(model: Any) -> list[str]:
    """The names of the tensors of a coded model's head and decision layer."""
    prefixes = ("decision.", f"{stock.head_path(model)}.")
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def names_in_memory(model: Any, names: Iterable[str]) -> dict[str, str]:
    """The names in files, and under which `from_pretrained` puts each into the model, by its own conversion mapping."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # a circle: see registration.py
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping, state, prefix = get_model_conversion_mapping(model), model.state_dict(), model.base_model_prefix
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    found = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, _ = rename_source_key(name, [], [], prefix, state)
        found[name] = renamed
    return found


def refuse_lost_names(model: Any) -> None:
    """Raise a ConfigurationError if a tensor of a coded model's decision layer would not come back from a checkpoint.

    A save and a load of names, without tensors.
    """
    from transformers.core_model_loading import revert_weight_conversion

    for name in own_names(model):
        saved = revert_weight_conversion(model, {name: torch.empty(1, device="meta")})
        if list(names_in_memory(model, saved).values()) != [name]:
            raise ConfigurationError(
                f"{type(model).__name__} renames tensors on saving: a checkpoint calls {name} {', '.join(saved)}, and "
                "it would not be found again on loading; choose another head or another architecture"
            )
