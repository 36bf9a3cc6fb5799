"""A model and its tokenizer take the place of those in a folder once they are written whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codehead.models import card
from codehead.training.quiet import library_bars_hidden

WEIGHTS = ("codehead.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
STAGE = ".unfinished"


def save_whole(model: Any, tokenizer: Any, folder: Path, measured: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint beside the one in a folder, then in its place; files of other names stay.

    What was `measured`, `before` and `after` a conversion, stands in the card.

    If the writing fails, by a full disk for instance, the old checkpoint is as it was. A process that is killed while
    the files change places leaves a folder without weights, never a mixture of two models.
    """
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)  # of a process that was killed
    try:
        with library_bars_hidden():
            model.save_pretrained(stage)
            if measured is not None:
                card.write(stage, model, measured)
            tokenizer.save_pretrained(stage)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    for file in weight_files(folder):
        file.unlink()
    for file in sorted((path for path in stage.rglob("*") if path.is_file()), key=_order):
        place = folder / file.relative_to(stage)
        place.parent.mkdir(exist_ok=True)
        (card.publish if file.name == card.NAME else os.replace)(file, place)
    shutil.rmtree(stage)


def weight_files(folder: Path) -> list[Path]:
    """The files in a folder that hold the weights of a model, or tell of them."""
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def _order(file: Path) -> tuple[bool, str]:
    """Weights last, after their checksums."""
    return any(file.match(pattern) for pattern in WEIGHTS), str(file)
