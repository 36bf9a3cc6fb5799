"""The configuration of the model that a cell will train, before there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codehead.boundaries import reason
from codehead.errors import ConfigurationError
from codehead.models import gguf
from codehead.training.tokenizer import load_tokenizer


def source_architecture(source: Mapping[str, Any]) -> Any:
    """The transformers configuration of the `model` of a run: a literal architecture, a hub id or a local folder.

    Raises ConfigurationError if a hub id or a local folder gives none.
    """
    from transformers import AutoConfig

    model = source["model"]
    if isinstance(model, str):
        return gguf.configuration(model)
    options = {key: value for key, value in model.items() if key != "model_type"}
    options.setdefault("vocab_size", _entries(source["tokenizer"]))
    try:
        return AutoConfig.for_model(model["model_type"], **options)
    except Exception as error:  # an architecture raises whatever its parts make of a value
        raise ConfigurationError(f"model {model!r} cannot be built: {reason(error)}; change it") from error


def _entries(tokenizer: Any) -> int:
    """How many tokens a tokenizer has, or will have once it is trained."""
    return int(tokenizer["vocab_size"]) if isinstance(tokenizer, dict) else len(load_tokenizer(tokenizer))
