"""Coded heads on quantised backbones (QLoRA).

transformers has one slot for a quantizer. In memory it stays that of the backbone, with all that PEFT and the Trainer
look for; in `config.json` the entry of codehead wraps the other's. The head itself is never quantised.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from codehead.errors import ConfigurationError

METHODS = ("bitsandbytes", "torchao", "quanto")
"""The quantizers that a coded head was tried with, as transformers calls them."""


def check_backbone(model: Any) -> None:
    """Raise a ConfigurationError if a head cannot be attached to a model that is quantised as it is."""
    method = str(getattr(model.quantization_method, "value", model.quantization_method))
    if method not in METHODS:
        raise ConfigurationError(
            f"cannot attach to a model quantised with {method}: a coded head goes on backbones quantised with "
            f"{', '.join(METHODS)}. Load the model unquantised, a GGUF file with "
            "quantization_config=GgufConfig(dequantize=True)"
        )
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or not head.weight.is_floating_point():
        raise ConfigurationError(
            f"cannot attach to a model whose output embedding is quantised with {method}: a coded head begins at its "
            "rows. Leave it out: llm_int8_skip_modules=['lm_head'] (bitsandbytes), modules_to_not_convert=['lm_head'] "
            "(torchao, quanto)"
        )


def entry_of(model: Any) -> dict[str, Any] | None:
    """What `config.json` would say of the quantizer of a model; None if there is none."""
    quantizer = getattr(model, "hf_quantizer", None)
    return None if quantizer is None else json.loads(json.dumps(quantizer.quantization_config.to_dict()))


def give_back(model: Any) -> None:
    """Put the configuration of the backbone's quantizer where the entry of codehead is; nothing if it has none."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        del model.config.quantization_config
    else:
        model.config.quantization_config = quantizer.quantization_config


def ready_to_train(model: Any) -> None:
    """Undo what bitsandbytes does to weights of 4 bits when it evaluates on a CPU: no gradient comes through it."""
    if getattr(model, "is_quantized", False):
        for module in model.modules():
            state = getattr(module._parameters.get("weight"), "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # to save them, it undoes that by itself


def was_loaded(model: Any) -> bool:
    """Whether the backbone was quantised in its checkpoint; transformers cannot undo how it names those tensors."""
    return bool(getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False))


@contextmanager
def saving(model: Any, state: dict[str, Tensor]) -> Iterator[None]:
    """Let `save_pretrained` of transformers, which asks a quantizer for the tensors to save, write those of `state`."""
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
    """The quantizer of the backbone of a checkpoint, by its entry, which lets the loader of the head work after it."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer: Any = AutoHfQuantizer.from_config(dict(entry), pre_quantized=True)
    kind: Any = type(quantizer)
    quantizer.__class__, quantizer.head_loader = _class_with_head(kind), loader
    return quantizer


@functools.cache
def _class_with_head(kind: Any) -> Any:
    """A class of quantizers like `kind` that loads a head too, and is `kind` again once the model is loaded."""

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
