"""Runs in a store: each is trained once, goes on where it was stopped, or is found trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.errors import CheckpointError
from codehead.training.config import RunConfig
from codehead.training.folder import RECORD, RunFolder, first_difference, read_record
from codehead.training.provenance import file_records
from codehead.training.run import train

if TYPE_CHECKING:
    from transformers import TrainerCallback


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
