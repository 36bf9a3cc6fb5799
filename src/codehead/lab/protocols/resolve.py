"""Entries of a protocol file → checked cells with everything needed to train and measure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codehead.boundaries import reason
from codehead.codes import load
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError
from codehead.lab.baselines import FILE_KEY, HALF, BaselineConfig
from codehead.lab.bertscore import find_encoder
from codehead.lab.protocols.protocol import Entry, Protocol, expand, merged
from codehead.lab.protocols.store import Context, of_files, prepared_sources
from codehead.lab.result import Result, canonical_json, result_path
from codehead.models import named
from codehead.training.config import RunConfig
from codehead.training.provenance import file_records
from codehead.training.sources import check_source
from codehead.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Backbone:
    """The model that cells start from, if a protocol has its own: trained once, with Softmax."""

    name: str
    run: RunConfig

    @property
    def key(self) -> str:
        """The name of its training in reports and failures."""
        return f"backbone {self.name}"


@dataclass(frozen=True)
class Cell:
    """One run of a protocol, ready to be trained and measured."""

    protocol: Protocol
    """How it is measured: batch size, answers, decoders."""
    entry: Entry
    run: RunConfig
    """The run, in its folder of the store; for a baseline the reference's run."""
    backbone: Backbone | None
    """None if it has its own model."""
    result: Path
    """The file of its result."""
    source: dict[str, Any]
    """`model` and `tokenizer`, the backbone's if there is one, before either exists."""

    @property
    def key(self) -> str:
        """`10M/minimal/seed-0`."""
        return self.entry.key

    @cached_property
    def architecture(self) -> Any:
        """The transformers configuration of its model; ConfigurationError if a hub id or a local folder gives none."""
        return source_architecture(self.source)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The cell's description in its result; free of local paths, because variables are not expanded."""
        protocol, entry = self.protocol, self.entry
        return {
            "protocol": protocol.name,
            "description": protocol.description,
            "paper": protocol.paper,
            "cell": entry.name,
            "setting": entry.setting,
            "seed": entry.seed,
            "reference": protocol.reference,
            "split": protocol.split,
            "run": entry.config,
            **self.of_baseline,
            "backbone": None if entry.backbone is None else protocol.backbones[entry.backbone],
            **self.measures,
        }

    @property
    def of_baseline(self) -> dict[str, Any]:
        """The baseline's description in files; nothing if there is none."""
        if self.entry.baseline is None:
            return {}
        described = self.entry.baseline.as_dict()
        return {FILE_KEY: described, **of_files(described)}

    @property
    def measures(self) -> dict[str, Any]:
        """Measurements besides accuracy, likelihood and size."""
        protocol = self.protocol
        decoders = {"decoders": list(protocol.decoders)} if protocol.decoders else {}
        return {"answers": asdict(protocol.answers) if protocol.answers is not None else None, **decoders}

    @property
    def of_code_files(self) -> dict[str, Any]:
        """`files`, the records of the decision layer's files, or nothing."""
        decision = self.run.decision and self.run.decision.to_dict()
        return of_files({"decision": decision, **self.of_baseline})


def resolve(protocol: Protocol, context: Context, out: Path, entries: Sequence[Entry]) -> list[Cell]:
    """The cells of some entries of a protocol, whose results belong to the folder `out`.

    Runs are named after the content that they read, so a protocol's data must be prepared before they are trained.
    Raises ConfigurationError for a configuration that cannot run.
    """
    names = dict.fromkeys(entry.backbone for entry in entries if entry.backbone is not None)
    backbones = {name: Backbone(name, _backbone_run(protocol, name, context)) for name in names}
    return [_resolved(protocol, entry, context, out, backbones) for entry in entries]


def half_width(hidden_size: int, num_classes: int, num_bits: int) -> int:
    """The d whose MTL head n·(H·d + d) is nearest to half of the Softmax head's V·H parameters."""
    return max(1, round(num_classes * hidden_size / 2 / (num_bits * (hidden_size + 1))))


def _resolved(protocol: Protocol, entry: Entry, context: Context, out: Path, backbones: Mapping[str, Backbone]) -> Cell:
    """The cell of an entry; a width of "half" becomes a number here."""
    values = _values(entry, context)
    backbone = None if entry.backbone is None else backbones[entry.backbone]
    described = entry.config if backbone is None else protocol.backbones[backbone.name]
    source = expand({key: described.get(key) for key in ("model", "tokenizer")}, context.variables)
    decision = values.get("decision") or {}
    if decision.get("width") == HALF:
        shape = ModelShape.of_config(source_architecture(source))
        decision["width"] = half_width(shape.hidden_size, shape.num_classes, _bits(decision, shape.num_classes))
    if backbone is not None:
        values["model"] = backbone.run.output_dir
    data = values.get("data") or {}
    if not data.get("test") or not data.get("validation"):
        raise ConfigurationError(
            "a protocol needs a validation and a test source; give base.data.validation and base.data.test, or split"
        )
    return Cell(protocol, entry, context.store.placed(values), backbone, result_path(out, entry.key), source)


def _backbone_run(protocol: Protocol, name: str, context: Context) -> RunConfig:
    """Without its own `data.train`, it is trained on the protocol's training split, read as text."""
    values = expand(protocol.backbones[name], context.variables)
    data = values.setdefault("data", {})
    if not data.get("train"):
        if not context.data:
            raise ConfigurationError(f"backbones.{name}.data.train is missing; name its source, or give a split")
        data.update(train=context.data["train"], as_text=True)
    return context.store.placed(values)


def _values(entry: Entry, context: Context) -> dict[str, Any]:
    """The fields of a run with variables expanded, prepared data and tokenizer in their places."""
    values = expand(entry.config, context.variables)
    if context.data:  # prepared files have the field `text`, whatever its name in the source
        values = merged(values, {"data": {**context.data, "text_field": None, "as_text": False, "max_documents": None}})
    spec = entry.config.get("tokenizer")
    if isinstance(spec, dict):
        values["tokenizer"] = context.tokenizers[canonical_json(spec)]
    return values


def _bits(decision: Mapping[str, Any], num_classes: int) -> int:
    """Codeword length of a decision layer that is not built yet, check bits included."""
    config = DecisionConfig.from_dict({key: value for key, value in decision.items() if key != "width"})
    return load(str(config.code)).length if config.is_codebook_file else config.length(num_classes)


# The configuration of the model that a cell will train, before the model exists.


def source_architecture(source: Mapping[str, Any]) -> Any:
    """The transformers configuration of the `model` of a run: a literal architecture, a hub id or a local folder.

    Raises ConfigurationError if a hub id or a local folder gives none.
    """
    from transformers import AutoConfig

    model = source["model"]
    if isinstance(model, str):
        return named.configuration(model)
    options = {key: value for key, value in model.items() if key != "model_type"}
    options.setdefault("vocab_size", _entries(source["tokenizer"]))
    try:
        return AutoConfig.for_model(model["model_type"], **options)
    except Exception as error:  # an architecture can raise anything for a bad value
        raise ConfigurationError(f"model {model!r} cannot be built: {reason(error)}; change it") from error


def _entries(tokenizer: Any) -> int:
    """How many tokens a tokenizer has, or will have once it is trained."""
    return int(tokenizer["vocab_size"]) if isinstance(tokenizer, dict) else len(load_tokenizer(tokenizer))


# Problems that would stop a run, found before anything is written; and results that exist already.


def check_runs(protocol: Protocol, cells: Sequence[Cell], context: Context) -> None:
    """Look for the encoder and for every source that the cells and their backbones need.

    Nothing is written, but an encoder on the hub is downloaded. Raises ConfigurationError, also for two cells that
    are the same run and would write into one folder, and DataError for a source that does not exist.
    """
    if protocol.answers is not None and protocol.answers.encoder is not None:  # answers that could not be scored
        find_encoder(protocol.answers.encoder, protocol.answers.encoder_layers)
    runs = [cell.backbone.run for cell in cells if cell.backbone is not None] + [cell.run for cell in cells]
    needed = [*prepared_sources(protocol, context), *(source for run in runs for source in run.data.sources)]
    for source in dict.fromkeys(needed):
        if source not in context.data.values():  # made from other results
            check_source(source)
    _check_folders([cell for cell in cells if cell.entry.baseline is None])
    for cell in {(cell.entry.setting, cell.entry.name): cell for cell in cells}.values():
        if cell.entry.baseline is not None and cell.entry.baseline.convert is None:
            _check_baseline(cell, cell.entry.baseline)


def is_finished(cell: Cell) -> bool:
    """Whether the cell has a result; ConfigurationError if that has another configuration."""
    if not cell.result.is_file():
        return False
    configs = ({**config, "description": None} for config in (Result.read(cell.result).config, cell.record))
    if len({canonical_json(config) for config in configs}) > 1:  # no number depends on the description
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured with another configuration of {cell.key!r}; remove it or choose "
            "another --out"
        )
    return True


def check_data(cell: Cell) -> None:
    """Refuse a result on other data, which its configuration, free of local paths, does not reveal.

    The data must be prepared. Raises ConfigurationError.
    """
    provenance = Result.read(cell.result).provenance
    if provenance["data"] != file_records(cell.run.data.sources):
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured on other data: a file has changed since; remove it or choose another "
            "--out"
        )
    if provenance.get("files", []) != cell.of_code_files.get("files", []):
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured with another code: one of its files has changed since; remove "
            "it or choose another --out"
        )


def _check_baseline(cell: Cell, baseline: BaselineConfig) -> None:
    """Raise ConfigurationError, before anything is trained, if a head of known shape cannot be compressed this way."""
    try:
        shape = ModelShape.of_config(cell.architecture)
    except ConfigurationError:  # a hub that cannot be reached: loading the model reports the problem
        return
    if baseline.bits is not None and shape.hidden_size % baseline.group:
        raise ConfigurationError(
            f"{cell.key}: baseline.group is {baseline.group}, which does not divide the hidden size {shape.hidden_size}"
        )
    if baseline.keep is not None and baseline.keep > shape.num_classes:
        raise ConfigurationError(
            f"{cell.key}: baseline.keep is {baseline.keep}, but the model has {shape.num_classes} tokens"
        )


def _check_folders(cells: Sequence[Cell]) -> None:
    owners: dict[str, str] = {}
    for cell in cells:
        owner = owners.setdefault(cell.run.output_dir, cell.key)
        if owner != cell.key:
            raise ConfigurationError(f"{owner!r} and {cell.key!r} are the same run; remove one of them")
