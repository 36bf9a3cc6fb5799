"""Decision layers in the causal language models of transformers: attach, detach, fold, checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codehead.models.coded import CodedCausalLM
    from codehead.models.folding import fold
    from codehead.models.rounding import to_int4, to_int8
    from codehead.models.surgery import attach, detach, is_coded

__all__ = ["CodedCausalLM", "attach", "detach", "fold", "is_coded", "to_int4", "to_int8"]

_HOMES = {
    "CodedCausalLM": "coded",
    "attach": "surgery",
    "detach": "surgery",
    "fold": "folding",
    "is_coded": "surgery",
    "to_int4": "rounding",
    "to_int8": "rounding",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import codehead` passes here and must stay cheap."""
    if name in _HOMES:
        return getattr(import_module(f"codehead.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'codehead.models' has no attribute {name!r}")
