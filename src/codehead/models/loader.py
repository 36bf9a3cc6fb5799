"""The loader of coded checkpoints: what `from_pretrained` runs for `quant_method: codehead`.

transformers offers one way to change a model between building and loading it that keeps class,
`architectures` and `model_type`: a quantizer. Nothing is quantised here, and the quantizer leaves once the
model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codehead.codes.table import CodewordTable
from codehead.decoding.chain import Chain
from codehead.decoding.corrections import Corrections, choose_tokens
from codehead.decoding.refinement import Refinement
from codehead.errors import CheckpointError, CodeheadError, ConfigurationError
from codehead.heads.base import gives_log_probabilities
from codehead.layer import Decision
from codehead.models import manifest, stock, surgery
from codehead.models.causality import refuse_other_classes
from codehead.models.description import METHOD, Description
from codehead.models.names import names_in_memory, own_names
from codehead.models.rounding import round_parts


@register_quantization_config(METHOD)
class CodeheadConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a coded checkpoint, as transformers wants to hold it."""

    def __init__(self, **entry: Any) -> None:
        self.description = Description.from_dict(entry)
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return self.description.to_dict()


@register_quantizer(METHOD)
class CodeheadLoader(HfQuantizer):
    """Builds the empty decision layer before the weights are loaded, and checks the codebook afterwards."""

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def update_device_map(self, device_map: Any) -> Any:
        """A device map written for the stock model: the codebook goes where the head goes."""
        if not isinstance(device_map, dict):
            return device_map
        if not {"", "decision"} & set(device_map):
            device_map = {**device_map, "decision": device_map.get("lm_head", list(device_map.values())[-1])}
        own = {part: device_map.get(part) for part in ("", "lm_head", "decision")}
        if self.quantization_config.description.rounded and "disk" in own.values():
            raise ConfigurationError(
                f"device_map is {device_map}, but a decision layer in int8 or int4 cannot be offloaded to disk; give "
                "lm_head and decision a device"
            )
        return device_map

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        """Attach an empty decision layer; check the files it will be loaded from.

        A class without an output embedding (AutoModel, a classifier) gets the backbone, as from a stock checkpoint.
        """
        description = self.quantization_config.description
        files = [file for file in checkpoint_files or () if file.endswith(".safetensors")]
        if model.get_output_embeddings() is None:
            manifest.verify(files)
            return
        refuse_other_classes(model)
        old = model.get_submodule(stock.head_path(model))
        try:
            head, decision = _skeleton(description, old.weight.shape[1])
        except CheckpointError:
            raise
        except CodeheadError as error:
            raise CheckpointError(f"quantization_config in config.json: {error}") from error
        _expect_vocabulary(description, old.weight.shape[0])
        _expect_no_soft_cap(model, decision)
        for part in (decision.corrections, decision.chain):
            if part is not None:
                part.to(old.weight.dtype)
        head = head.to(old.weight.dtype)
        if description.rounded:
            round_parts(head, decision, description.rounded_bits)
        surgery.install(model, head, decision)
        _expect_guard(model)
        if checkpoint_files:
            manifest.verify(files)
            _check_tensors(model, files)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Check the codebook, then leave: the model can be trained, cast and saved like any other."""
        description = self.quantization_config.description
        if surgery.is_coded(model):
            _check_codebook(model.decision.table, description)
            _check_shortlist(model.decision.corrections)
            head, own = (_tensors(part) for part in (model.get_output_embeddings(), model.decision))
            if not any(values.is_meta for values in (*head, *own)):
                model.decision.to(head[0].device)  # what is offloaded stays there: outputs come to where it is
            model.config.quantization_config = description.to_dict()
        else:
            stock.restore_config(model.config, description.stock)
            del model.config.quantization_config
        del model.hf_quantizer, model.quantization_method, model.config._is_quantized
        model.is_quantized = False
        return model


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _skeleton(description: Description, hidden_size: int) -> tuple[nn.Module, Decision]:
    """Head and decision of the right shapes on the meta device, to be filled from a checkpoint."""
    with torch.device("meta"):
        further = description.shortlist + description.refined_bits + int(description.shortlist_split)
        head = surgery.build_head(description.head, hidden_size, description.bits, further, description.head_options)
        table = CodewordTable.empty(
            description.num_classes, description.bits, description.ternary, description.is_implicit
        )
        log_probabilities = gives_log_probabilities(head)
        parts = (_empty_corrections(description), Chain.of(head), log_probabilities)
        decision = Decision(table, description.loss, description.decoder, *parts)
        decision.packed = description.packed
        return head, decision


def _empty_corrections(description: Description) -> Corrections | None:
    single = {"token_bias": description.token_bias, "token_scale": description.token_scale}
    if not description.shortlist and not description.refined and not any(single.values()):
        return None
    shortlist = torch.empty(description.shortlist, dtype=torch.int32)
    refinement = None
    if description.refined:
        refinement = Refinement(description.num_classes, description.refined, description.refined_bits)
    split = description.shortlist_split
    return Corrections(description.num_classes, shortlist, refinement=refinement, split=split, **single)


def _expect_guard(model: Any) -> None:
    """A head of several parts is saved with a tensor that keeps stock models from loading it (`guards.guarded`)."""
    name = f"{stock.head_path(model)}.weight"
    if name not in model.state_dict():
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), re.escape(name)}


def _expect_vocabulary(description: Description, rows: int) -> None:
    if description.num_classes != rows:
        raise CheckpointError(
            f"quantization_config.num_classes in config.json is {description.num_classes}, but the "
            f"vocabulary of the model (vocab_size) has {rows} tokens; restore config.json from the original "
            "checkpoint"
        )


def _expect_no_soft_cap(model: Any, decision: Decision) -> None:
    cap = getattr(model.config.get_text_config(), stock.SOFT_CAP, None)
    if cap not in (None, stock.NO_CAP) and (not decision.table.is_implicit or decision.log_probabilities):
        raise CheckpointError(
            f"{stock.SOFT_CAP} in config.json is {cap}, which would distort bit logits and log-probabilities; attach "
            "had set it to null: restore config.json from the original checkpoint"
        )


def _check_tensors(model: Any, files: Sequence[str]) -> None:
    """The files are readable and hold the decision layer, in the shapes that the configuration says."""
    stored: dict[str, list[int]] = {}
    for file in files:
        stored.update(_shapes(file))
    found = {place: stored[name] for name, place in names_in_memory(model, stored).items()}
    state = model.state_dict()
    for name in own_names(model):
        expected = list(state[name].shape)
        if found.get(name) != expected:
            raise CheckpointError(
                f"tensor {name} of the checkpoint has shape {found.get(name, 'none: it is missing')}, but "
                "bits, num_classes, shortlist, rounded, rounded_bits and head_options of quantization_config in "
                f"config.json make it {expected}; restore config.json and the weights from the original checkpoint"
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


def _check_codebook(table: CodewordTable, description: Description) -> None:
    """The codebook that was loaded is the one the configuration names by its checksum."""
    try:
        checksum = table.to_codebook(description.design, description.seed, description.params).checksum
    except CodeheadError as error:
        raise CheckpointError(f"the codebook in the weights does not fit config.json: {error}") from error
    if checksum != description.checksum:
        raise CheckpointError(
            f"quantization_config.checksum in config.json is {description.checksum}, but the codebook in "
            f"the weights has {checksum}: one of them was changed, and tokens would be decoded wrongly; "
            "restore both from the original checkpoint"
        )


def _check_shortlist(corrections: Corrections | None) -> None:
    """The ids of the shortlist are tokens, each listed once."""
    if corrections is None or corrections.shortlist.is_meta:
        return
    try:
        choose_tokens("shortlist", corrections.shortlist.tolist(), None, corrections.num_classes)
        _check_refinement(corrections.refinement)
    except CodeheadError as error:
        raise CheckpointError(
            f"the shortlist in the weights is damaged ({error}); restore the weights from the original checkpoint"
        ) from error


def _check_refinement(refinement: Refinement | None) -> None:
    """As many tokens are marked as have further symbols."""
    if refinement is not None and refinement.num_marked != refinement.num_tokens:
        raise CheckpointError(
            f"{refinement.num_marked} tokens are marked for {refinement.num_tokens} rows of further symbols"
        )
