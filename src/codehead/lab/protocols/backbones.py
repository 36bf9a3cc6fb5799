"""The models that cells start from, where a protocol brings its own: trained with Softmax, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.errors import CheckpointError, ConfigurationError
from codehead.lab.protocols.preparation import Context
from codehead.lab.protocols.protocol import Protocol, expand
from codehead.training.config import RunConfig
from codehead.training.folder import RECORD, RunFolder, first_difference, read_record
from codehead.training.provenance import file_records
from codehead.training.run import train

if TYPE_CHECKING:
    from transformers import TrainerCallback


def backbone_config(protocol: Protocol, name: str, context: Context) -> RunConfig:
    """The run that trains the backbone `name`, in its folder of the store.

    Without `data.train` of its own, on the training split of the protocol, read as text.
    """
    values = expand(protocol.backbones[name], context.variables)
    data = values.setdefault("data", {})
    if not data.get("train"):
        if not context.data:
            raise ConfigurationError(f"backbones.{name}.data.train is missing; name its source, or give a split")
        data.update(train=context.data["train"], as_text=True)
    return context.store.placed(values)


def train_backbone(
    protocol: Protocol, name: str, context: Context, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Train the backbone, or go on, or find it trained; returns its `run.json`."""
    return train_once(backbone_config(protocol, name, context), callbacks)


def train_once(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train, or go on with an unfinished run, or do nothing if it is finished; returns its `run.json`.

    The folder is named by the content of what training reads, so a run in it that seems to differ was begun with
    its files in another place, or beside other test data: it starts again.
    """
    if is_trained(config):
        return read_record(Path(config.output_dir))
    folder = RunFolder(config)
    moved = False
    if (folder.path / RECORD).exists():
        record = read_record(folder.path)
        is_other = record["provenance"]["data"] != file_records(config.data.sources)
        moved = is_other or first_difference(record["config"], folder.config) is not None
    train(config, overwrite=moved, callbacks=callbacks, progress=False)
    return read_record(Path(config.output_dir))


def is_trained(config: RunConfig) -> bool:
    """Whether the run is there and finished; not if its record is damaged."""
    try:
        return bool(read_record(Path(config.output_dir))["status"] == "finished")
    except CheckpointError:
        return False
