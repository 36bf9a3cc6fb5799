"""What a checkpoint must come back as: integers of a coded model that stay as they are (codewords, ids of tokens,
weights in int8 and int4), claims that are compared with its files, and the
names of tensors, which some architectures change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils import parametrize

from codehead.codes.table import Seal
from codehead.errors import CheckpointError, ConfigurationError
from codehead.models import stock

SEALS = r"(^|\.)seal\.digest$"
"""The names of checksums of integers (`codehead.codes.table`), as a regular expression."""
MANY_LAYERS = 1000
"""Are built in seconds, and are more than any model has."""


def check_integers(model: Any) -> None:
    """Raise a CheckpointError if integers of a coded model do not match their checksums."""
    for name, seal, integers in _sealed(model):
        seal.check(integers, f"{name}.")


def set_guards(model: Any) -> None:
    """Let integers that were loaded be checked; those that have no checksums, in a checkpoint of old, get them."""
    for _, seal, integers in _sealed(model):
        if seal.is_open:
            seal.close(integers)
        seal.on_guard = True


def _sealed(model: Any) -> Iterator[tuple[str, Seal, dict[str, Tensor]]]:
    """The modules that have a seal by name, with what it is of; that of a rounded weight is in its form."""
    for name, part in model.named_modules():
        is_rounded = isinstance(part, parametrize.ParametrizationList)
        seal = getattr(part[0] if is_rounded else part, "seal", None)
        if isinstance(seal, Seal) and (is_rounded or hasattr(part, "integers")):
            yield name, seal, {"original0": part.original0} if is_rounded else part.integers()


def check_state(model: Any, state: Mapping[str, Tensor] | None) -> None:
    """Raise a CheckpointError if a state to be saved in the place of the model's own has other integers.

    That of averaged models may have.
    """
    own = model.state_dict() if state is not None else {}
    for name, values in (state or {}).items():
        integers = own.get(name)
        if integers is None or integers.is_floating_point() or integers.is_meta or values.is_meta:
            continue
        if values.dtype != integers.dtype or not torch.equal(values.to(integers.device), integers):
            raise CheckpointError(
                f"{name} of the state_dict to be saved is not that of the model: integers that mean something only as "
                "a whole were changed, as averaging does; take them from the model"
            )


def refuse_missing(missing: set[str]) -> None:
    """Raise a CheckpointError if a checkpoint lacks tensors, which would be random numbers."""
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(
            f"the checkpoint lacks {', '.join(names[:3])}{more}: random numbers would stand for them; restore the "
            "weights from the original checkpoint"
        )


def expect_layers(config: Any) -> None:
    """Raise a CheckpointError if a configuration claims more layers than its files have tensors.

    To build them would take hours, and all memory.
    """
    layers, folder = getattr(config.get_text_config(), "num_hidden_layers", 0), Path(config._name_or_path)
    if isinstance(layers, int) and layers > MANY_LAYERS and folder.is_dir():
        tensors = sum(len(shapes_in(str(file))) for file in folder.glob("*.safetensors"))
        if layers > tensors:
            raise CheckpointError(
                f"num_hidden_layers in config.json is {layers}, but the weights in {folder} are {tensors} tensors; "
                "restore config.json from the original checkpoint"
            )


def shapes_in(file: str) -> dict[str, list[int]]:
    """The shapes of the tensors in a file, by name; a file that is cut off has none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}); copy it again from the original checkpoint"
        ) from error


def own_names(model: Any) -> list[str]:
    """The names of the tensors of a coded model's head and decision layer."""
    prefixes = ("decision.", f"{stock.head_path(model)}.")
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def names_in_memory(model: Any, names: Iterable[str]) -> dict[str, str]:
    """The names in files, and under which `from_pretrained` puts each into the model, by its own conversion mapping."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # a circle: see registration.py
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping, state, prefix = get_model_conversion_mapping(model), model.state_dict(), model.base_model_prefix
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    found = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, _ = rename_source_key(name, [], [], prefix, state)
        found[name] = renamed
    return found


def refuse_lost_names(model: Any) -> None:
    """Raise a ConfigurationError if a tensor of a coded model's decision layer would not come back from a checkpoint.

    A save and a load of names, without tensors.
    """
    from transformers.core_model_loading import revert_weight_conversion

    for name in own_names(model):
        saved = revert_weight_conversion(model, {name: torch.empty(1, device="meta")})
        if list(names_in_memory(model, saved).values()) != [name]:
            raise ConfigurationError(
                f"{type(model).__name__} renames tensors on saving: a checkpoint calls {name} {', '.join(saved)}, and "
                "it would not be found again on loading; choose another head or another architecture"
            )
