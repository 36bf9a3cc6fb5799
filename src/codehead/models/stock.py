"""The stock model before it was coded, how it is restored, and coded heads on quantised backbones (QLoRA).

transformers has one slot for a quantizer. In memory it stays the backbone's, with everything PEFT and the Trainer look
for; in `config.json` codehead's entry wraps the backbone's. The head itself is never quantised.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn

from codehead.errors import ConfigurationError
from codehead.models import guards
from codehead.models.description import QUANTIZERS

SOFT_CAP = "final_logit_softcapping"
"""Gemma's `cap · tanh(logits / cap)`, applied to whatever the head returns; None switches it off."""
FIXED_SOFT_CAPS = ("logits_soft_cap", "output_logit_soft_cap")
"""The same in models that offer no way to switch it off."""
TIED = "tie_word_embeddings"
"""Whether weights are tied; some configurations do not say, and some say so of weights that differ."""
NO_CAP = 2.0**100
"""A soft cap that changes nothing, for configurations that forbid None; in float16, `logits / cap` would be 0."""
GGUF = "gguf"
"""The quantisation method that transformers gives a model read from a GGUF file. If it has no kernels for the blocks of
the file, it unpacks them to ordinary weights, yet still treats the model as quantised, and refuses to save it."""


@dataclass
class Kept:
    """Kept with a coded model but neither trained nor saved, because it is not a module."""

    head: nn.Module | None
    """The stock head, which `detach` restores."""
    loss_type: str | None
    frozen_seen: bool = False
    """Whether the model was found training with a frozen head: this is checked once."""
    request: Any = None
    """The request of a TRL trainer (`codehead.models.trl_trainers`)."""


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
    """The cap in `cap · tanh(logits / cap)`, if the configuration of a model names one."""
    config = model.config.get_text_config()
    caps = (getattr(config, name, None) for name in (SOFT_CAP, *FIXED_SOFT_CAPS))
    return next((float(cap) for cap in caps if cap not in (None, NO_CAP)), None)


def refuse_fixed_soft_cap(model: Any) -> None:
    """Raise a ConfigurationError if the soft cap of logits cannot be switched off: it would distort bit logits."""
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
    """Fields that `alter` will change: tying, whether heads have a bias and, unless it stays `capped`, the soft cap."""
    has_bias = old.bias is not None and not guards.refuses_saving(model)
    is_tied = bool(getattr(model.config, TIED, False)) and old.weight is model.get_input_embeddings().weight
    values = {"bias": has_bias, TIED: is_tied}
    cap = getattr(model.config.get_text_config(), SOFT_CAP, None)
    return values if capped or cap is None else {**values, SOFT_CAP: cap}


def alter(model: Any, stock: dict[str, Any]) -> None:
    """Untie the head and switch soft-capping off where `stock` records it, in the model's own copy of the config."""
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
    """Raise a ConfigurationError if a soft cap switched off by a large value would turn float16 outputs into zeros."""
    cap = getattr(model.config.get_text_config(), SOFT_CAP, None)
    if cap == NO_CAP and outputs.dtype == torch.float16:
        raise ConfigurationError(
            f"{type(model).__name__} soft-caps its logits, and its configuration allows only a large value instead of "
            "None, which float16 cannot hold; use bfloat16 or float32"
        )


def without_head(model: nn.Module, ties: dict[str, str]) -> dict[str, str]:
    """The tied weights that are not the head's."""
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
    """The weight of the load balancing loss of a mixture of experts, from the model or its configuration."""
    config = model.config.get_text_config()
    for holder, name in ((model, "router_aux_loss_coef"), (config, "router_aux_loss_coef"), (config, "aux_loss_coef")):
        if getattr(holder, name, None) is not None:
            return float(getattr(holder, name))
    raise ConfigurationError(
        f"{type(model).__name__} reports a load balancing loss but no weight for it; set "
        "model.config.router_aux_loss_coef (0 omits it)"
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


# The quantizer of the backbone.


def is_unpacked(model: Any) -> bool:
    """Whether a model was read from a GGUF file, and all its weights are now ordinary floats."""
    method = getattr(model, "quantization_method", None)
    return bool(method == GGUF and all(values.is_floating_point() for values in model.parameters()))


def clear_marks(model: Any) -> None:
    """Let transformers treat an unpacked model as what it is: a stock one, which can be trained and saved."""
    if is_unpacked(model):
        model.hf_quantizer.remove_quantization_config(model)
        vars(model.config).pop("_is_quantized", None)


def check_backbone(model: Any) -> None:
    """Raise a ConfigurationError if a head cannot be attached to a model quantised in this way."""
    method = str(getattr(model.quantization_method, "value", model.quantization_method))
    if method not in QUANTIZERS:
        raise ConfigurationError(
            f"cannot attach to a model quantised with {method}: a coded head works on backbones quantised with "
            f"{', '.join(QUANTIZERS)}. Load the model unquantised, a GGUF file with "
            "quantization_config=GgufConfig(dequantize=True)"
        )
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or not head.weight.is_floating_point():
        raise ConfigurationError(
            f"cannot attach to a model whose output embedding is quantised with {method}: a coded head starts from its "
            "rows. Exclude it: llm_int8_skip_modules=['lm_head'] (bitsandbytes), modules_to_not_convert=['lm_head'] "
            "(torchao, quanto)"
        )


def quantizer_entry(model: Any) -> dict[str, Any] | None:
    """The entry of a model's quantizer in `config.json`; None if there is none."""
    quantizer = getattr(model, "hf_quantizer", None)
    return None if quantizer is None else json.loads(json.dumps(quantizer.quantization_config.to_dict()))


def give_back_quantizer(model: Any) -> None:
    """Replace codehead's entry by the configuration of the backbone's quantizer; remove it if there is none."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        del model.config.quantization_config
    else:
        model.config.quantization_config = quantizer.quantization_config


def ready_to_train(model: Any) -> None:
    """Undo bitsandbytes' repacking of 4-bit weights for evaluation on a CPU: no gradient passes through it."""
    if getattr(model, "is_quantized", False):
        for module in model.modules():
            state = getattr(module._parameters.get("weight"), "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes undoes the repacking for saving


def was_quantised(model: Any) -> bool:
    """Whether the backbone was quantised in its checkpoint; transformers cannot revert its renaming of tensors."""
    return bool(getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False))


@contextmanager
def saving_quantised(model: Any, state: dict[str, Tensor]) -> Iterator[None]:
    """Let transformers' `save_pretrained`, which asks the quantizer for the tensors to save, write those of `state`."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        yield
        return
    packed, metadata = quantizer.get_state_dict_and_metadata(SimpleNamespace(state_dict=lambda: state))
    quantizer.get_state_dict_and_metadata = lambda _: (state if packed is None else packed, metadata)
    try:
        yield
    finally:
        del quantizer.get_state_dict_and_metadata


def with_head(entry: dict[str, Any], loader: Any) -> Any:
    """The quantizer of a checkpoint's backbone, made from its entry; it runs the loader of the head after its own."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer: Any = AutoHfQuantizer.from_config(dict(entry), pre_quantized=True)
    kind: Any = type(quantizer)
    quantizer.__class__, quantizer.head_loader = _class_with_head(kind), loader
    return quantizer


@functools.cache
def _class_with_head(kind: Any) -> Any:
    """A subclass of the quantizer `kind` that also loads a head, and becomes `kind` again once the model is loaded."""

    class WithHead(kind):
        head_loader: Any

        def update_device_map(self, device_map: Any) -> Any:
            return super().update_device_map(self.head_loader.update_device_map(device_map))

        def update_attn_implementation(self, config: Any) -> Any:
            return super().update_attn_implementation(self.head_loader.update_attn_implementation(config))

        def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
            super()._process_model_before_weight_loading(model, **options)
            self.head_loader._process_model_before_weight_loading(model, **options)

        def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
            super()._process_model_after_weight_loading(model, **options)
            self.head_loader.finish(model)
            del self.head_loader
            self.__class__ = kind
            return model

    return WithHead
