"""What a decision layer ends as, after all learning: weights in int8, codewords packed."""

from __future__ import annotations

from typing import Any

from codehead.models import is_coded, to_int8
from codehead.models.rounding import check_unrounded
from codehead.training.config import RunConfig


def check_finish(model: Any, config: RunConfig) -> None:
    """Raise ConfigurationError, before anything is learnt, if the decision layer cannot end as a run wants it to."""
    if config.int8 and is_coded(model):
        check_unrounded(model)
    if config.packed and is_coded(model):
        model.decision.check_packable()


def finish(model: Any, config: RunConfig) -> Any:
    """The model with its decision layer as `int8` and `packed` say, in place."""
    if config.int8:
        to_int8(model)
    if config.packed:
        model.decision.packed = True
    return model
