"""Generation from the logits of the few tokens that matter, with all logits computed where others might matter.

Greedy text needs the best token, and sampling cut by top_k or min_p needs the best few. So a step of `generate` may
work on logits that are −∞ for all other tokens, as long as no later processor can choose one of those. A supported
processor either lowers the logits of some tokens, which the known scores show to be harmless, or depends only on the
best ones; everything else takes all logits.

Only the generation itself sees its selection: other threads, and calls of the model from a stopping criterion or a
streamer, get all logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

FEW = 64
"""Tokens to find where it is not known beforehand how many suffice."""
MOST = 512
"""The largest top_k for which this is worthwhile."""


class Step(NamedTuple):
    """The tokens whose logits are known at one step of generation."""

    ids: Tensor
    """`(batch, m)`."""
    logits: Tensor
    """`(batch, 1, V)`: −∞ for all other tokens, until the model caps them."""
    floor: Tensor
    """`(batch,)`: no other token has a larger logit."""
    everything: Callable[[], Tensor]
    """Computes all logits, `(batch, 1, V)`."""


def spread(ids: Tensor, logits: Tensor, num_classes: int) -> Tensor:
    """Logits `(…, k)` of tokens `(…, k)` scattered to all tokens `(…, V)`, −∞ for the others."""
    return logits.new_full((*ids.shape[:-1], num_classes), -torch.inf).scatter_(-1, ids, logits)


class Selection:
    """Replaces the logits processors of one generation, and asks for all logits where a token is not certain.

    `count` tokens are enough at most steps, `least` of them at some. `steps` and `whole` count the tokens chosen, and
    those of them that took all logits. It `is_awaited` from the preparation of a step's inputs to its processors.
    """

    def __init__(self, count: int, lowering: int, processors: Any, *, sampling: bool, least: int = 1) -> None:
        self.count, self.least, self.sampling = count, least, sampling
        self.processors, self.lowering = processors, type(processors)(processors[:lowering])
        self.warpers = type(processors)(processors[lowering:])
        self.step: Step | None = None
        self.steps = self.whole = 0
        self.is_awaited = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(batch, V)` as the processors would leave them, −∞ for tokens that cannot be chosen."""
        step, self.step, self.is_awaited = self.step, None, False
        self.steps += len(scores)
        if step is None:  # the model computed all logits
            self.whole += len(scores)
            return self.processors(input_ids, scores)
        lowered = self.lowering(input_ids, scores)
        known = lowered.gather(-1, step.ids)
        known = known.masked_fill(known < step.floor.to(known)[:, None], -torch.inf)
        chosen = self.warpers(input_ids, spread(step.ids, known, scores.shape[-1]))
        left, kept = ((values > -torch.inf).sum(-1) for values in (known, chosen.gather(-1, step.ids)))
        unsure = kept >= left if self.sampling else left < 1
        if bool(unsure.any()):
            self.whole += int(unsure.sum())
            everything = step.everything()[:, -1].to(scores)
            chosen[unsure] = self.processors(input_ids, everything)[unsure]
        return chosen


def select(processors: Any, config: Any) -> Selection | str:
    """The selection for `generate` with these logits processors and this configuration; or why there is none."""
    from transformers.generation import logits_process as known

    lowers = (
        known.RepetitionPenaltyLogitsProcessor, known.NoRepeatNGramLogitsProcessor, known.NoBadWordsLogitsProcessor,
        known.MinLengthLogitsProcessor, known.MinNewTokensLengthLogitsProcessor, known.SuppressTokensLogitsProcessor,
        known.SuppressTokensAtBeginLogitsProcessor,
    )  # fmt: skip
    cuts = (known.TemperatureLogitsWarper, known.TopKLogitsWarper, known.TopPLogitsWarper, known.MinPLogitsWarper)
    if (config.output_logits or config.output_scores) and not config.is_assistant:  # a draft's are not for users
        return "the logits of all tokens must be returned"
    lowering = 0
    while lowering < len(processors) and type(processors[lowering]) in lowers:
        if getattr(processors[lowering], "penalty", 1.0) < 1:
            return "a repetition penalty below 1 raises the logits of tokens"
        lowering += 1
    for other in processors[lowering:]:
        if type(other) not in cuts:
            return f"{type(other).__name__} may choose any token"
    if not config.do_sample:
        return Selection(FEW if lowering else 1, lowering, processors, sampling=False)
    return _sampling(processors, lowering, config)


def _sampling(processors: Any, lowering: int, config: Any) -> Selection | str:
    top_k, min_p = config.top_k or 0, config.min_p
    if top_k > MOST:
        return f"top_k={top_k} leaves more than {MOST} tokens"
    if top_k:
        return Selection(top_k + (FEW if lowering else 1), lowering, processors, sampling=True, least=top_k + 1)
    if min_p and (config.top_p is None or config.top_p >= 1):
        return Selection(FEW, lowering, processors, sampling=True)
    return "sampling without top_k or min_p may draw any token"


_selections: ContextVar[Mapping[int, Selection | None]] = ContextVar("selections", default=MappingProxyType({}))
"""The selections of the generations in progress in this thread, by the id of the module that answers for them."""


@contextmanager
def selecting(module: object, selection: Selection | None) -> Iterator[None]:
    """Let a module answer with a step of a selection, in this thread; with None it computes all logits."""
    token = _selections.set({**_selections.get(), id(module): selection})
    try:
        yield
    finally:
        _selections.reset(token)


def awaited(module: object) -> Selection | None:
    """The selection that awaits a step from a module; None if it is to compute all logits."""
    found = _selections.get().get(id(module))
    return found if found is not None and found.is_awaited else None


class Selecting:
    """Mixed into the class of a model whose forward can leave a `Step` instead of computing all logits."""

    _may_select: Callable[[Selection | str], Selection | None]
    """The selection, if this model supports it; a model may warn here that it does not."""

    def generate(self, *args: Any, **options: Any) -> Any:
        """As in transformers; within another generation of this model, it is not part of that one."""
        with selecting(self, None):
            return super().generate(*args, **options)  # type: ignore[misc]

    def _sample(self, input_ids: Tensor, logits_processor: Any, **options: Any) -> Any:
        sample = super()._sample  # type: ignore[misc]
        with self._selecting(logits_processor, options["generation_config"]) as processors:
            return sample(input_ids, logits_processor=processors, **options)

    @contextmanager
    def _selecting(self, processors: Any, config: Any) -> Iterator[Any]:
        """Yields the replacement of the processors."""
        chosen = self._may_select(select(processors, config))
        with selecting(self, chosen):
            yield processors if chosen is None else chosen


def announcing(base: Any) -> Callable[..., Any]:
    """The `prepare_inputs_for_generation` of a selecting class: `generate` calls it before each of its own steps."""

    @functools.wraps(base.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self: Any, *args: Any, **options: Any) -> Any:
        selection = _selections.get().get(id(self))
        if selection is not None:
            selection.is_awaited = True
        return base.prepare_inputs_for_generation(self, *args, **options)

    return prepare_inputs_for_generation
