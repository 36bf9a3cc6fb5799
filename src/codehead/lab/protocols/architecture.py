"""The configuration of the model that a cell will train, before there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codehead.boundaries import reason
from codehead.errors import ConfigurationError
from codehead.lab.protocols.preparation import Context
from codehead.lab.protocols.protocol import Cell, Protocol, expand
from codehead.models import gguf
from codehead.training.tokenizer import load_tokenizer


def cell_architecture(protocol: Protocol, cell: Cell, context: Context) -> Any:
    """The transformers configuration of the cell's model.

    Raises ConfigurationError if a hub id or a local folder gives none.
    """
    source = cell.config if cell.backbone is None else protocol.backbones[cell.backbone]
    return source_architecture(expand(source, context.variables))


def source_architecture(source: Mapping[str, Any]) -> Any:
    """The same of the expanded fields of a RunConfig: a literal architecture, a hub id or a local folder."""
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
