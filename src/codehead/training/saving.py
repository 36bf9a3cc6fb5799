"""A folder that one process at a time works in, a checkpoint that takes the place of another once written whole, and
models and texts in memory that lie in files for as long as they are needed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from codehead.boundaries import library_bars_hidden
from codehead.errors import ConfigurationError
from codehead.models import card

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder; the system lifts the lock of one that was killed.

    A folder that is made for the lock, and in which nothing has come to lie, goes with it. Raises ConfigurationError if
    another process is in the folder.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"another command is at work in {str(folder)!r}; wait for its end, because two would spoil each other's "
            "files, or choose another --out"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            (folder / LOCK).unlink()
        lock.release()
        for place in made:
            with suppress(OSError):  # it is not empty
                place.rmdir()


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


@contextmanager
def on_disk(model: Any, tokenizer: Any, text: str | Sequence[str], out: str | Path) -> Iterator[tuple[str, str]]:
    """The places of a model and of a text: what is in memory lies beside `out` for as long as it is needed.

    Each time in the same place, so that a conversion that was stopped finds there what it began with.
    """
    is_named = isinstance(model, str | Path)
    if is_named and isinstance(text, str | Path):
        yield str(model), str(text)
        return
    if not is_named and tokenizer is None:
        raise ConfigurationError(
            "tokenizer is None, but the model is in memory; give its tokenizer, or the folder of both"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigurationError(
            "model or text is in memory, but there are several processes, which read files; save it, and give its path"
        )
    folder = Path(out).expanduser().resolve()
    place = folder.with_name(f".{folder.name}.source")
    with locked(place):
        own = place / "own"
        own.mkdir(exist_ok=True)
        try:
            source = str(model) if is_named else _saved(model, tokenizer, own / "model")
            yield source, _filed(text, own / "text.jsonl")
        finally:
            shutil.rmtree(own)


def _saved(model: Any, tokenizer: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _filed(text: str | Sequence[str], file: Path) -> str:
    if isinstance(text, str | Path):
        return str(text)
    file.write_text("".join(json.dumps({"text": some}) + "\n" for some in text), encoding="utf-8")
    return str(file)
