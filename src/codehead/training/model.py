"""The model of a run: built from an architecture or loaded, with its decision layer, ready to be adapted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from codehead.boundaries import library_bars_hidden, loading, reason
from codehead.config import DecisionConfig
from codehead.errors import CheckpointError, CodeheadError, ConfigurationError
from codehead.models import integrity, named, stock
from codehead.models.integrity import expect_layers, refuse_missing, shapes_in
from codehead.models.probe import refuse_non_causal
from codehead.models.surgery import is_coded
from codehead.registry import did_you_mean
from codehead.training.adapt import find_targets, in_native_dtype
from codehead.training.config import RunConfig, refuse_softmax_only
from codehead.training.data import Text, check_vocabulary
from codehead.training.loop import Work
from codehead.training.new_head import fit_decision_layer, looks_at_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase, text: Text, work: Work) -> nn.Module:
    """The model with the decision layer that `config.decision` asks for; None keeps the one it has.

    `text` is what the model will be trained on: a new decision layer that looks at text, or learns from the old head
    before the training, does so there, on the accelerator if there is one; the stages of `work` keep what that has
    come to.
    """
    if isinstance(config.model, dict):
        model = new_model(config.model, tokenizer)
    else:
        model = load_model(config.model, dtype=config.dtype, device=device_of(config))
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    check_length(model, config.data.block_size, "data.block_size")
    if config.adapt == "lora":
        find_targets(model, config.lora)  # told before anything is learnt
    if config.decision is not None and is_coded(model):
        model = _reread(model, config.decision)
    elif config.decision is not None:
        if looks_at_text(config, text):
            model = model.to(device_of(config))
        model = fit_decision_layer(model, config, text, work)
    if is_coded(model):
        refuse_softmax_only(config.training)
    return model


def _reread(model: Any, decision: DecisionConfig) -> Any:
    """A coded model with another loss or decoder; how it is stored in the end may change too, but no code or head."""
    given = decision.to_dict()
    fixed = sorted(set(given) - {"loss", "decoder", "weights", "packed"})
    if fixed:
        raise ConfigurationError(
            f"decision.{fixed[0]} is {given[fixed[0]]!r}, but this checkpoint is coded already: omit --code, --bits, "
            "--head, --width, --budget; only --loss, --decoder, --weights and --packed can change"
        )
    model.decision.loss_name = given.get("loss", model.decision.loss_name)
    model.decision.decoder_name = given.get("decoder", model.decision.decoder_name)
    return model


def device_of(config: RunConfig) -> torch.device:
    """The accelerator that this process will train on: of several processes each has its own."""
    device = torch.device("cpu") if config.training.get("use_cpu") else default_device()
    return device if device.type == "cpu" else torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def default_device() -> torch.device:
    """The accelerator, if there is one that knows float64, which measures are taken in: Apple's does not."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None or accelerator.type == "mps" else accelerator


def load_model(
    name: str, *, dtype: str = "float32", packed: bool | None = None, device: torch.device | None = None
) -> Any:
    """Load a coded or stock checkpoint, its codewords `packed` in memory or not, by default as it says itself.

    `name` is a hub id, a folder, or a GGUF file, whose weights are unpacked. `dtype` is one of DTYPES, where `auto`
    depends on the `device` it will compute on (by default that of `default_device`), or "stored": the checkpoint's own.

    ConfigurationError names the model that cannot be loaded, or has no codewords; CheckpointError a damaged file, or
    weights that are not numbers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading("model", name), library_bars_hidden(), named.pretrained(name) as (place, options):
        wanted = "auto" if dtype == "stored" else dtype
        integrity.refuse_outside(Path(name), integrity.indexed(Path(name)))
        if os.path.isdir(name):
            expect_layers(AutoConfig.from_pretrained(name))
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                place, dtype=wanted, output_loading_info=True, **named.unpacking(options)
            )
        except SafetensorError as error:
            for file in sorted(Path(name).glob("*.safetensors")):
                shapes_in(str(file))  # tells which one it is
            raise CheckpointError(
                f"a weight file of {name!r} is not a complete safetensors file ({error}); copy or download it again"
            ) from error
    refuse_missing(found["missing_keys"])
    _check_sizes(model.config, f"model {name!r}")
    if named.is_gguf(name):
        stock.clear_marks(model)
        model.name_or_path = model.config.name_or_path = ""  # the place that it was read from is gone
    _refuse_nan(model, name)
    if packed is not None:
        _pack(model, packed, name)
    if dtype == "auto":
        model = in_native_dtype(model, device or default_device())
    try:
        return _causal(model)
    except ConfigurationError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error


def _check_sizes(config: Any, name: str) -> None:
    """Raise ConfigurationError for a number of layers or a size below one, which transformers builds without a word."""
    inner = config.get_text_config()
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        size = getattr(inner, key, 1)
        if isinstance(size, int) and size < 1:
            raise ConfigurationError(f"{name} has {key} = {size}; give at least 1")


def _refuse_nan(model: nn.Module, name: str) -> None:
    for key, values in model.named_parameters():
        if not values.is_meta and values.is_floating_point() and bool(values.isnan().any()):
            raise CheckpointError(
                f"model {name!r} holds NaN in {key}: its training has diverged, or a file is damaged; give another "
                "checkpoint"
            )


def _pack(model: Any, packed: bool, name: str) -> None:
    if not is_coded(model):
        option = "--packed" if packed else "--unpacked"
        raise ConfigurationError(f"model {name!r} has no codewords that could stay packed; omit {option}")
    model.decision.packed = packed


def new_model(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """A model with random weights; `vocab_size` and special tokens not given come from the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(architecture)
    model_type = options.pop("model_type")
    _check_architecture(model_type, options)
    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(model_type, **{**defaults, **options})
        _check_sizes(config, f"model {architecture!r}")
        model = AutoModelForCausalLM.from_config(config)
    except CodeheadError:
        raise
    except Exception as error:  # an architecture raises whatever its parts make of a value
        raise ConfigurationError(f"model {architecture!r} cannot be built: {reason(error)}; change it") from error
    return _causal(model)


def _causal(model: nn.Module) -> nn.Module:
    """The same model, which must be a causal language model; a loss that it leaves open (GPT-2) is named.

    By its name the Trainer knows to count shifted labels.
    """
    if not is_coded(model):
        refuse_non_causal(model)
    if getattr(model, "loss_type", "") is None:
        model.loss_type = "ForCausalLM"  # type: ignore[assignment]
    return model


def _check_architecture(model_type: str, options: dict[str, Any]) -> None:
    """Configurations of transformers accept any key, and ignore what they do not know: refuse it instead."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(model_type, CONFIG_MAPPING.keys()) or "; see the model types of transformers"
        raise ConfigurationError(f"unknown model.model_type {model_type!r}{hint}")
    kind = CONFIG_MAPPING[model_type]
    known = [*kind().to_dict(), *getattr(kind, "attribute_map", {})]
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or f"; see {kind.__name__} of transformers"
            raise ConfigurationError(f"unknown key 'model.{key}'{hint}")


def max_length(model: nn.Module) -> int | None:
    """The most tokens that the model has positions for; None if it sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def check_length(model: nn.Module, length: int, name: str) -> None:
    """Raise ConfigurationError if the model has no positions for the `length` tokens that option `name` asks for."""
    limit = max_length(model)
    if limit is not None and limit < length:
        raise ConfigurationError(
            f"{name} is {length}, but the model takes at most {limit} tokens; lower it (--block-size {limit})"
        )
