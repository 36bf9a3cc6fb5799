"""All measurements of one checkpoint on one data set, as a Result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError, DataError
from codehead.evaluation.metrics import evaluate
from codehead.evaluation.size import model_size
from codehead.lab.answers import fitting_prompts, score_answers
from codehead.lab.bertscore import Encoder, find_encoder
from codehead.lab.result import Result
from codehead.models.surgery import is_coded
from codehead.processes import launched
from codehead.training.data import check_labels, check_vocabulary, tokenize
from codehead.training.model import check_length, default_device, load_model, max_length
from codehead.training.provenance import file_record, provenance, utc_now
from codehead.training.sources import read_rows
from codehead.training.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


BLOCK_SIZE = 256
PROMPT_TOKENS = 8
NEW_TOKENS = 32


def evaluate_checkpoint(
    model_name: str,
    source: str,
    *,
    tokenizer_name: str | None = None,
    block_size: int | None = None,
    batch_size: int = 8,
    decoder: str | None = None,
    packed: bool | None = None,
    text_field: str | None = None,
    as_text: bool = False,
    subset: str | None = None,
    max_documents: int | None = None,
    new_tokens: int | None = None,
    repeats: int = 5,
    encoder: str | None = None,
    encoder_layers: int | None = None,
    prompts: int = 128,
    answer_tokens: int = 64,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Result:
    """Accuracy, likelihood, node losses, speed and sizes of a hub id or local folder on `source`.

    `block_size` is 256 and `new_tokens` 32 unless given, or as many as the model's positions allow; `repeats=0`
    skips the speed. `packed` as in `load_model`. With an `encoder` (see `find_encoder`), the first `prompts`
    records are answered with at most `answer_tokens` each, and scored by BERTScore. Computes on the accelerator if
    there is one. `progress` is called with (stage, work done, work in all). Paths are recorded by their last part only.

    Processes started by a launcher share the text; speed and answers come from the first, and are in its result only.
    """
    processes = launched(on_cpu=default_device().type == "cpu")
    started, start = utc_now(), time.monotonic()
    judge = None if encoder is None else find_encoder(encoder, encoder_layers)
    tokenizer = load_tokenizer(tokenizer_name or model_name)
    rows = read_rows(source, split="test", subset=subset, text_field=text_field, as_text=as_text, limit=max_documents)
    asked = rows.select(range(min(prompts, len(rows))))
    if judge is not None:
        _check_records(asked, judge, source)
    model = load_model(model_name, dtype="auto", packed=packed).to(default_device())
    block_size, new_tokens = _lengths(model, block_size, new_tokens, generates=bool(repeats))
    examples = _examples(model, tokenizer, rows, block_size)
    if judge is not None:
        fitting_prompts(model, tokenizer, asked, answer_tokens)  # report a model without room before measuring
    scores = evaluate(
        model,
        tokenizer,
        examples,
        batch_size=batch_size,
        decoder=decoder,
        progress=partial(progress, "evaluating"),
        processes=processes,
    )
    metrics = {**scores.as_dict(), "size": model_size(model).as_dict()}
    if repeats and processes.is_main:
        prompt = torch.tensor([examples[0]["input_ids"][:PROMPT_TOKENS]])
        speed = generation_speed({"model": model}, prompt, new_tokens=new_tokens, repeats=repeats)
        metrics["generation"] = asdict(speed["model"])
    if judge is not None and processes.is_main:
        metrics["answers"] = score_answers(
            model,
            tokenizer,
            asked,
            judge,
            max_new_tokens=answer_tokens,
            batch_size=batch_size,
            progress=partial(progress, "answering"),
        )
    config = {
        **described(model, model_name),
        "packed": is_coded(model) and model.decision.packed,
        "batch_size": batch_size,
        "split": "test",
        "subset": subset,
        "block_size": block_size,
        "text_field": text_field,
        "as_text": as_text,
        "max_documents": max_documents,
        "data": file_record(source)["name"],
    }
    record = {**provenance(sources=[source]), "started_at": started}
    record["wall_seconds"] = round(time.monotonic() - start, 3)
    return Result(public_name(model_name), config, metrics, record)


def _lengths(model: Any, block_size: int | None, new_tokens: int | None, *, generates: bool) -> tuple[int, int]:
    """Tokens per example and tokens to generate: as requested, else the usual ones or as many as the model takes."""
    limit = max_length(model) or BLOCK_SIZE
    block_size = block_size or min(BLOCK_SIZE, limit)
    new_tokens = new_tokens or min(NEW_TOKENS, limit - PROMPT_TOKENS)
    check_length(model, block_size, "--block-size")
    if generates:
        check_length(model, new_tokens, "--new-tokens", PROMPT_TOKENS)
    return block_size, new_tokens


def _examples(model: Any, tokenizer: Any, rows: Dataset, block_size: int) -> Dataset:
    """The tokenised rows; DataError if there is no example, or one with token ids that the model lacks."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    check_vocabulary(tokenizer, num_embeddings)
    examples = tokenize(rows, tokenizer, block_size)
    check_labels(examples, num_embeddings)
    return examples


def described(model: Any, name: str) -> dict[str, Any]:
    """The entry of a result about the model itself."""
    return {
        "model": public_name(name),
        "decision": dict(model.config.quantization_config) if is_coded(model) else None,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _check_records(rows: Dataset, encoder: Encoder, source: str) -> None:
    """Raise DataError for rows that cannot be answered: plain text, which asks for no answer, and conversations."""
    if "prompt" not in rows.column_names:
        asks = "messages" in rows.column_names
        kind = "conversations, which are not answered" if asks else "plain text, which asks for no answer"
        raise DataError(
            f"--encoder is {encoder.name!r}, but {source!r} holds {kind}; omit --encoder, or give instruction "
            "records (instruction/input/output, instruction/context/response or prompt/completion)"
        )


def public_name(model_name: str) -> str:
    """A hub id as it is; of a local folder the last part."""
    path = Path(model_name).expanduser()
    return path.resolve().name if path.exists() else model_name


# Tokens per second of greedy generation; models take turns so that all run under the same conditions.


@dataclass(frozen=True)
class Speed:
    """Generation speed of one model, prompts included."""

    new_tokens: int
    tokens_per_second: float
    """Median over the repeats."""
    repeats: list[float]
    """Tokens per second of every repeat, in order."""


def generation_speed(
    models: Mapping[str, nn.Module],
    prompt: Tensor,
    *,
    attention_mask: Tensor | None = None,
    new_tokens: int = 32,
    repeats: int = 5,
) -> dict[str, Speed]:
    """Generate exactly `new_tokens` after every row of `prompt` (batch, length) `repeats` times with every model.

    Rows of different length are padded on the left, with 0 in `attention_mask` (batch, length) there.

    The models take turns (first repeat of all, second of all, …), so a slowdown of the machine affects all
    of them. One untimed round comes first.
    """
    if new_tokens < 1 or repeats < 1:
        raise ConfigurationError(f"new_tokens={new_tokens} and repeats={repeats} must be at least 1")
    mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            seconds = _generate(model, prompt, mask, new_tokens)
            if turn:
                rates[name].append(len(prompt) * new_tokens / seconds)
    return {name: Speed(new_tokens, median(values), values) for name, values in rates.items()}


@torch.no_grad()
def _generate(model: Any, prompt: Tensor, mask: Tensor, new_tokens: int) -> float:
    """Seconds of one generation; an end-of-text token does not end it."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    prompt, mask = prompt.to(device), mask.to(device)
    options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    _synchronise(prompt)
    start = time.perf_counter()
    model.generate(prompt, attention_mask=mask, pad_token_id=0, **options)
    _synchronise(prompt)
    seconds = time.perf_counter() - start
    model.train(was_training)
    return seconds


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
