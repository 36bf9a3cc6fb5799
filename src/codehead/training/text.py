"""The text of a run as those look at it who learn from a model's hidden states: counts, drawn examples, batches.

Rounding the decision layer in the end is one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codehead.models import is_coded, to_int4, to_int8
from codehead.models.hidden import hidden_states
from codehead.models.rounding import check_unrounded
from codehead.processes import ALONE, Processes
from codehead.training.config import RunConfig
from codehead.training.data import Collator, count_labels, tokenize

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


Show = Callable[[str, int, int], None]
"""Called with (stage, work done, work in all)."""
STATISTICS_TOKENS = 32_768
"""Positions whose hidden states tell how they vary: for a code, a start, and rounding."""


@dataclass(frozen=True)
class Text:
    """Tokenised training text, read when it is first looked at."""

    load: Callable[[], Dataset]
    pad_id: int | None
    seed: int = 0  # of the order in which examples are looked at

    @classmethod
    def of(cls, rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str, seed: int) -> Text:
        """Rows that errors call by `name`, tokenised when they are looked at."""
        return cls(partial(tokenize, rows, tokenizer, block_size, name), tokenizer.pad_token_id, seed)

    def read(self) -> Text:
        """Itself, read: what is wrong with the text is told now."""
        _ = self.examples
        return self

    @cached_property
    def examples(self) -> Dataset:
        """Examples with `input_ids` and `labels`."""
        return self.load()

    def counts(self, num_tokens: int) -> np.ndarray:
        """How often each token is a label, `(num_tokens,)`."""
        return count_labels(self.examples, num_tokens)

    def draw(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch of examples drawn with replacement."""
        chosen = torch.randint(len(self.examples), (size,), generator=generator)
        return Collator(self.pad_id)([self.examples[i] for i in chosen.tolist()])

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of examples in random order, once through the text."""
        collate = Collator(self.pad_id)
        order = np.random.default_rng(self.seed).permutation(len(self.examples))
        for start in range(0, len(order), size):
            yield collate([self.examples[int(i)] for i in order[start : start + size]])


def batch_size_of(config: RunConfig) -> int:
    """Examples per forward pass."""
    return int(config.training.get("per_device_train_batch_size", 8))


def check_finish(model: Any, config: RunConfig) -> None:
    """Raise ConfigurationError, before anything is learnt, if the decision layer cannot end as a run wants it to."""
    if not is_coded(model):
        return
    if config.decision is not None and config.decision.weights != "float":
        check_unrounded(model)
    if config.decision is not None and config.decision.packed:
        model.decision.check_packable()


def finish(
    model: Any,
    config: RunConfig,
    text: Text,
    show: Show = lambda stage, done, total: None,
    processes: Processes = ALONE,
) -> Any:
    """The model with its decision layer as `decision.weights` and `decision.packed` say, in place.

    For int4 the training `text`, which `processes` share out, tells how hidden states vary.
    """
    if config.decision is None:
        return model
    if config.decision.weights == "int8":
        to_int8(model)
    if config.decision.weights == "int4":
        batches, progress = text.batches(batch_size_of(config)), partial(show, "reading text to round by")
        to_int4(model, hidden_states(model, batches, STATISTICS_TOKENS, progress, processes))
    if config.decision.packed:
        model.decision.packed = True
    return model
