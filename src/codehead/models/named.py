"""Models by name: a hub id, a folder, a `config.json` or a GGUF file; their configuration and shape."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from codehead.boundaries import loading
from codehead.config import ModelShape
from codehead.errors import CheckpointError, ConfigurationError

MAGIC = b"GGUF"
"""The first bytes of every GGUF file."""


def is_gguf(name: str) -> bool:
    """Whether a model is named by a GGUF file, not by a folder or hub id."""
    return name.lower().endswith(".gguf")


@contextmanager
def pretrained(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arguments of `from_pretrained` for a hub id, a folder or a GGUF file: the place, and options that name the file.

    The place holds only the GGUF file: transformers would pick up the tokenizer, generation settings and adapters of
    another model beside it. ConfigurationError if the file, or the package that reads it, is missing; CheckpointError
    if it is damaged or of another format.
    """
    if not is_gguf(name):
        yield os.path.expanduser(name), {}
        return
    path = _checked(name)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / path.name).symlink_to(path)
        try:
            yield place, {"gguf_file": path.name}
        except (OSError, ImportError, MemoryError):
            raise
        except Exception as error:  # the readers check nothing: a damaged file may fail anywhere
            raise CheckpointError(f"{name} could not be read as a GGUF file: {error}") from error


def _checked(name: str) -> Path:
    path = Path(os.path.expanduser(name)).resolve()
    if not path.is_file():
        raise ConfigurationError(f"model {name!r} is named as a GGUF file, but there is no such file")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{name} does not start like a GGUF file; copy or download it again")
    if find_spec("gguf") is None:
        raise ConfigurationError(
            f"model {name!r} is a GGUF file, which the package gguf reads: pip install 'codehead[gguf]'"
        )
    return path


def configuration(name: str) -> Any:
    """The transformers configuration of a hub id, a folder, a `config.json` or a GGUF file.

    ConfigurationError if it cannot be read.
    """
    from transformers import AutoConfig

    with loading("model", name), pretrained(name) as (place, options):
        return AutoConfig.from_pretrained(place, **options)


def unpacking(options: dict[str, Any]) -> dict[str, Any]:
    """The `options` of `pretrained` for loading weights: unpacked, even if transformers has kernels for GGUF blocks."""
    import transformers

    has_kernels = hasattr(transformers, "GgufConfig")
    if not options or not has_kernels:
        return options
    return {**options, "quantization_config": transformers.GgufConfig(dequantize=True)}


def model_shape(name: str) -> ModelShape:
    """The shape of a hub id, a local folder, a `config.json` or a GGUF file, without loading weights."""
    found = _written_out(Path(os.path.expanduser(name)))
    return ModelShape.of_config(configuration(name)) if found is None else found


def _written_out(place: Path) -> ModelShape | None:
    """The shape, if a local `config.json` gives it by the usual names: importing transformers takes seconds."""
    file = place / "config.json" if place.is_dir() else place
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.name == "config.json" else {}
        sizes = [values[key] for key in ("hidden_size", "vocab_size", "max_position_embeddings")]
        tied: Any = values["tie_word_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    plain = all(type(size) is int for size in sizes) and isinstance(tied, bool)
    special = {"quantization_config", "text_config", "word_embed_proj_dim"} & set(values)
    return ModelShape(sizes[0], sizes[1], tied, sizes[2]) if plain and not special else None
