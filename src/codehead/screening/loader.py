"""The loader of screened checkpoints: a coded checkpoint's, where `quantization_config` has the field `screening`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codehead.errors import CheckpointError
from codehead.models import manifest
from codehead.models import stock
from codehead.models.description import METHOD
from codehead.models.loader import CodeheadConfig, CodeheadLoader, _check_tensors
from codehead.screening.model import FIELD, entry_of, install
from codehead.screening.screen import Screen, Settings


class ScreeningConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a screened checkpoint, as transformers wants to hold it."""

    def __init__(self, **entry: Any) -> None:
        unknown = [key for key in entry if key not in ("quant_method", FIELD)]
        if unknown:
            raise CheckpointError(f"quantization_config.{unknown[0]} in config.json is not a field of a screened model")
        self.settings = Settings.from_dict(entry[FIELD])
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return entry_of(self.settings)


class ScreeningLoader(HfQuantizer):
    """Puts an empty screen beside the head before the weights are loaded, and checks that the two fit afterwards."""

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        """Add the empty screen; check the files it will be loaded from."""
        settings = self.quantization_config.settings
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
        if checkpoint_files:
            files = [file for file in checkpoint_files if file.endswith(".safetensors")]
            manifest.verify(files)
            _check_tensors(_OnlyScreen(model), files)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Leave: the model can be cast, moved and saved like any other."""
        model.config.quantization_config = self.quantization_config.to_dict()
        del model.hf_quantizer, model.quantization_method, model.config._is_quantized
        model.is_quantized = False
        return model


class _OnlyScreen:
    """The tensors of a screen, as a model names them: the head itself may be tied, and so not saved."""

    def __init__(self, model: Any) -> None:
        self.get_output_embeddings, self.named_modules = model.get_output_embeddings, model.named_modules
        self._prefix = f"{stock.head_path(model)}.screen."
        self._tensors = model.state_dict()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: values for name, values in self._tensors.items() if name.startswith(self._prefix)}


class _AnyConfig:
    """Chooses between the two kinds of entries."""

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Any:
        return (ScreeningConfig if FIELD in entry else CodeheadConfig).from_dict(entry)


def _any_loader(config: Any, **options: Any) -> HfQuantizer:
    loader: Any = ScreeningLoader if isinstance(config, ScreeningConfig) else CodeheadLoader
    made: HfQuantizer = loader(config, **options)
    return made


AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = _AnyConfig
AUTO_QUANTIZER_MAPPING[METHOD] = _any_loader
