"""What a stock model looked like before it was coded, and how it is put back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn

from codehead.errors import ConfigurationError
from codehead.models import guards

SOFT_CAP = "final_logit_softcapping"
"""Gemma's `cap · tanh(logits / cap)`, applied to whatever the head returns; None switches it off."""
FIXED_SOFT_CAPS = ("logits_soft_cap", "output_logit_soft_cap")
"""The same in models that offer no way to switch it off."""
TIED = "tie_word_embeddings"
"""Whether weights are tied; some configurations do not say."""
NO_CAP = 2.0**100
"""A soft cap that changes nothing, for configurations that allow no None; of a float16, `logits / cap` would be 0."""


@dataclass
class Kept:
    """Kept with a coded model but neither trained nor saved, because it is not a module."""

    head: nn.Module | None
    """The stock head, which `detach` puts back."""
    loss_type: str | None
    frozen_seen: bool = False
    """Whether the model was found training with a frozen head: it is looked at once."""
    request: Any = None
    """What a trainer of TRL asked for (`codehead.models.trl_trainers`)."""


def head_path(model: nn.Module) -> str:
    """Dotted name of the output embedding, found by identity: `lm_head`, `embed_out`, …"""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if module is head:
            return name
    raise ConfigurationError(
        f"{type(model).__name__} has no output embedding to replace; attach works on causal language "
        "models, such as AutoModelForCausalLM loads"
    )


def replace_head(model: nn.Module, head: nn.Module) -> None:
    """Put `head` where the output embedding is."""
    parent, _, name = head_path(model).rpartition(".")
    setattr(model.get_submodule(parent), name, head)


def soft_cap(model: Any) -> float | None:
    """The cap in `cap · tanh(logits / cap)`, where the configuration of a model names one."""
    config = model.config.get_text_config()
    caps = (getattr(config, name, None) for name in (SOFT_CAP, *FIXED_SOFT_CAPS))
    return next((float(cap) for cap in caps if cap not in (None, NO_CAP)), None)


def refuse_fixed_soft_cap(model: Any) -> None:
    """Raise a ConfigurationError where logits are soft-capped for good: bit logits would be distorted."""
    config = model.config.get_text_config()
    fixed = [name for name in FIXED_SOFT_CAPS if getattr(config, name, None) is not None]
    fixed += [
        name for name in (*vars(model), *model._modules) if "softcap" in name and getattr(model, name) is not None
    ]
    if fixed:
        raise ConfigurationError(
            f"{type(model).__name__} soft-caps its logits ({fixed[0]}) with no way to switch it off, which "
            "would distort bit logits; use code='one_vs_all' or another architecture"
        )


def before(model: Any, old: nn.Linear, *, capped: bool) -> dict[str, Any]:
    """What `alter` is about to change: tying, whether heads have a bias and, unless it stays `capped`, the soft cap."""
    has_bias = old.bias is not None and not guards.refuses_saving(model)
    values = {"bias": has_bias, TIED: bool(getattr(model.config, TIED, False))}
    cap = getattr(model.config.get_text_config(), SOFT_CAP, None)
    return values if capped or cap is None else {**values, SOFT_CAP: cap}


def alter(model: Any, stock: dict[str, Any]) -> None:
    """Untie the head and switch soft-capping off where `stock` records it, in a configuration of the model's own."""
    _own_config(model)
    others = without_head(model, model.get_expanded_tied_weights_keys(all_submodels=True))
    if hasattr(model.config, TIED):
        model.config.tie_word_embeddings = bool(others)
    if SOFT_CAP in stock:
        config = model.config.get_text_config()
        try:
            setattr(config, SOFT_CAP, None)
        except StrictDataclassFieldValidationError:
            setattr(config, SOFT_CAP, NO_CAP)


def refuse_half(model: Any, outputs: Tensor) -> None:
    """Raise a ConfigurationError where a soft cap that is switched off by a large value would make zeros of float16."""
    cap = getattr(model.config.get_text_config(), SOFT_CAP, None)
    if cap == NO_CAP and outputs.dtype == torch.float16:
        raise ConfigurationError(
            f"{type(model).__name__} soft-caps its logits, and its configuration allows only a large value in place of "
            "none, which float16 cannot hold; use bfloat16 or float32"
        )


def without_head(model: nn.Module, ties: dict[str, str]) -> dict[str, str]:
    """Of tied weights those that are not the head's."""
    head = f"{head_path(model)}."
    return {name: source for name, source in ties.items() if not name.startswith(head) and not source.startswith(head)}


def _own_config(model: nn.Module) -> None:
    """Copy the configuration, which other models may share, for the model and the modules that hold parts of it."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        config = vars(module).get("config")
        if id(config) in copies:
            module.config = copies[id(config)]


def router_coefficient(model: Any) -> float:
    """The weight of the load balancing loss of a mixture of experts, where its class keeps it."""
    config = model.config.get_text_config()
    for holder, name in ((model, "router_aux_loss_coef"), (config, "router_aux_loss_coef"), (config, "aux_loss_coef")):
        if getattr(holder, name, None) is not None:
            return float(getattr(holder, name))
    raise ConfigurationError(
        f"{type(model).__name__} reports a load balancing loss but no weight for it; set "
        "model.config.router_aux_loss_coef (0 leaves it out)"
    )


def restore(model: Any, stock: dict[str, Any]) -> None:
    """Undo `alter`; a head that was tied shares the weight of the input embedding again."""
    restore_config(model.config, stock)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.tie_weights()


def restore_config(config: Any, stock: dict[str, Any]) -> None:
    """Undo what `alter` does to a configuration."""
    if SOFT_CAP in stock:
        setattr(config.get_text_config(), SOFT_CAP, stock[SOFT_CAP])
    if hasattr(config, TIED):
        config.tie_word_embeddings = stock[TIED]


def tied_head(model: Any) -> nn.Linear:
    """An empty Softmax head for a model that will tie it to its input embedding, `(V, hidden)`."""
    with torch.device("meta"):
        num_classes, hidden_size = model.get_input_embeddings().weight.shape
        return nn.Linear(hidden_size, num_classes, bias=False)
