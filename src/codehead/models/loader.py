"""The loader of coded checkpoints: what `from_pretrained` runs for `quant_method: codehead`.

transformers offers one way to change a model between building and loading it that keeps class, `architectures` and
`model_type`: a quantizer. Nothing is quantised here, and the quantizer leaves once the model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codehead import heads
from codehead.codes.codebook import Codebook, OneVsAllCodebook, PackedCodebook
from codehead.codes.packing import row_bytes
from codehead.codes.table import CodewordTable
from codehead.errors import CheckpointError, CodeheadError
from codehead.layer import Decision
from codehead.models import manifest, stock, surgery
from codehead.models.description import METHOD, Description


@register_quantization_config(METHOD)
class CodeheadConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The entry `quantization_config` of a coded checkpoint, as transformers wants to hold it."""

    def __init__(self, **entry: Any) -> None:
        self.description = Description.from_dict(entry)
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return self.description.to_dict()


@register_quantizer(METHOD)
class CodeheadLoader(HfQuantizer):  # type: ignore[misc]
    """Builds the empty decision layer before the weights are loaded, and checks the codebook afterwards."""

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def update_device_map(self, device_map: Any) -> Any:
        """A device map written for the stock model: the codebook goes where the head goes."""
        if isinstance(device_map, dict) and not {"", "decision"} & set(device_map):
            return {**device_map, "decision": device_map.get("lm_head", list(device_map.values())[-1])}
        return device_map

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        """Attach an empty decision layer; check the files it will be loaded from."""
        description = self.quantization_config.description
        old = model.get_submodule(stock.head_path(model))
        try:
            head, decision = _skeleton(description, old.weight.shape[1])
        except CheckpointError:
            raise
        except CodeheadError as error:
            raise CheckpointError(f"quantization_config in config.json: {error}") from error
        _expect_vocabulary(description, old.weight.shape[0])
        surgery.install(model, head.to(old.weight.dtype), decision, stock.Kept(None, model.loss_type))
        if checkpoint_files:
            files = [file for file in checkpoint_files if file.endswith(".safetensors")]
            manifest.verify(files)
            _check_tensors(model, files)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Check the codebook, then leave: the model is an ordinary one that can be trained, cast and saved."""
        description = self.quantization_config.description
        _check_codebook(model.decision.table, description)
        model.decision.to(model.get_output_embeddings().weight.device)
        model.config.quantization_config = description.to_dict()
        del model.hf_quantizer, model.quantization_method, model.config._is_quantized
        model.is_quantized = False
        return model


def _skeleton(description: Description, hidden_size: int) -> tuple[nn.Module, Decision]:
    """Head and decision of the right shapes on the meta device, to be filled from a checkpoint."""
    with torch.device("meta"):
        head = heads.build(description.head, hidden_size, description.bits, **description.head_options)
    decision = Decision(_blank_codebook(description), description.loss, description.decoder)
    return head, decision.to("meta")


def _blank_codebook(description: Description) -> Codebook:
    """A codebook of zeros, of the shape that the description says."""
    if description.is_implicit:
        return OneVsAllCodebook(description.num_classes)
    plane = np.zeros((description.num_classes, row_bytes(description.bits)), dtype=np.uint8)
    return PackedCodebook(
        num_classes=description.num_classes,
        length=description.bits,
        design=description.design,
        params={"allow_duplicates": True},
        sign_plane=plane,
        support_plane=plane if description.ternary else None,
    )


def _expect_vocabulary(description: Description, rows: int) -> None:
    if description.num_classes != rows:
        raise CheckpointError(
            f"quantization_config.num_classes in config.json is {description.num_classes}, but the vocabulary of the "
            f"model (vocab_size) has {rows} tokens; restore config.json from the original checkpoint"
        )


def _check_tensors(model: Any, files: Sequence[str]) -> None:
    """The files are readable and hold the decision layer, in the shapes that the configuration says."""
    found: dict[str, list[int]] = {}
    for file in files:
        found.update(_shapes(file))
    prefixes = ("decision.", f"{stock.head_path(model)}.")
    for name, tensor in model.state_dict().items():
        expected = list(tensor.shape)
        if name.startswith(prefixes) and not _holds(found, name, expected):
            raise CheckpointError(
                f"tensor {name} of the checkpoint has shape {found.get(name, 'none: it is missing')}, but bits, "
                f"num_classes and head_options of quantization_config in config.json make it {expected}; "
                "restore config.json and the weights from the original checkpoint"
            )


def _shapes(file: str) -> dict[str, list[int]]:
    """The shapes of the tensors in a file, by name; a file that is cut off has none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}); copy it again from the original checkpoint"
        ) from error


def _holds(found: dict[str, list[int]], name: str, shape: list[int]) -> bool:
    """Whether a tensor is there. Some architectures save their head under another name, so any prefix will do then."""
    if name in found:
        return found[name] == shape
    leaf = name.rpartition(".")[2]
    return any(other.endswith(f".{leaf}") and found[other] == shape for other in found)


def _check_codebook(table: CodewordTable, description: Description) -> None:
    """The codebook that was loaded is the one the configuration names by its checksum."""
    checksum = _codebook(table, description).checksum
    if checksum != description.checksum:
        raise CheckpointError(
            f"quantization_config.checksum in config.json is {description.checksum}, but the codebook in the weights "
            f"has {checksum}: one of them was changed, and tokens would be decoded wrongly; restore both from the "
            "original checkpoint"
        )


def _codebook(table: CodewordTable, description: Description) -> Codebook:
    if description.is_implicit:
        return OneVsAllCodebook(description.num_classes)
    planes = {name: plane.cpu().numpy() for name, plane in table.named_buffers() if name.endswith("_plane")}
    try:
        return PackedCodebook(
            num_classes=description.num_classes,
            length=description.bits,
            design=description.design,
            params={"allow_duplicates": True},
            **planes,
        )
    except CodeheadError as error:
        raise CheckpointError(f"the codebook in the weights does not fit config.json: {error}") from error
