"""The shape of a model that is only named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codehead.config import ModelShape
from codehead.models import gguf


def model_shape(name: str) -> ModelShape:
    """The shape of a hub id, a local folder, a `config.json` or a GGUF file, without loading weights."""
    found = _written_out(Path(name).expanduser())
    return ModelShape.of_config(gguf.configuration(name)) if found is None else found


def _written_out(place: Path) -> ModelShape | None:
    """The shape, if a local `config.json` says all of it by the usual names: transformers takes seconds to import."""
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
