"""Learning rates of a decision layer that knows its tokens already, beside those of the trunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from codehead.training.config import RunConfig
from codehead.training.distil import row_sizes

STEADY = 0.01
"""Of the median root mean square of a tensor's rows: how far they move in a step at most."""


def decision_rates(
    model: nn.Module, paths: list[str], config: RunConfig, learning_rate: float
) -> dict[str, float]:
    """A learning rate for each trained tensor of the decision layer, by its name in the `model` that is trained.

    `paths` are the modules of the decision layer. The rate is `config.head_learning_rate`; by default that of the run,
    and for a code that began near the old head no more than STEADY allows: the rows of a code serve all tokens at once,
    so that a score adds up what hundreds of them moved by, and steps that suit a trunk undo what the head knows. Empty
    if all learns at the rate of the run.
    """
    if config.head_learning_rate is None and not _began_near(config):
        return {}
    named = {
        name: values
        for name, values in model.named_parameters()
        if values.requires_grad and any(f".{path}." in f".{name}" for path in paths)
    }
    if config.head_learning_rate is not None:
        return dict.fromkeys(named, config.head_learning_rate)
    return {name: min(learning_rate, STEADY * _size(values)) for name, values in named.items()}


def give_own_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Move the parameters of a `model` named in `rates` into groups of their own, before the first step."""
    own = {id(values): rates[name] for name, values in model.named_parameters() if name in rates}
    for group in list(optimizer.param_groups):
        moved = [values for values in group["params"] if id(values) in own]
        group["params"] = [values for values in group["params"] if id(values) not in own]
        options = {key: value for key, value in group.items() if key != "params"}
        for values in moved:
            optimizer.add_param_group({**options, "params": [values], "lr": own[id(values)]})


def _began_near(config: RunConfig) -> bool:
    """Whether a code begins where the old head was."""
    decision = config.decision or {}
    return decision.get("code") != "one_vs_all" and (config.distil is not None or decision.get("start") == "old_head")


def _size(values: torch.Tensor) -> float:
    return float(row_sizes(values.detach().float()).median())
