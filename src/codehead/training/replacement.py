"""A new decision layer for a model, in view of the text that it will be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codehead.codes import DESIGNS
from codehead.errors import ConfigurationError
from codehead.losses import IGNORE
from codehead.models import attach
from codehead.models.calibration import check_calibration
from codehead.models.hidden import Statistics, labelled_states
from codehead.models.single_tokens import SingleTokens
from codehead.models.tail import Tail, softmax_head
from codehead.training.adapt import find_targets
from codehead.training.config import RunConfig
from codehead.training.distil import distil
from codehead.training.finish import check_finish
from codehead.training.growing import grown, grows
from codehead.training.imitation import Scores
from codehead.training.joint import learn_together
from codehead.training.logistic import fit_bits
from codehead.training.stages import Stages
from codehead.training.text import STATISTICS_TOKENS, Show, Text, batch_size_of

COUNTING = ("shortlist", "token_bias", "refined")
"""What in a decision layer depends on how often tokens occur."""
LOGISTIC = "logistic"
"""The `start` that needs labelled text: a logistic regression per bit (`training.logistic`)."""
READ_BATCHES = 8
"""Batches whose hidden states are kept together: what a killed process reads again."""


def fit_decision_layer(
    model: Any,
    config: RunConfig,
    text: Text | None,
    show: Show = lambda stage, done, total: None,
    stages: Stages | None = None,
) -> Any:
    """The model with the decision layer that `config.decision` describes, started as `start` and `distil` say.

    With `stages`, hidden states are read once, and a distillation goes on where it was stopped.
    """
    stages = stages or Stages()
    decision = dict(config.decision or {})
    if config.distil is not None:
        decision.setdefault("start", "old_head")
    looks = looks_at_text(config, text)
    if not looks and not _counts(decision):
        return attach(model, **decision)
    if text is None:
        raise ConfigurationError(
            "decision.shortlist, token_bias, refined, start, assignment, an adaptive head and a code that grows look "
            "at training text; give data.train"
        )
    counts = text.counts(len(model.get_output_embeddings().weight))
    _check_single_tokens(decision, counts)
    if not looks:
        return attach(model, **decision, statistics=Statistics(torch.from_numpy(counts)))
    if config.distil is not None and config.distil.trunk_steps:
        find_targets(model, config.lora)  # told before anything is learnt
    tokens = max(STATISTICS_TOKENS, config.distil.tokens if config.distil is not None else 0)
    hidden, labels = _read(model, text, batch_size_of(config), tokens, stages, show)
    teacher = softmax_head(model)
    _attach(model, config, decision, counts, hidden, labels, show)
    if config.calibrate is not None:
        check_calibration(model, config.calibrate.per_bit)  # in the end, but told now
    check_finish(model, config)
    if config.distil is not None:
        _learn(model, teacher, config, text, hidden, labels, show, stages)
    return model


def _check_single_tokens(decision: Mapping[str, Any], counts: np.ndarray) -> None:
    """Tell of what the decision layer would refuse while the model has read nothing yet."""
    given = {key.name: decision[key.name] for key in fields(SingleTokens) if key.name in decision}
    loss, decoder = decision.get("loss", "bitwise"), decision.get("decoder", "likelihood")
    SingleTokens(**given).check(torch.from_numpy(counts), loss, decoder)


def _attach(
    model: Any,
    config: RunConfig,
    decision: Mapping[str, Any],
    counts: np.ndarray,
    hidden: Tensor,
    labels: Tensor,
    show: Show,
) -> None:
    """Give a model the decision layer that suits what a text shows of it."""
    show("starting the new head", 0, 1)
    statistics = Statistics.of(counts, hidden[:STATISTICS_TOKENS])
    if grows(decision):
        rows = model.get_output_embeddings().weight.detach()
        code = grown(decision, statistics.seen(rows), hidden.float(), labels)
        decision = {**decision, "code": code, "bits": None, "code_params": None}
    learns_bits = decision.get("start") == LOGISTIC
    attach(model, **{**decision, **({"start": "random"} if learns_bits else {})}, statistics=statistics)
    show("starting the new head", 1, 1)
    if not learns_bits:
        return
    order = torch.Generator().manual_seed(config.seed)
    progress, head = partial(show, "learning the bits"), model.get_output_embeddings()
    fit_bits(head, model.decision, hidden, labels, order, progress, Tail.of(model))


def _learn(
    model: Any,
    teacher: Scores,
    config: RunConfig,
    text: Text,
    hidden: Tensor,
    labels: Tensor,
    show: Show,
    stages: Stages,
) -> None:
    """Let the decision layer learn from the old head, and then the trunk with it, as `config.distil` says."""
    assert config.distil is not None
    options = config.distil

    def learning(done: int, total: int, nats: float) -> None:
        show("learning the new head", done, total)

    distil(model, teacher, hidden[: options.tokens], options, learning, stages, labels[: options.tokens])
    if options.trunk_steps:
        together = partial(show, "learning with the trunk")
        draw = partial(text.draw, batch_size_of(config))
        learn_together(model, teacher, draw, options, config.lora, together, stages)


def _read(model: Any, text: Text, size: int, tokens: int, stages: Stages, show: Show) -> tuple[Tensor, Tensor]:
    """Hidden states `(tokens, hidden)` and labels `(tokens,)` of a text, READ_BATCHES batches at a time."""
    batches = (batch for batch in text.batches(size) if bool((batch["labels"][:, 1:] != IGNORE).any()))
    found: list[dict[str, Tensor]] = []
    seen = 0
    while seen < tokens:
        some = list(islice(batches, READ_BATCHES))
        if found and not some:
            break
        found.append(stages.tensors(f"text-{len(found)}", partial(_read_piece, model, some, seen, tokens, show)))
        seen += len(found[-1]["labels"])
    return torch.cat([piece["hidden"] for piece in found]), torch.cat([piece["labels"] for piece in found])


def _read_piece(model: Any, batches: list[dict[str, Tensor]], seen: int, tokens: int, show: Show) -> dict[str, Tensor]:
    """As many positions of some batches as are left of `tokens` after the `seen` ones."""

    def progress(done: int, left: int) -> None:
        show("reading text", seen + done, tokens)

    hidden, labels = labelled_states(model, batches, tokens - seen, progress)
    return {"hidden": hidden, "labels": labels}


def _counts(decision: Mapping[str, Any]) -> bool:
    """Whether the decision layer depends on how often tokens occur."""
    ordered = decision.get("assignment") == "frequency" or decision.get("head") == "adaptive"
    return ordered or any(decision.get(key) for key in COUNTING)


def looks_at_text(config: RunConfig, text: Text | None) -> bool:
    """Whether the decision layer depends on hidden states; a code that looks at the old head needs them not, but gains.

    A new model has neither.
    """
    decision = config.decision or {}
    if decision.get("start") in ("old_head", LOGISTIC) or config.distil is not None or grows(decision):
        return True
    return text is not None and not config.is_pretraining and _sees_classes(decision)


def _sees_classes(decision: Mapping[str, Any]) -> bool:
    """Whether code or assignment look at the rows of the old head."""
    if str(decision.get("assignment")).startswith("similar"):
        return True
    code, given = decision.get("code"), decision.get("code_params") or {}
    known = isinstance(code, str) and not code.endswith(".safetensors") and "prototypes" in DESIGNS.get(code).params()
    return known and not {"prototypes", "samples"} & given.keys()
