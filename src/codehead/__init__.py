"""Error-correcting output codes as the decision layer of language models.

`import codehead` is cheap: it imports neither torch nor transformers. It does make
`AutoModelForCausalLM.from_pretrained` understand coded checkpoints, whichever of the two is imported first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codehead.models.registration import register_loader
from codehead.version import VERSION

if TYPE_CHECKING:
    from codehead.codes.codebook import Codebook
    from codehead.codes.design import DESIGNS
    from codehead.config import DecisionConfig
    from codehead.conversion import convert
    from codehead.decoding.decoders import DECODERS
    from codehead.errors import CodeheadError
    from codehead.heads.feedforward import HEADS
    from codehead.layer import Decision, DecisionLayer
    from codehead.losses import LOSSES
    from codehead.models.calibration import calibrate
    from codehead.models.folding import fold
    from codehead.models.rounding import to_int4, to_int8
    from codehead.models.surgery import attach, detach, is_coded
    from codehead.recommendation import recommend
    from codehead.screening.build import screen

__version__ = VERSION

__all__ = [
    "DECODERS",
    "DESIGNS",
    "HEADS",
    "LOSSES",
    "Codebook",
    "CodeheadError",
    "Decision",
    "DecisionConfig",
    "DecisionLayer",
    "__version__",
    "attach",
    "calibrate",
    "convert",
    "detach",
    "fold",
    "is_coded",
    "recommend",
    "screen",
    "to_int4",
    "to_int8",
]

_HOMES = {
    "DECODERS": "codehead.decoding",
    "DESIGNS": "codehead.codes",
    "HEADS": "codehead.heads",
    "LOSSES": "codehead.losses",
    "Codebook": "codehead.codes.codebook",
    "CodeheadError": "codehead.errors",
    "Decision": "codehead.layer",
    "DecisionConfig": "codehead.config",
    "DecisionLayer": "codehead.layer",
    "attach": "codehead.models.surgery",
    "calibrate": "codehead.models.calibration",
    "convert": "codehead.conversion",
    "detach": "codehead.models.surgery",
    "fold": "codehead.models.folding",
    "is_coded": "codehead.models.surgery",
    "recommend": "codehead.recommendation",
    "screen": "codehead.screening.build",
    "to_int4": "codehead.models.rounding",
    "to_int8": "codehead.models.rounding",
}
_SUBPACKAGES = ("codes", "config", "decoding", "errors", "heads", "layer", "losses", "screening")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ImportError as error:
            from codehead.boundaries import missing_extra

            raise ImportError(missing_extra(error) or str(error), name=error.name) from error
    if name in _SUBPACKAGES:
        return import_module(f"codehead.{name}")
    raise AttributeError(f"module 'codehead' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBPACKAGES})


register_loader()
