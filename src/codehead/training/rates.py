"""Learning rates of a decision layer that knows its tokens already, beside those of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError
from codehead.models import is_coded, named
from codehead.models.description import weights_checksum
from codehead.models.registration import METHOD
from codehead.training.config import RunConfig
from codehead.training.distil import row_sizes

STEADY = 0.01
"""Of the median root mean square of a tensor's rows: how far its weights move in a step at most."""


def decision_rates(
    model: nn.Module, paths: list[str], config: RunConfig, learning_rate: float, knowing: bool
) -> dict[str, float]:
    """A learning rate for each trained tensor of the decision layer, by its name in the `model` that is trained.

    `paths` are the modules of the decision layer. The rate is `config.head_learning_rate`; by default that of the run,
    and for a code that is `knowing` its tokens no more than `steady_rate`: the rows of a code serve all tokens at once,
    so that a score adds up what hundreds of them moved by, and steps that suit a backbone undo what the head knows.
    Empty
    if all learns at the rate of the run. ConfigurationError if the head is to have a rate of its own and cannot.
    """
    if config.head_learning_rate is None and not knowing:
        return {}
    named = {
        name: values
        for name, values in model.named_parameters()
        if values.requires_grad and any(f".{path}." in f".{name}" for path in paths)
    }
    if config.head_learning_rate is None:
        return {name: min(learning_rate, steady_rate(values)) for name, values in named.items()}
    if not named:
        raise ConfigurationError(
            f"head_learning_rate is {config.head_learning_rate}, but the head is the input embedding, which learns at "
            "training.learning_rate; omit it, or choose adapt: head or lora, which untie them"
        )
    return dict.fromkeys(named, config.head_learning_rate)


def steady_rate(values: Tensor) -> float:
    """The rate at which a tensor of a head keeps what it knows: STEADY of the median size of its rows.

    A single number is the scale of a bias in int8, and its size is its magnitude.
    """
    values = values.detach().float()
    return STEADY * float((values.abs() if values.numel() == 1 else row_sizes(values)).median())


def knows_its_tokens(model: Any, config: RunConfig) -> bool:
    """Whether a run begins with a code that was near an old head, or was trained before."""
    if not is_coded(model) or model.decision.table.is_implicit or config.is_pretraining:
        return False
    stored = getattr(named.configuration(str(config.model)), "quantization_config", None) or {}
    if stored.get("quant_method") == METHOD:
        is_fresh = stored.get("fresh", "") == weights_checksum(model.get_output_embeddings())
        return bool(model.decision.loss_name == "codeword") and not is_fresh
    return config.distil is not None or (config.decision is not None and config.decision.start == "old_head")


def give_own_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Move the parameters of a `model` named in `rates` into groups of their own, before the first step."""
    own = {id(values): rates[name] for name, values in model.named_parameters() if name in rates}
    groups = list(optimizer.param_groups)
    for group in groups:
        moved = [values for values in group["params"] if id(values) in own]
        group["params"] = [values for values in group["params"] if id(values) not in own]
        options = {key: value for key, value in group.items() if key != "params"}
        for values in moved:
            optimizer.add_param_group({**options, "params": [values], "lr": own[id(values)]})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
