"""Integers of a coded model that must stay as they are (codewords, ids of tokens, weights in int8 and int4), and claims
of a checkpoint that are compared with its files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils import parametrize

from codehead.codes.table import Seal
from codehead.errors import CheckpointError

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
