"""The data of a run: sources → tokenised datasets, batches of them, and the training text for decision layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from codehead.errors import ConfigurationError, DataError
from codehead.training.config import DataConfig, RunConfig
from codehead.training.conversations import tokenize_chats
from codehead.training.sources import read_rows
from codehead.training.tokenizer import IGNORED, start_of_text, tokenize_records, tokenize_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rows:
    """The untokenised documents or records of a run."""

    train: Dataset
    validation: Dataset | None

    def texts(self) -> list[str]:
        """Every training text, for a tokenizer to learn from."""
        if "messages" in self.train.column_names:
            return [message["content"] for messages in self.train["messages"] for message in messages]
        return [text for name in self.train.column_names for text in self.train[name]]


def load_rows(data: DataConfig, seed: int) -> Rows:
    """Read the training and validation rows; a `validation_fraction` is split off by whole documents, at least one.

    DataError if there is only one document to split.
    """
    common: dict[str, Any] = {"subset": data.subset, "text_field": data.text_field, "as_text": data.as_text}
    train = read_rows(data.train_sources, split="train", limit=data.max_documents, **common)
    if data.validation:
        limit = data.max_validation_documents
        return Rows(train, read_rows(data.validation, split="validation", limit=limit, **common))
    if not data.validation_fraction:
        return Rows(train, None)
    if len(train) < 2:
        raise DataError(
            f"data.validation_fraction={data.validation_fraction}: a part of the documents is held out, but there is "
            "only one; give at least two (in a .txt file, blank lines separate them)"
        )
    held_out = min(max(1, round(len(train) * data.validation_fraction)), len(train) - 1)
    parts = train.train_test_split(test_size=held_out, seed=seed)
    limit = min(held_out, data.max_validation_documents or held_out)
    return Rows(parts["train"], parts["test"].select(range(limit)))


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str = "the text") -> Dataset:
    """Examples with `input_ids`, `labels` (−100 where no loss) and `num_bytes`, each `(length,)`.

    DataError, which names the rows by `name`, if there are none.
    """
    kinds = {"text": tokenize_text, "messages": tokenize_chats, "prompt": tokenize_records}
    tokenise = next(tokenise for column, tokenise in kinds.items() if column in rows.column_names)
    return tokenise(rows, tokenizer, block_size, name)


def load_examples(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int = 256,
    split: str = "test",
    subset: str | None = None,
    text_field: str | None = None,
    as_text: bool = False,
    max_documents: int | None = None,
) -> Dataset:
    """One source, tokenised, as `evaluation.evaluate` takes it."""
    rows = read_rows(source, split=split, subset=subset, text_field=text_field, as_text=as_text, limit=max_documents)
    return tokenize(rows, tokenizer, block_size)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Raise ConfigurationError if the tokenizer has entries that the model has no embedding for."""
    if len(tokenizer) > num_embeddings:
        raise ConfigurationError(
            f"the tokenizer has {len(tokenizer)} entries but the model only {num_embeddings} embeddings; "
            "use the model's own tokenizer, or a model with a vocab_size of at least "
            f"{len(tokenizer)}"
        )


def check_labels(examples: Dataset, vocab_size: int) -> None:
    """Raise DataError if an example holds a token id that the model does not have."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for name in ("input_ids", "labels"):
        largest = pc.max(pc.list_flatten(examples.data.column(name))).as_py()
        if largest is not None and largest >= vocab_size:
            raise DataError(
                f"{name} holds the id {largest}, but the model has only {vocab_size} tokens; "
                "tokenise with the model's own tokenizer"
            )


class Collator:
    """Pads examples to the longest of the batch: labels with −100, byte counts with 0.

    `pad_id` is None for a tokenizer without a pad token. Padding is masked, so token 0 will do.
    """

    def __init__(self, pad_id: int | None, *, with_bytes: bool = False) -> None:
        self.padding = {"input_ids": pad_id or 0, "labels": IGNORED, "attention_mask": 0}
        if with_bytes:
            self.padding["num_bytes"] = 0

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch tensors `(batch, length)` int64: input_ids, labels, attention_mask [, num_bytes]."""
        masked = [{"attention_mask": [1] * len(example["input_ids"]), **example} for example in examples]
        return {
            name: pad_sequence([torch.tensor(example[name]) for example in masked], True, value)
            for name, value in self.padding.items()
        }

    def batches(
        self, examples: Sequence[Mapping[str, Any]] | Dataset, size: int, order: Sequence[int] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Batches of `size` examples, in the given `order` or their own."""
        order = range(len(examples)) if order is None else order
        for start in range(0, len(order), size):
            yield self([examples[i] for i in order[start : start + size]])


STATISTICS_TOKENS = 32_768
"""Positions at which the statistics of hidden states are measured: for a code, a start, and rounding."""


@dataclass(frozen=True)
class Text:
    """Tokenised training text, read on first use."""

    load: Callable[[], Dataset]
    pad_id: int | None
    seed: int = 0  # of the order in which examples are read
    start: tuple[int, ...] = ()  # the tokens that begin every text

    @classmethod
    def of(cls, rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str, seed: int) -> Text:
        """Rows that errors name by `name`, tokenised on first use."""
        start = tuple(start_of_text(tokenizer))
        return cls(partial(tokenize, rows, tokenizer, block_size, name), tokenizer.pad_token_id, seed, start)

    def read(self) -> Text:
        """Itself, after reading the text, so that errors in it are raised now."""
        _ = self.examples
        return self

    @cached_property
    def examples(self) -> Dataset:
        """Examples with `input_ids` and `labels`."""
        return self.load()

    def counts(self, num_tokens: int) -> np.ndarray:
        """How often each token is a label, int64 `(num_tokens,)`; ids of `num_tokens` or more are ignored."""
        labels = self.examples.data.column("labels").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        known = labels[(labels >= 0) & (labels < num_tokens)]
        return np.bincount(known, minlength=num_tokens)

    def draw(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch of examples drawn with replacement."""
        chosen = torch.randint(len(self.examples), (size,), generator=generator)
        return Collator(self.pad_id)([self.examples[i] for i in chosen.tolist()])

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of examples in random order, once through the text."""
        order = np.random.default_rng(self.seed).permutation(len(self.examples))
        return Collator(self.pad_id).batches(self.examples, size, order.tolist())


def batch_size_of(config: RunConfig) -> int:
    """Examples per forward pass."""
    return int(config.training.get("per_device_train_batch_size", 8))
