"""The loader of coded checkpoints: what `from_pretrained` runs for `quant_method: codehead`.

transformers offers one way to change a model between building and loading it that keeps class,
`architectures` and `model_type`: a quantizer. Nothing is quantised here, and the quantizer is removed once
the model is loaded.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codehead.codes.packing import row_bytes
from codehead.codes.table import CodewordTable
from codehead.config.size import INTEGER_BITS
from codehead.decoding.extras import Corrections, Refinement, choose_tokens
from codehead.errors import CheckpointError, CodeheadError, ConfigurationError
from codehead.heads.chain import Chain
from codehead.heads.feedforward import gives_log_probabilities
from codehead.layer import WRITTEN, Decision
from codehead.models import integrity, stock, surgery
from codehead.models.description import Description, expect_written
from codehead.models.probe import refuse_other_classes
from codehead.models.registration import METHOD
from codehead.models.rounding import round_parts

Shapes = dict[str, list[int]]
"""Shapes of the tensors in files, by name."""


class CodeheadConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a coded checkpoint, in the class that transformers expects."""

    def __init__(self, **entry: Any) -> None:
        self.entry = entry
        self.description = Description.from_dict(entry)
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return self.description.to_dict()


class OwnLoader(HfQuantizer):
    """Base of the loaders of coded and of screened checkpoints: build, check what was loaded, then leave the model."""

    @abstractmethod
    def build(self, model: Any, files: Sequence[str]) -> None:
        """Put empty parts into the model before the weights are loaded; check the files to load from."""

    @abstractmethod
    def finish(self, model: Any) -> None:
        """Check what was loaded, and let the configuration describe the model."""

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Check the configuration before the model is built: the only hook of a loader that receives it."""
        integrity.expect_layers(config)
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        """Build; a class without an output embedding (AutoModel, a classifier) gets only the backbone."""
        files = [file for file in checkpoint_files or () if file.endswith(".safetensors")]
        if model.get_output_embeddings() is None:
            integrity.verify(files)
        else:
            self.build(model, files)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Leave: the model can be trained, cast and saved like any other."""
        del model.hf_quantizer, model.quantization_method, model.config._is_quantized
        model.is_quantized = False
        self.finish(model)
        return model


def expect_additions(model: Any, *names: str) -> None:
    """Let a checkpoint hold tensors that the model does not have, without a warning."""
    known = model._keys_to_ignore_on_load_unexpected or ()
    model._keys_to_ignore_on_load_unexpected = {*known, *map(re.escape, names)}


class CodeheadLoader(OwnLoader):
    """Builds the empty decision layer before the weights are loaded, and checks the codebook afterwards."""

    def update_device_map(self, device_map: Any) -> Any:
        """A device map written for the stock model: the codebook goes where the head goes."""
        if not isinstance(device_map, dict):
            return device_map
        if not {"", "decision"} & set(device_map):
            device_map = {**device_map, "decision": device_map.get("lm_head", list(device_map.values())[-1])}
        own = {part: device_map.get(part) for part in ("", "lm_head", "decision")}
        if self.quantization_config.description.decision.weights in INTEGER_BITS and "disk" in own.values():
            raise ConfigurationError(
                f"device_map is {device_map}, but a decision layer in int8 or int4 cannot be offloaded to disk; give "
                "lm_head and decision a device"
            )
        return device_map

    def build(self, model: Any, files: Sequence[str]) -> None:
        description = self.quantization_config.description
        refuse_other_classes(model)
        old = model.get_submodule(stock.head_path(model))
        stored = expect_files(model, files, self.quantization_config.entry)
        expect_vocabulary(description, old.weight.shape[0])
        if files:
            _expect_codewords(stored, description)
        head, decision = built(description, old.weight.shape[1], old.weight.dtype)
        _expect_no_soft_cap(model, decision)
        surgery.install(model, head, decision)
        guard = f"{stock.head_path(model)}.weight"  # of a head of several parts, which has none (`guards.guarded`)
        expect_additions(model, f"decision.{WRITTEN}", *([] if guard in model.state_dict() else [guard]))
        no_surprise = model._keys_to_ignore_on_load_missing or ()
        model._keys_to_ignore_on_load_missing = {*no_surprise, integrity.SEALS}  # old checkpoints have none
        if files:
            _check_tensors(model, stored)

    def finish(self, model: Any) -> None:
        description = self.quantization_config.description
        if surgery.is_coded(model):
            check_loaded(model, description)
            parts = (model.get_output_embeddings(), model.decision)
            tensors = [values for part in parts for values in part.state_dict().values()]
            if not any(values.is_meta for values in tensors):
                model.decision.to(tensors[0].device)  # offloaded parts stay where they are: outputs come to them
            model.config.quantization_config = description.to_dict()
        else:
            stock.restore_config(model.config, description.stock)
            stock.give_back_quantizer(model)


def expect_files(model: Any, files: Sequence[str], entry: dict[str, Any]) -> Shapes:
    """The shapes in the files, after checking that these are the ones saved, with this entry of `config.json`."""
    folder = Path(model.config._name_or_path)
    if folder.is_dir():
        integrity.refuse_outside(folder, files)
    integrity.verify(files)
    stored: Shapes = {}
    for file in files:
        shapes = integrity.shapes_in(file)
        stored.update(shapes)
        for name in shapes:
            if name.endswith((f"decision.{WRITTEN}", f"screen.{WRITTEN}")):
                with safe_open(file, framework="pt") as tensors:
                    expect_written(entry, tensors.get_tensor(name))
    return stored


def _expect_codewords(stored: Shapes, description: Description) -> None:
    """Check number and length of the codewords in the files against the description, before building from it."""
    config, facts = description.decision, description.codebook
    if config.length(facts.num_classes) != facts.length:
        raise CheckpointError(
            f"quantization_config.codebook.length in config.json is {facts.length}, but decision.code, bits and "
            f"code_params make it {config.length(facts.num_classes)}; restore config.json from the original checkpoint"
        )
    if not description.is_implicit:
        name = "decision.table.sign_plane"
        _expect_shape(name, stored.get(name), [facts.num_classes, row_bytes(facts.length)])


def built(description: Description, hidden_size: int, dtype: torch.dtype) -> tuple[nn.Module, Decision]:
    """An empty decision layer on the meta device, for a checkpoint to fill; CheckpointError if it cannot be built."""
    try:
        head, decision = _skeleton(description, hidden_size)
    except CheckpointError:
        raise
    except (CodeheadError, TypeError, OverflowError, RuntimeError) as error:  # sizes and options may be anything
        raise CheckpointError(f"quantization_config in config.json: {error}") from error
    head.to(dtype)
    decision.to(dtype)
    if description.decision.weights in INTEGER_BITS:
        round_parts(head, decision, INTEGER_BITS[description.decision.weights])
    return head, decision


def check_loaded(owner: Any, description: Description) -> None:
    """Check the integers of `owner.decision` that were loaded, against the description and their checksums."""
    _check_codebook(owner.decision.table, description)
    _check_shortlist(owner.decision.corrections)
    integrity.set_guards(owner)
    integrity.check_integers(owner)


def _skeleton(description: Description, hidden_size: int) -> tuple[nn.Module, Decision]:
    """Head and decision of the right shapes on the meta device, to be filled from a checkpoint."""
    with torch.device("meta"):
        config, facts = description.decision, description.codebook
        head = surgery.build_head(config, hidden_size, facts.length, config.num_dense_rows + config.extra_bits)
        table = CodewordTable.empty(facts.num_classes, facts.length, facts.ternary, description.is_implicit)
        log_probabilities = gives_log_probabilities(head)
        parts = (_empty_corrections(description), Chain.of(head), log_probabilities)
        decision = Decision(table, config.loss, config.decoder, *parts)
        decision.packed = config.packed
        return head, decision


def _empty_corrections(description: Description) -> Corrections | None:
    config, num_classes = description.decision, description.codebook.num_classes
    if not config.dense_rows and not config.extra_bits and not config.token_bias:
        return None
    listed = torch.empty(config.num_dense_rows, dtype=torch.int32)
    refinement = None
    if config.extra_bits:
        refinement = Refinement(num_classes, config.num_extra_bit_tokens, config.extra_bits)
    return Corrections(num_classes, listed, config.token_bias, refinement)


def expect_vocabulary(description: Description, rows: int) -> None:
    """Raise a CheckpointError unless the codebook has a codeword for each of the `rows` tokens."""
    if description.codebook.num_classes != rows:
        raise CheckpointError(
            f"quantization_config.codebook.num_classes in config.json is {description.codebook.num_classes}, but the "
            f"vocabulary of the model (vocab_size) has {rows} tokens; restore config.json from the original "
            "checkpoint"
        )


def _expect_no_soft_cap(model: Any, decision: Decision) -> None:
    cap = getattr(model.config.get_text_config(), stock.SOFT_CAP, None)
    if cap not in (None, stock.NO_CAP) and (not decision.table.is_implicit or decision.log_probabilities):
        raise CheckpointError(
            f"{stock.SOFT_CAP} in config.json is {cap}, which would distort bit logits and log-probabilities; attach "
            "set it to null: restore config.json from the original checkpoint"
        )


def _check_tensors(model: Any, stored: Shapes) -> None:
    """Check that the files hold exactly the tensors of the decision layer, in the shapes of the configuration."""
    found = {place: stored[name] for name, place in integrity.names_in_memory(model, stored).items()}
    state, own = model.state_dict(), integrity.own_names(model)
    for name in own:
        if name in found or not re.search(integrity.SEALS, name):
            _expect_shape(name, found.get(name), list(state[name].shape))
    head = stock.head_path(model)
    known = {*own, f"decision.{WRITTEN}", *([f"{head}.weight"] if found.get(f"{head}.weight") == [0] else [])}
    surplus = sorted(name for name in found if name.startswith(("decision.", f"{head}.")) and name not in known)
    if surplus:
        raise CheckpointError(
            f"tensor {surplus[0]} of the checkpoint has no place in the decision layer that quantization_config in "
            "config.json describes; restore config.json and the weights from the original checkpoint"
        )


def _expect_shape(name: str, found: list[int] | None, expected: list[int]) -> None:
    if found != expected:
        raise CheckpointError(
            f"tensor {name} of the checkpoint has shape {'none: it is missing' if found is None else found}, but "
            "bits, dense_rows, extra_bits, weights, width, head_params of quantization_config.decision in config.json "
            f"make it {expected}; restore config.json and the weights from the original checkpoint"
        )


def _check_codebook(table: CodewordTable, description: Description) -> None:
    """Check that the loaded codebook has the checksum in the configuration."""
    try:
        checksum = description.rebuilt(table).checksum
    except CodeheadError as error:
        raise CheckpointError(f"the codebook in the weights does not fit config.json: {error}") from error
    if checksum != description.codebook.checksum:
        raise CheckpointError(
            f"quantization_config.codebook.checksum is {description.codebook.checksum} in config.json, but the "
            f"codebook in the weights has {checksum}: one of them was changed, and tokens would be decoded wrongly; "
            "restore both from the original checkpoint"
        )


def _check_shortlist(corrections: Corrections | None) -> None:
    """Check that the shortlist's ids are distinct tokens, and that as many tokens are marked as have extra bits."""
    if corrections is None or corrections.shortlist.is_meta:
        return
    try:
        choose_tokens("dense_rows", corrections.shortlist.tolist(), None, corrections.num_classes)
        extra = corrections.refinement
        if extra is not None and extra.num_marked != extra.num_tokens:
            raise CheckpointError(
                f"{extra.num_marked} tokens are marked as having extra bits, but {extra.num_tokens} rows are stored"
            )
    except CodeheadError as error:
        raise CheckpointError(
            f"decision.corrections.shortlist in the weights is damaged ({error}); restore the weights from "
            "the original checkpoint"
        ) from error
