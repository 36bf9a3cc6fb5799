"""What a run trains: everything, the head alone, or LoRA on the attention with the head; and in which dtype."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from codehead.boundaries import reason
from codehead.errors import ConfigurationError
from codehead.models.stock import head_path
from codehead.models.surgery import is_coded
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


INSTRUCTIONS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
"""What torch calls the instructions, x86 and ARM, of which one is enough."""


def in_native_dtype(model: Any, device: torch.device) -> Any:
    """The model, in float32 if it will compute on a processor without its dtype's arithmetic; a warning says so."""
    if device.type != "cpu" or is_native(model.dtype):
        return model
    name = str(model.dtype).removeprefix("torch.")
    warnings.warn(
        f"this processor has no {name} arithmetic, so the model is computed and saved in float32, which is faster "
        f"here and takes twice the memory; --dtype {name} keeps it as stored",
        stacklevel=2,
    )
    return model.float()


def is_native(dtype: torch.dtype) -> bool:
    """Whether the processor has instructions for arithmetic in a dtype."""
    return dtype not in INSTRUCTIONS or any(capabilities().get(name) for name in INSTRUCTIONS[dtype])


def capabilities() -> Mapping[str, Any]:
    """What the processor can do, as torch tells it; a torch too old for that tells of nothing."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found
