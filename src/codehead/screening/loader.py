"""The loader of screened checkpoints: a coded checkpoint's, where `quantization_config` has the field `screening`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codehead.errors import CheckpointError
from codehead.layer import WRITTEN
from codehead.models import stock
from codehead.models.integrity import check_integers, names_in_memory
from codehead.models.loader import (
    CodeheadConfig,
    CodeheadLoader,
    OwnLoader,
    Shapes,
    expect_additions,
    expect_files,
)
from codehead.models.registration import METHOD
from codehead.models.stock import with_head
from codehead.screening.model import FIELD, entry_of, install, is_screened
from codehead.screening.screen import Screen, Settings


class ScreeningConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a screened checkpoint, as transformers wants to hold it."""

    def __init__(self, **entry: Any) -> None:
        unknown = [key for key in entry if key not in ("quant_method", FIELD)]
        if unknown:
            raise CheckpointError(f"quantization_config.{unknown[0]} in config.json is not a field of a screened model")
        self.entry, self.settings = entry, Settings.from_dict(entry[FIELD])
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return entry_of(self.settings)


class ScreeningLoader(OwnLoader):
    """Puts an empty screen beside the head before the weights are loaded, and checks that the two fit afterwards."""

    def build(self, model: Any, files: Sequence[str]) -> None:
        settings = self.quantization_config.settings
        stored = expect_files(model, files, self.quantization_config.entry)
        head = model.get_submodule(stock.head_path(model))
        if type(head) is not nn.Linear or head.weight.shape != (settings.num_classes, settings.hidden_size):
            raise CheckpointError(
                f"quantization_config.screening in config.json is of {settings.num_classes} rows of "
                f"{settings.hidden_size} numbers, but the head of the model is {head}; restore config.json from the "
                "original checkpoint"
            )
        with torch.device("meta"):
            screen = Screen(settings)
        install(model, screen)
        if files:
            _check_screen(model, stored)

    def finish(self, model: Any) -> None:
        if is_screened(model):
            model.screen.seal.on_guard = True
            check_integers(model)
            model.config.quantization_config = self.quantization_config.to_dict()
        else:
            del model.config.quantization_config


def _check_screen(model: Any, stored: Shapes) -> None:
    """The files hold the screen and nothing more of it, in the shapes that the configuration says."""
    prefix = f"{stock.head_path(model)}.screen."
    description = f"{prefix}{WRITTEN}"
    expect_additions(model, description)
    own = {name: list(values.shape) for name, values in model.state_dict().items() if name.startswith(prefix)}
    found = {place: stored[name] for name, place in names_in_memory(model, stored).items() if place.startswith(prefix)}
    own[description] = found.get(description, [])  # of any length, but there
    for name in sorted({*own, *found}):
        if own.get(name) != found.get(name):
            raise CheckpointError(
                f"tensor {name} of the checkpoint has shape {found.get(name)}, but quantization_config.screening in "
                f"config.json makes it {own.get(name)} (None: it is missing); restore config.json and the weights from "
                "the original checkpoint"
            )


def config_of(entry: dict[str, Any]) -> QuantizationConfigMixin:
    """The entry `quantization_config` of a screened or coded checkpoint, by what it holds."""
    made: QuantizationConfigMixin = (ScreeningConfig if FIELD in entry else CodeheadConfig).from_dict(entry)
    return made


def loader_of(config: Any, **options: Any) -> HfQuantizer:
    """The loader of a checkpoint with this entry."""
    if isinstance(config, ScreeningConfig):
        return ScreeningLoader(config, **options)
    loader, backbone = CodeheadLoader(config, **options), config.description.backbone
    return loader if backbone is None else with_head(backbone, loader)
