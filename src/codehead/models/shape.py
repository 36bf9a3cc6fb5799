"""The shape of a model that is only named."""

from __future__ import annotations

from codehead.config import ModelShape
from codehead.models import gguf


def model_shape(name: str) -> ModelShape:
    """The shape of a hub id, a local folder, a `config.json` or a GGUF file, without loading weights."""
    return ModelShape.of_config(gguf.configuration(name))
