"""One cell of a protocol: train, evaluate, measure the size → one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.errors import ConfigurationError
from codehead.evaluation.metrics import evaluate
from codehead.evaluation.result import Result
from codehead.evaluation.size import config_shape, model_shape, model_size
from codehead.models import is_coded
from codehead.protocols.preparation import point_to
from codehead.protocols.protocol import HALF, Cell, Protocol, expand, half_width, run_config
from codehead.training.config import RunConfig
from codehead.training.data import load_examples
from codehead.training.folder import RECORD, RunFolder, first_difference, read_record
from codehead.training.model import default_device, load_model
from codehead.training.run import train
from codehead.training.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import TrainerCallback


def run_cell(
    protocol: Protocol,
    cell: Cell,
    folder: Path,
    shared: Mapping[str, Any],
    variables: Mapping[str, str],
    callbacks: Sequence[TrainerCallback] = (),
) -> Result:
    """Train the cell in `folder` (going on where a killed run stopped) and measure it on the test split.

    `shared` is what `prepare` returned. A finished run in the folder is not trained again.
    """
    config = cell_config(cell, folder, shared, variables)
    record = train_once(config, callbacks)
    model = load_model(str(folder)).to(default_device())
    metrics = {
        "test": _evaluate(model, folder, config, config.data.test, "test", protocol.batch_size),
        "validation": _evaluate(model, folder, config, config.data.validation, "validation", protocol.batch_size),
        "size": model_size(model).as_dict(),
        "decision": describe(model),
        "model_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": record["provenance"]["wall_seconds"],
        "history": [entry for entry in record["log_history"] if "loss" in entry],
    }
    return Result(f"{protocol.name}/{cell.key}", result_config(protocol, cell), metrics, record["provenance"])


def train_once(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train, or go on with an unfinished run, or do nothing if it is finished; returns its `run.json`.

    Raises ConfigurationError if the folder holds a run of another configuration.
    """
    folder = RunFolder(config)
    if (folder.path / RECORD).exists():
        record = read_record(folder.path)
        difference = first_difference(record["config"], folder.config)
        if difference:
            raise ConfigurationError(
                f"{str(folder.path)!r} holds a run of another configuration: {difference}; "
                "remove it or choose another --out"
            )
        if record["status"] == "finished":
            return record
    train(config, callbacks=callbacks, progress=False)
    return read_record(folder.path)


def cell_config(cell: Cell, folder: Path, shared: Mapping[str, Any], variables: Mapping[str, str]) -> RunConfig:
    """The configuration of the cell's run; a width of "half" becomes a number here."""
    cell = point_to(cell, shared)
    decision = cell.config.get("decision") or {}
    width = None
    if decision.get("width") == HALF:
        width = half_width(*_shape(expand(cell.config, variables)), _bits(decision, cell, variables))
    config = run_config(cell, variables, folder, width)
    if config.data.test is None or config.data.validation is None:
        raise ConfigurationError(
            "a protocol needs a validation and a test source; give base.data.validation and base.data.test, or split"
        )
    return config


def result_config(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    """What the result says of its cell; free of local paths, because variables are not expanded."""
    return {
        "protocol": protocol.name,
        "cell": cell.name,
        "setting": cell.setting,
        "seed": cell.seed,
        "reference": protocol.reference,
        "split": protocol.split,
        "run": cell.config,
    }


def describe(model: Any) -> dict[str, Any] | None:
    """The decision layer in short; None for the model's own Softmax head."""
    if not is_coded(model):
        return None
    decision, head = model.decision, model.get_output_embeddings()
    return {
        "design": model.config.quantization_config["design"],
        "bits": decision.table.length,
        "head": model.config.quantization_config["head"],
        "width": getattr(head, "width", 0),
        "loss": decision.loss_name,
        "decoder": decision.decoder_name,
    }


def _evaluate(
    model: Any, folder: Path, config: RunConfig, source: str | None, split: str, batch_size: int
) -> dict[str, Any]:
    assert source is not None  # cell_config asks for it
    tokenizer = load_tokenizer(str(folder))
    examples = load_examples(
        source,
        tokenizer,
        block_size=config.data.block_size,
        split=split,
        subset=config.data.subset,
        text_field=config.data.text_field,
    )
    return evaluate(model, tokenizer, examples, batch_size=batch_size).as_dict()


def _shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Hidden size before the head and number of tokens of the model that a run will have."""
    from transformers import AutoConfig

    model = config["model"]
    if isinstance(model, str):
        shape = model_shape(model)
        return shape.hidden_size, shape.num_classes
    options = {key: value for key, value in model.items() if key != "model_type"}
    vocabulary = options.get("vocab_size") or len(load_tokenizer(config["tokenizer"]))
    return config_shape(AutoConfig.for_model(model["model_type"], **options)).hidden_size, vocabulary


def _bits(decision: Mapping[str, Any], cell: Cell, variables: Mapping[str, str]) -> int:
    from codehead.codes import build

    if decision.get("bits") is not None:
        return int(decision["bits"])
    _, num_classes = _shape(expand(cell.config, variables))
    return build(decision.get("code", "minrandom"), num_classes, **(decision.get("code_params") or {})).length
