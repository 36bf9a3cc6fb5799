"""One cell of a protocol: train, evaluate, measure the size → one result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.config.size import INTEGER_BITS
from codehead.errors import ConfigurationError
from codehead.evaluation.metrics import evaluate
from codehead.evaluation.size import WEIGHT_BYTES, config_shape, model_size
from codehead.lab.answers.encoder import find_encoder
from codehead.lab.answers.scoring import score_answers
from codehead.lab.baselines.compress import compress
from codehead.lab.protocols.architecture import cell_architecture
from codehead.lab.protocols.backbones import backbone_config, train_once
from codehead.lab.protocols.decoder_comparison import compare_decoders
from codehead.lab.protocols.preparation import Context
from codehead.lab.protocols.protocol import HALF, AnswersConfig, Cell, PeerConfig, Protocol, expand, half_width, merged
from codehead.lab.protocols.store import digest, folder_record, of_files
from codehead.lab.result import Result, canonical_json, write_json
from codehead.models import is_coded
from codehead.models.description import Description
from codehead.training.config import RunConfig
from codehead.training.data import load_examples
from codehead.training.folder import read_record
from codehead.training.model import device_of, load_model
from codehead.training.provenance import file_record, file_records, git_state, hardware, utc_now
from codehead.training.sources import read_rows
from codehead.training.stages import Stages
from codehead.training.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import TrainerCallback


def run_cell(protocol: Protocol, cell: Cell, context: Context, callbacks: Sequence[TrainerCallback] = ()) -> Result:
    """Train the cell (going on where a killed run stopped) and measure it on the test split.

    A finished run of the same configuration over the same data is not trained again, nor measured the same way twice.
    The provenance is that of the training, with the data of this protocol, and that of the backbone's training.
    """
    config = cell_config(protocol, cell, context)
    record = train_once(config, callbacks)
    metrics = _measured_once(protocol, config, cell.peer)
    metrics |= {
        "train_seconds": record["provenance"]["wall_seconds"],
        "history": [entry for entry in record["log_history"] if "loss" in entry],
    }
    data = file_records(config.data.sources)  # a run that protocols share may have been trained beside other test data
    files = of_cell_files(config, cell)
    provenance = {**record["provenance"], "data": data, **files, "measured": metrics.pop("measured")}
    if cell.backbone is not None:
        backbone = Path(str(config.model))
        provenance["backbone"] = folder_record(backbone)
        provenance["backbone_training"] = read_record(backbone)["provenance"]
    return Result(f"{protocol.name}/{cell.key}", result_config(protocol, cell), metrics, provenance)


def of_cell_files(config: RunConfig, cell: Cell) -> dict[str, Any]:
    """`files`, the records of those that a cell's decision layer is made of, or nothing."""
    return of_files({"decision": config.decision, "peer": None if cell.peer is None else cell.peer.as_dict()})


def cell_config(protocol: Protocol, cell: Cell, context: Context) -> RunConfig:
    """The configuration of the cell's run, in its folder of the store; a width of "half" becomes a number here."""
    values = _values(protocol, cell, context)
    decision = values.get("decision") or {}
    if decision.get("width") == HALF:
        shape = config_shape(cell_architecture(protocol, cell, context))
        decision["width"] = half_width(shape.hidden_size, shape.num_classes, _bits(decision, shape.num_classes))
    if cell.backbone is not None:
        values["model"] = backbone_config(protocol, cell.backbone, context).output_dir
    data = values.get("data") or {}
    if not data.get("test") or not data.get("validation"):
        raise ConfigurationError(
            "a protocol needs a validation and a test source; give base.data.validation and base.data.test, or split"
        )
    return context.store.placed(values)


def result_config(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    """What the result says of its cell; free of local paths, because variables are not expanded."""
    return {
        "protocol": protocol.name,
        "description": protocol.description,
        "paper": protocol.paper,
        "cell": cell.name,
        "setting": cell.setting,
        "seed": cell.seed,
        "reference": protocol.reference,
        "split": protocol.split,
        "run": cell.config,
        **_of_peer(cell.peer),
        "backbone": protocol.backbones[cell.backbone] if cell.backbone is not None else None,
        "answers": asdict(protocol.answers) if protocol.answers is not None else None,
        **_of_decoders(protocol),
    }


def describe(model: Any) -> dict[str, Any] | None:
    """The decision layer in short; None for the model's own Softmax head."""
    if not is_coded(model):
        return None
    config = Description.current(model).decision
    return {
        "design": config.code,
        "bits": model.decision.table.length,
        "head": config.head,
        "head_options": config.head_options,
        "width": config.width or 0,
        "rank": config.head_params.get("rank"),
        "shortlist": config.num_dense_rows,
        "refined": config.num_extra_bit_tokens,
        "refined_bits": config.extra_bits,
        "rounded": config.weights != "float",
        "rounded_bits": INTEGER_BITS.get(config.weights, 8),
        "token_bias": config.token_bias,
        "loss": config.loss,
        "decoder": config.decoder,
    }


def _measured_once(protocol: Protocol, config: RunConfig, peer: PeerConfig | None) -> dict[str, Any]:
    """The measurements of a trained run; they lie beside it, so that protocols that share the run share them."""
    asked = {
        "test": file_record(str(config.data.test)),
        "validation": file_record(str(config.data.validation)),
        "batch_size": protocol.batch_size,
        "answers": asdict(protocol.answers) if protocol.answers is not None else None,
        **_of_peer(peer),
        **_of_decoders(protocol),
    }
    path = Path(config.output_dir) / f"measured-{digest(asked)}.json"
    stages = Stages(path.with_suffix(""))
    if not path.is_file():
        write_json(path, _measure(protocol, config, peer, stages))
    stages.remove()
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _of_peer(peer: PeerConfig | None) -> dict[str, Any]:
    return {} if peer is None else {"peer": peer.as_dict(), **of_files(peer.as_dict())}


def _of_decoders(protocol: Protocol) -> dict[str, Any]:
    return {"decoders": list(protocol.decoders)} if protocol.decoders else {}


def _measure(protocol: Protocol, config: RunConfig, peer: PeerConfig | None, stages: Stages) -> dict[str, Any]:
    """The measurements of a trained run, or of what a peer makes of it; `stages` keep what a conversion has come to."""
    model = load_model(config.output_dir).to(device_of(config))
    compressed = None if peer is None else compress(model, peer, config, protocol.batch_size, stages)
    size, in_bf16 = (
        compressed or model_size(model, weight_bytes=weight_bytes) for weight_bytes in (None, WEIGHT_BYTES)
    )
    metrics = {
        "test": _evaluate(model, config, config.data.test, "test", protocol.batch_size),
        "validation": _evaluate(model, config, config.data.validation, "validation", protocol.batch_size),
        "size": {**size.as_dict(), "bytes_in_bf16": in_bf16.bytes_stored},
        "decision": describe(model),
        **_of_peer(peer),
        "model_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if protocol.decoders and is_coded(model) and not model.decision.reading.decoders:
        metrics["decoders"] = _decoders(model, config, protocol)
    if protocol.answers is not None:
        metrics["answers"] = _answers(model, config, protocol.answers)
    return {**metrics, "measured": {"git": git_state(), "hardware": hardware(), "at": utc_now()}}


def _values(protocol: Protocol, cell: Cell, context: Context) -> dict[str, Any]:
    """The cell's fields with variables expanded, prepared data and tokenizer in their places."""
    values = expand(cell.config, context.variables)
    if context.data:  # its files hold the field `text`, whatever the source's was called
        values = merged(values, {"data": {**context.data, "text_field": None, "as_text": False, "max_documents": None}})
    spec = cell.config.get("tokenizer")
    if isinstance(spec, dict):
        values["tokenizer"] = context.tokenizers[canonical_json(spec)]
    return values


def _evaluate(model: Any, config: RunConfig, source: str | None, split: str, batch_size: int) -> dict[str, Any]:
    examples = _examples(config, source, split)
    return evaluate(model, load_tokenizer(config.output_dir), examples, batch_size=batch_size).as_dict()


def _examples(config: RunConfig, source: str | None, split: str) -> Any:
    """The tokenised examples of a split."""
    assert source is not None  # cell_config asks for it
    return load_examples(
        source,
        load_tokenizer(config.output_dir),
        block_size=config.data.block_size,
        split=split,
        subset=config.data.subset,
        text_field=config.data.text_field,
        as_text=config.data.as_text,
    )


def _decoders(model: Any, config: RunConfig, protocol: Protocol) -> dict[str, dict[str, float]]:
    """The test split under each decoder of the protocol; those that learn are fitted on the validation split."""
    return compare_decoders(
        model,
        load_tokenizer(config.output_dir),
        _examples(config, config.data.test, "test"),
        _examples(config, config.data.validation, "validation"),
        protocol.decoders,
        batch_size=protocol.batch_size,
    )


def _answers(model: Any, config: RunConfig, options: AnswersConfig) -> dict[str, Any]:
    """Answers to the first prompts of the test split, and their BERTScore."""
    assert config.data.test is not None
    tokenizer = load_tokenizer(config.output_dir)
    rows = read_rows(config.data.test, split="test", subset=config.data.subset, limit=options.prompts)
    encoder = find_encoder(options.encoder, options.encoder_layers)
    return score_answers(
        model,
        tokenizer,
        rows,
        encoder,
        max_new_tokens=options.new_tokens,
        batch_size=options.batch_size,
        samples=options.samples,
    )


def _bits(decision: Mapping[str, Any], num_classes: int) -> int:
    """Codeword length of a decision layer that is not built yet, check bits included."""
    from codehead.codes import build, load

    params, code = decision.get("code_params") or {}, decision.get("code", "minrandom")
    if decision.get("bits") is not None:
        return int(decision["bits"]) + int(params.get("parity", 0))
    return (load(code) if code.endswith(".safetensors") else build(code, num_classes, **params)).length
