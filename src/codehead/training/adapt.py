"""What a run trains: everything, the head alone, or LoRA on the attention with the head."""

from __future__ import annotations

from typing import Any

from torch import nn

from codehead.boundaries import reason
from codehead.errors import ConfigurationError
from codehead.models import is_coded
from codehead.models.backbone import attention_projections, is_transposed, untie
from codehead.models.stock import head_path
from codehead.training.config import LoraConfig, RunConfig


def adapt(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model to train. `head` and `lora` first untie a Softmax head that shares the embedding's weight."""
    if config.adapt == "full":
        return model
    untie(model)
    if config.adapt == "head":
        model.requires_grad_(False)
        for path in decision_paths(model):
            model.get_submodule(path).requires_grad_(True)
        return model
    return with_lora(model, config.lora)


def merge(model: nn.Module) -> nn.Module:
    """The plain model with its adapters folded into the weights."""
    merge_and_unload: Any = getattr(model, "merge_and_unload", None)
    return model if merge_and_unload is None else merge_and_unload()


def with_lora(model: nn.Module, options: LoraConfig) -> nn.Module:
    """A model of which adapters, and the head as it is, are trained; `merge` makes it plain again."""
    import peft

    names, found = find_targets(model, options)
    settings = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=names,
        modules_to_save=decision_paths(model),
        fan_in_fan_out=is_transposed(model, found),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(f"lora: peft refuses these options: {reason(error)}; change them") from error


def find_targets(model: nn.Module, options: LoraConfig) -> tuple[list[str], list[str]]:
    """The names that `target_modules` means, and the modules they match; ConfigurationError if there are none."""
    targets = options.target_modules
    if targets == "auto":
        targets = attention_projections(model)
    names = [targets] if isinstance(targets, str) else list(targets)
    found = [name for name, _ in model.named_modules() if _is_one_of(name, names)]
    if not found:
        raise ConfigurationError(
            f"lora.target_modules {options.target_modules!r} matches no module of {type(model).__name__}; "
            "name its projections, for example [q_proj, v_proj]"
        )
    return names, found


def decision_paths(model: Any) -> list[str]:
    """The modules that hold the parameters of the decision layer."""
    parts = ("corrections", "chain") if is_coded(model) else ()
    return [head_path(model), *(f"decision.{part}" for part in parts if getattr(model.decision, part) is not None)]


def _is_one_of(path: str, names: list[str]) -> bool:
    return any(path == name or path.endswith("." + name) for name in names)
