"""A model that was trained in shards (FSDP2), as one again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def skeleton(model: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory, for `filled`; to be made before a model is sharded."""
    empty = {id(values): _empty(values) for values in model.parameters()}
    return copy.deepcopy(model, empty)


def filled(empty: nn.Module, model: nn.Module) -> nn.Module:
    """The skeleton of a sharded model with its parameters and buffers, on the CPU of the first process.

    Called by all processes; in the others the skeleton stays empty.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if state:
        empty.load_state_dict(state, assign=True)
    return empty


def _empty(values: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(values, device="meta"), requires_grad=values.requires_grad)
