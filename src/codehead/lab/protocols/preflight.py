"""What would stop a run, told before anything is written; and which results are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codehead.errors import ConfigurationError
from codehead.evaluation.size import ModelShape, config_shape
from codehead.lab.answers.encoder import find_encoder
from codehead.lab.protocols.architecture import cell_architecture
from codehead.lab.protocols.backbones import backbone_config
from codehead.lab.protocols.cells import cell_config, of_cell_files, result_config
from codehead.lab.protocols.layout import result_path
from codehead.lab.protocols.preparation import Context, prepared_sources
from codehead.lab.protocols.protocol import Cell, PeerConfig, Protocol
from codehead.lab.result import Result, canonical_json
from codehead.training.config import RunConfig
from codehead.training.provenance import file_records
from codehead.training.sources import check_source

INCIDENTAL = ("description",)  # keys of a result's configuration that its numbers do not depend on


def check_runs(protocol: Protocol, cells: Sequence[Cell], context: Context) -> None:
    """Validate the encoder, every configuration and every source that the cells and their backbones need.

    Nothing is written, but an encoder of the hub is fetched. Raises ConfigurationError, also for two cells that are
    the same run and would write into one folder, and DataError for a source that does not exist.
    """
    if protocol.answers is not None:  # what could not be scored in the end
        find_encoder(protocol.answers.encoder, protocol.answers.encoder_layers)
    configs = {cell.key: cell_config(protocol, cell, context) for cell in cells}
    names = dict.fromkeys(cell.backbone for cell in cells if cell.backbone is not None)
    runs = [*(backbone_config(protocol, name, context) for name in names), *configs.values()]
    needed = [*prepared_sources(protocol, context), *(source for run in runs for source in run.data.sources)]
    for source in dict.fromkeys(needed):
        if source not in context.data.values():  # those are made from the others
            check_source(source)
    _check_folders({cell.key: configs[cell.key] for cell in cells if cell.peer is None})
    for cell in {(cell.setting, cell.name): cell for cell in cells}.values():
        if cell.peer is not None and cell.peer.convert is None:
            _check_peer(cell.key, cell.peer, _shape(protocol, cell, context))


def is_finished(protocol: Protocol, cell: Cell, out: Path) -> bool:
    """Whether the cell has a result; ConfigurationError if it is one of another configuration."""
    path = result_path(out, cell)
    if not path.is_file():
        return False
    found, wanted = Result.read(path).config, result_config(protocol, cell)
    if canonical_json(_essential(found)) != canonical_json(_essential(wanted)):
        raise ConfigurationError(
            f"{str(path)!r} was measured with another configuration of {cell.key!r}; remove it or choose another --out"
        )
    return True


def check_data(protocol: Protocol, cell: Cell, out: Path, context: Context) -> None:
    """Refuse a result over other data, which its configuration, free of local paths, does not tell apart.

    The data must be prepared. Raises ConfigurationError.
    """
    path, config = result_path(out, cell), cell_config(protocol, cell, context)
    provenance = Result.read(path).provenance
    if provenance["data"] != file_records(config.data.sources):
        raise ConfigurationError(
            f"{str(path)!r} was measured on other data: a file has changed since; remove it or choose another --out"
        )
    if provenance.get("files", []) != of_cell_files(config, cell).get("files", []):
        raise ConfigurationError(
            f"{str(path)!r} was measured with another code: a file that it is made of has changed since; remove it or "
            "choose another --out"
        )


def _shape(protocol: Protocol, cell: Cell, context: Context) -> ModelShape | None:
    """The shape of a cell's model; None if it cannot be looked at from here."""
    try:
        return config_shape(cell_architecture(protocol, cell, context))
    except ConfigurationError:  # a hub that cannot be reached: what is wrong is told when the model is loaded
        return None


def _check_peer(key: str, peer: PeerConfig, shape: ModelShape | None) -> None:
    """Raise ConfigurationError, before anything is trained, if a head of a known shape cannot be so compressed."""
    if shape is None:
        return
    if peer.bits is not None and shape.hidden_size % peer.group:
        raise ConfigurationError(
            f"{key}: peer.group is {peer.group}, which does not divide the hidden size {shape.hidden_size}"
        )
    if peer.keep is not None and peer.keep > shape.num_classes:
        raise ConfigurationError(f"{key}: peer.keep is {peer.keep}, but the model has {shape.num_classes} tokens")


def _check_folders(configs: Mapping[str, RunConfig]) -> None:
    owners: dict[str, str] = {}
    for key, config in configs.items():
        owner = owners.setdefault(config.output_dir, key)
        if owner != key:
            raise ConfigurationError(f"{owner!r} and {key!r} are the same run; remove one of them")


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in INCIDENTAL}
