"""What would stop a run, told before anything is written; and which results are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codehead.config import ModelShape
from codehead.errors import ConfigurationError
from codehead.lab.answers.encoder import find_encoder
from codehead.lab.baselines.config import BaselineConfig
from codehead.lab.protocols.preparation import Context, prepared_sources
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.resolve import Cell
from codehead.lab.result import Result, canonical_json
from codehead.training.provenance import file_records
from codehead.training.sources import check_source

INCIDENTAL = ("description",)  # keys of a result's configuration that its numbers do not depend on


def check_runs(protocol: Protocol, cells: Sequence[Cell], context: Context) -> None:
    """Look for the encoder and for every source that the cells and their backbones need.

    Nothing is written, but an encoder of the hub is fetched. Raises ConfigurationError, also for two cells that are
    the same run and would write into one folder, and DataError for a source that does not exist.
    """
    if protocol.answers is not None and protocol.answers.encoder is not None:  # what could not be scored in the end
        find_encoder(protocol.answers.encoder, protocol.answers.encoder_layers)
    runs = [cell.backbone.run for cell in cells if cell.backbone is not None] + [cell.run for cell in cells]
    needed = [*prepared_sources(protocol, context), *(source for run in runs for source in run.data.sources)]
    for source in dict.fromkeys(needed):
        if source not in context.data.values():  # those are made from the others
            check_source(source)
    _check_folders([cell for cell in cells if cell.baseline is None])
    for cell in {(cell.entry.setting, cell.name): cell for cell in cells}.values():
        if cell.baseline is not None and cell.baseline.convert is None:
            _check_baseline(cell.key, cell.baseline, _shape(cell))


def is_finished(cell: Cell) -> bool:
    """Whether the cell has a result; ConfigurationError if it is one of another configuration."""
    if not cell.result.is_file():
        return False
    found = Result.read(cell.result).config
    if canonical_json(_essential(found)) != canonical_json(_essential(cell.record)):
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured with another configuration of {cell.key!r}; remove it or choose "
            "another --out"
        )
    return True


def check_data(cell: Cell) -> None:
    """Refuse a result over other data, which its configuration, free of local paths, does not tell apart.

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
            f"{str(cell.result)!r} was measured with another code: a file that it is made of has changed since; remove "
            "it or choose another --out"
        )


def _shape(cell: Cell) -> ModelShape | None:
    """The shape of a cell's model; None if it cannot be looked at from here."""
    try:
        return ModelShape.of_config(cell.architecture)
    except ConfigurationError:  # a hub that cannot be reached: what is wrong is told when the model is loaded
        return None


def _check_baseline(key: str, baseline: BaselineConfig, shape: ModelShape | None) -> None:
    """Raise ConfigurationError, before anything is trained, if a head of a known shape cannot be so compressed."""
    if shape is None:
        return
    if baseline.bits is not None and shape.hidden_size % baseline.group:
        raise ConfigurationError(
            f"{key}: baseline.group is {baseline.group}, which does not divide the hidden size {shape.hidden_size}"
        )
    if baseline.keep is not None and baseline.keep > shape.num_classes:
        raise ConfigurationError(
            f"{key}: baseline.keep is {baseline.keep}, but the model has {shape.num_classes} tokens"
        )


def _check_folders(cells: Sequence[Cell]) -> None:
    owners: dict[str, str] = {}
    for cell in cells:
        owner = owners.setdefault(cell.run.output_dir, cell.key)
        if owner != cell.key:
            raise ConfigurationError(f"{owner!r} and {cell.key!r} are the same run; remove one of them")


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in INCIDENTAL}
