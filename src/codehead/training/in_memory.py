"""A model and a text in memory, as files for as long as they are needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codehead.errors import CodeheadError, ConfigurationError, DataError
from codehead.training.folder import locked


@contextmanager
def on_disk(model: Any, tokenizer: Any, text: str | Sequence[str], out: str | Path) -> Iterator[tuple[str, str]]:
    """The paths of a model and a text; those in memory are saved beside `out` for as long as they are needed.

    They always go to the same place, so that a stopped conversion finds what it began with.
    """
    is_named = isinstance(model, str | Path)
    if is_named and tokenizer is not None:
        raise ConfigurationError(
            f"tokenizer is given, but model {str(model)!r} is read with its own; omit it, or give the model in memory"
        )
    if is_named and isinstance(text, str | Path):
        yield str(model), str(text)
        return
    if not is_named:
        _check_in_memory(model, tokenizer)
    documents = None if isinstance(text, str | Path) else _documents(text)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigurationError(
            "model or text is in memory, but there are several processes, which read files; save it, and give its path"
        )
    folder = Path(os.path.expanduser(out)).resolve()
    place = folder.with_name(f".{folder.name}.source")
    with locked(place):
        own = place / "own"
        own.mkdir(exist_ok=True)
        try:
            source, file = own / "model", own / "text.jsonl"
            if not is_named:
                model.save_pretrained(source)
                tokenizer.save_pretrained(source)
            if documents is not None:
                file.write_text("".join(json.dumps({"text": some}) + "\n" for some in documents), encoding="utf-8")
            yield str(model if is_named else source), str(text if documents is None else file)
        except CodeheadError as error:  # must not name files that are removed here
            error.args = (str(error).replace(repr(str(source)), "in memory").replace(repr(str(file)), "text"),)
            raise
        finally:
            shutil.rmtree(own)


def _check_in_memory(model: Any, tokenizer: Any) -> None:
    if not hasattr(model, "save_pretrained"):
        raise ConfigurationError(
            f"model is {type(model).__name__}; give a hub id, a folder, a GGUF file or a model of transformers"
        )
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigurationError(
            "model has adapters of PEFT, which a checkpoint of the whole model lacks; merge them with "
            "PeftModel.merge_and_unload(), and give the model that it returns"
        )
    if not hasattr(tokenizer, "save_pretrained"):
        raise ConfigurationError(
            f"tokenizer is {tokenizer!r}, but the model is in memory; give its tokenizer, or the folder of both"
        )


def _documents(text: Any) -> list[str]:
    """The documents of a text in memory; DataError if it is anything but strings."""
    remedy = "give a list of strings, one per document, or a hub id or file"
    if not isinstance(text, Iterable) or isinstance(text, Mapping):
        raise DataError(f"text is {type(text).__name__}; {remedy}")
    documents = list(text)
    for number, some in enumerate(documents):
        if not isinstance(some, str):
            raise DataError(f"text[{number}] is {type(some).__name__}; {remedy}")
    if not any(documents):
        raise DataError(f"text has {len(documents)} documents, all of them empty; {remedy}")
    return documents
