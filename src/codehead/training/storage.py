"""What a decision layer ends as, after all learning: weights in int8 or int4, codewords packed."""

from __future__ import annotations

from functools import partial
from typing import Any

from codehead.models import is_coded
from codehead.models import to_int4, to_int8
from codehead.models.hidden import hidden_states
from codehead.models.rounding import check_unrounded
from codehead.training.config import RunConfig
from codehead.training.text import STATISTICS_TOKENS, Show, Text, batch_size_of


def check_finish(model: Any, config: RunConfig) -> None:
    """Raise ConfigurationError, before anything is learnt, if the decision layer cannot end as a run wants it to."""
    if not is_coded(model):
        return
    if config.decision is not None and config.decision.weights != "float":
        check_unrounded(model)
    if config.decision is not None and config.decision.packed:
        model.decision.check_packable()


def finish(model: Any, config: RunConfig, text: Text, show: Show = lambda stage, done, total: None) -> Any:
    """The model with its decision layer as `decision.weights` and `decision.packed` say, in place.

    For int4 the training `text` tells how hidden states vary.
    """
    if config.decision is None:
        return model
    if config.decision.weights == "int8":
        to_int8(model)
    if config.decision.weights == "int4":
        batches = text.batches(batch_size_of(config))
        to_int4(model, hidden_states(model, batches, STATISTICS_TOKENS, partial(show, "reading text to round by")))
    if config.decision.packed:
        model.decision.packed = True
    return model
