"""The configuration of the model that a cell will train, before there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codehead.errors import ConfigurationError
from codehead.training.tokenizer import load_tokenizer


def source_architecture(source: Mapping[str, Any]) -> Any:
    """The transformers configuration of the `model` of a run: a literal architecture, a hub id or a local folder.

    Raises ConfigurationError if a hub id or a local folder gives none.
    """
    from transformers import AutoConfig

    model = source["model"]
    if isinstance(model, str):
        try:
            return AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"model {model!r} has no configuration that could be read: {error}") from error
    options = {key: value for key, value in model.items() if key != "model_type"}
    options.setdefault("vocab_size", _entries(source["tokenizer"]))
    try:
        return AutoConfig.for_model(model["model_type"], **options)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"model {model!r} is no architecture that could be built: {error}") from error


def _entries(tokenizer: Any) -> int:
    """How many tokens a tokenizer has, or will have once it is trained."""
    return int(tokenizer["vocab_size"]) if isinstance(tokenizer, dict) else len(load_tokenizer(tokenizer))
