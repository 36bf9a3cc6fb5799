"""Greedy answers of a causal language model to the prompts of instruction records, and their BERTScore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from codehead.errors import ConfigurationError, DataError
from codehead.lab.bertscore import Encoder, bert_score
from codehead.training.data import check_vocabulary
from codehead.training.model import max_length
from codehead.training.tokenizer import prompt_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """One entry per prompt in every list, in the order of the rows."""

    prompts: list[str]
    references: list[str]
    """The responses in the rows."""
    answers: list[str]
    """The model's answers, without special tokens and surrounding whitespace; can be empty."""
    new_tokens: list[int]
    """Tokens generated, including the one that ended the answer."""
    skipped: int
    """Rows skipped: their prompt and the new tokens exceed the model's positions."""

    def samples(self, count: int) -> list[dict[str, str]]:
        """The first `count` answers as `{prompt, reference, answer}`, for a result file."""
        rows = zip(self.prompts[:count], self.references[:count], self.answers[:count], strict=True)
        return [dict(zip(("prompt", "reference", "answer"), row, strict=True)) for row in rows]


def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Answer the prompt of every row greedily with a coded or stock model, on the device it is on.

    `rows` has `prompt` and `response`, as returned by `training.sources.read_rows`; prompts are tokenised as for
    training. An answer ends at an eos token of the tokenizer or model, or after `max_new_tokens`. Nothing else of
    the model's generation config counts (no sampling, no penalties). Batches are padded on the left, which leaves
    the answers as they are one at a time. `progress` is called with (prompts done, prompts in all).

    Raises DataError for rows of plain text, an empty prompt, or if no prompt fits the model.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigurationError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1")
    prompts = fitting_prompts(model, tokenizer, rows, max_new_tokens)
    order = sorted(prompts, key=lambda row: len(prompts[row]))  # prompts of like length need little padding
    generated: dict[int, list[int]] = {}
    with _greedy(model, tokenizer, max_new_tokens) as ends:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            continued = _continue(model, [prompts[row] for row in chosen])
            generated.update(zip(chosen, (_until(ends, ids) for ids in continued), strict=True))
            progress(len(generated), len(order))
    return Answers(
        prompts=[rows[row]["prompt"] for row in prompts],
        references=[rows[row]["response"] for row in prompts],
        answers=[str(tokenizer.decode(generated[row], skip_special_tokens=True)).strip() for row in prompts],
        new_tokens=[len(generated[row]) for row in prompts],
        skipped=len(rows) - len(prompts),
    )


def score_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    encoder: Encoder | None,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    samples: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The entry of a result about answers to `rows`: how they were made, their BERTScore, the first as text.

    Without an encoder `bertscore` is None.

    Plain JSON values; arguments and errors are those of `generate_answers`.
    """
    found = generate_answers(
        model, tokenizer, rows, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    return {
        "prompts": len(found.answers),
        "skipped": found.skipped,
        "new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "mean_new_tokens": fmean(found.new_tokens),
        "bertscore": encoder and bert_score(found.answers, found.references, encoder).as_dict(),
        "samples": found.samples(samples),
    }


def fitting_prompts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_new_tokens: int
) -> dict[int, list[int]]:
    """Token ids by row number, for rows whose prompt and answer fit the model's positions.

    Raises the errors of `generate_answers` about rows and tokenizer.
    """
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    prompts = _prompts(rows, tokenizer)
    limit = max_length(model)
    kept = {row: ids for row, ids in enumerate(prompts) if limit is None or len(ids) + max_new_tokens <= limit}
    if not kept:
        shortest = min(map(len, prompts), default=0)
        raise DataError(
            f"no prompt (the shortest has {shortest} tokens) fits the {limit} positions of the model together with "
            f"{max_new_tokens} new tokens; lower max_new_tokens (--answer-tokens)"
        )
    return kept


def _prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not {"prompt", "response"} <= set(rows.column_names):
        raise DataError(
            f"the rows have the columns {', '.join(rows.column_names)}, which ask for no answer; give "
            "instruction records (instruction/input/output, instruction/context/response or prompt/completion)"
        )
    prompts = prompt_ids(list(rows["prompt"]), tokenizer)
    if [] in prompts:
        raise DataError(
            f"the prompt of row {prompts.index([]) + 1} is empty, and this tokenizer starts no text by itself; "
            "leave the row out"
        )
    return prompts


@contextmanager
def _greedy(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Iterator[set[int]]:
    """Makes `model.generate` purely greedy; yields the ids of the tokens that end an answer."""
    from transformers import GenerationConfig

    own, was_training = model.generation_config, model.training
    listed = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = {int(token) for token in (tokenizer.eos_token_id, *listed) if token is not None}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # generate() fills unset values from the model's own config, so that one is replaced
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=sorted(ends), pad_token_id=pad
    )
    model.eval()
    try:
        yield ends
    finally:
        model.generation_config = own
        model.train(was_training)


@torch.no_grad()
def _continue(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The new tokens after every prompt, padded on the right to the longest of the batch."""
    ids, mask = left_padded(prompts, model.generation_config.pad_token_id)
    device = next(model.parameters()).device
    output: Tensor = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=True)
    return output[:, ids.shape[1] :].tolist()


def left_padded(prompts: Sequence[list[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, each `(batch, length)`, padded on the left."""
    rows = [torch.tensor(ids) for ids in prompts]
    masks = [torch.ones_like(ids) for ids in rows]
    return pad_sequence(rows, True, pad, "left"), pad_sequence(masks, True, 0, "left")


def _until(ends: set[int], ids: list[int]) -> list[int]:
    """The tokens up to and including the first that ends an answer."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]
