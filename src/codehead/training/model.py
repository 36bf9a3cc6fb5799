"""The model of a run: loaded or built from an architecture, its dtype, and which parts are trained.

These are all of it, the head alone, or LoRA on the attention together with the head.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from codehead.boundaries import library_bars_hidden, loading, reason
from codehead.config.size import positions_of
from codehead.errors import CheckpointError, CodeheadError, ConfigurationError
from codehead.models import integrity, named, stock
from codehead.models.integrity import expect_layers, refuse_missing, shapes_in
from codehead.models.probe import refuse_non_causal
from codehead.models.stock import head_path
from codehead.models.surgery import is_coded
from codehead.registry import did_you_mean
from codehead.training.config import LoraConfig, RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def device_of(config: RunConfig) -> torch.device:
    """The accelerator that this process will train on; each of several processes has its own."""
    device = torch.device("cpu") if config.training.get("use_cpu") else default_device()
    return device if device.type == "cpu" else torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def default_device() -> torch.device:
    """The accelerator, if there is one with float64, in which metrics are computed: Apple's has none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None or accelerator.type == "mps" else accelerator


def load_model(
    name: str, *, dtype: str = "float32", packed: bool | None = None, device: torch.device | None = None
) -> Any:
    """Load a coded or stock checkpoint, its codewords `packed` in memory or not, by default as the checkpoint says.

    `name` is a hub id, a folder, or a GGUF file, whose weights are unpacked. `dtype` is one of DTYPES: `stored` is the
    checkpoint's own; `auto` is float32 if the `device` (by default that of `default_device`) lacks its arithmetic.

    ConfigurationError names a model that cannot be loaded or has no codewords; CheckpointError names a damaged file or
    weights that are NaN.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading("model", name), library_bars_hidden(), named.pretrained(name) as (place, options):
        wanted = "auto" if dtype == "stored" else dtype
        folder = Path(place)
        integrity.refuse_outside(folder, integrity.indexed(folder))
        if folder.is_dir() and not named.is_gguf(name):
            expect_layers(AutoConfig.from_pretrained(place))
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                place, dtype=wanted, output_loading_info=True, **named.unpacking(options)
            )
        except SafetensorError as error:
            for file in sorted(folder.glob("*.safetensors")):
                shapes_in(str(file))  # tells which one it is
            raise CheckpointError(
                f"a weight file of {name!r} is not a complete safetensors file ({error}); copy or download it again"
            ) from error
    refuse_missing(found["missing_keys"])
    _check_sizes(model.config, f"model {name!r}")
    if named.is_gguf(name):
        stock.clear_marks(model)
        model.name_or_path = model.config.name_or_path = ""  # the folder it was read from is gone
    _refuse_nan(model, name)
    if packed is not None and not is_coded(model):
        option = "--packed" if packed else "--unpacked"
        raise ConfigurationError(f"model {name!r} has no codewords that could stay packed; omit {option}")
    if packed is not None:
        model.decision.packed = packed
    if dtype == "auto":
        model = in_native_dtype(model, device or default_device())
    try:
        return _causal(model)
    except ConfigurationError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error


def _check_sizes(config: Any, name: str) -> None:
    """Raise ConfigurationError for a number of layers or a size below one, which transformers accepts silently."""
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


def new_model(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """A model with random weights; `vocab_size` and special tokens not given come from the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(architecture)
    model_type = options.pop("model_type")
    _check_architecture(model_type, options)
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        config = AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer), **special, **options})
        _check_sizes(config, f"model {architecture!r}")
        model = AutoModelForCausalLM.from_config(config)
    except CodeheadError:
        raise
    except Exception as error:  # an architecture raises whatever its parts make of a value
        raise ConfigurationError(f"model {architecture!r} cannot be built: {reason(error)}; change it") from error
    return _causal(model)


def _causal(model: nn.Module) -> nn.Module:
    """The same model, which must be a causal language model; sets its `loss_type` if it has none (GPT-2).

    From the loss type the Trainer knows to count shifted labels.
    """
    if not is_coded(model):
        refuse_non_causal(model)
    if getattr(model, "loss_type", "") is None:
        model.loss_type = "ForCausalLM"  # type: ignore[assignment]
    return model


def _check_architecture(model_type: str, options: dict[str, Any]) -> None:
    """Refuse unknown keys: configurations of transformers accept any key, and ignore those they do not know."""
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


def max_length(model: Any) -> int | None:
    """The largest number of tokens that the model has positions for; None without a limit."""
    return positions_of(model.config)


def check_length(model: nn.Module, length: int, name: str, prompt: int = 0) -> None:
    """Raise ConfigurationError if the model lacks positions for the `length` tokens that option `name` asks for.

    They follow a `prompt` of so many tokens.
    """
    limit = max_length(model)
    if limit is not None and limit < prompt + length:
        after = f" after a prompt of {prompt} tokens" if prompt else ""
        remedy = f"give at most {limit - prompt}" if prompt < limit else "give a shorter prompt"
        raise ConfigurationError(f"{name} is {length}{after}, but the model takes at most {limit} tokens; {remedy}")


INSTRUCTIONS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
"""Torch's names for the x86 and ARM instructions, any of which is enough."""


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
    """What the processor can do, according to torch; empty if torch is too old to report it."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


# Which parts of it are trained.


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
    """A model that trains only adapters and the whole head; `merge` makes it plain again."""
    import peft

    names, found = find_targets(model, options)
    settings = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=names,
        modules_to_save=decision_paths(model),
        fan_in_fan_out=not isinstance(model.get_submodule(found[0]), nn.Linear),  # as in GPT-2's Conv1D
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(f"lora: peft refuses these options: {reason(error)}; change them") from error


def find_targets(model: nn.Module, options: LoraConfig) -> tuple[list[str], list[str]]:
    """The names that `target_modules` stands for, and the modules they match; ConfigurationError if there are none."""
    targets = options.target_modules
    if targets == "auto":
        targets = attention_projections(model)
    names = [targets] if isinstance(targets, str) else list(targets)
    found = [name for name, _ in model.named_modules() if f".{name}".endswith(tuple(f".{target}" for target in names))]
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
