"""Everything that can be measured of one checkpoint on one data set, as a Result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from codehead.errors import DataError
from codehead.evaluation.metrics import evaluate
from codehead.evaluation.result import Result
from codehead.evaluation.size import model_size
from codehead.evaluation.timing import generation_speed
from codehead.models import is_coded
from codehead.training.data import load_examples
from codehead.training.model import default_device, load_model
from codehead.training.provenance import file_record, provenance, utc_now
from codehead.training.tokenizer import load_tokenizer

PROMPT_TOKENS = 8


def evaluate_checkpoint(
    model_name: str,
    source: str,
    *,
    tokenizer_name: str | None = None,
    block_size: int = 256,
    batch_size: int = 8,
    decoder: str | None = None,
    text_field: str | None = None,
    split: str = "test",
    subset: str | None = None,
    max_documents: int | None = None,
    new_tokens: int = 32,
    repeats: int = 5,
    dtype: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Accuracy, likelihood, node losses, speed and sizes of a hub id or local folder on `source`.

    `repeats=0` leaves the speed out. Computes on the accelerator if there is one. Paths are recorded by
    their last part only.
    """
    started, start = utc_now(), time.monotonic()
    tokenizer = load_tokenizer(tokenizer_name or model_name)
    options = {"block_size": block_size, "text_field": text_field, "max_documents": max_documents}
    examples = load_examples(source, tokenizer, split=split, subset=subset, **options)  # type: ignore[arg-type]
    if not len(examples):
        raise DataError(f"{source!r} gives no example to evaluate")
    model = load_model(model_name, dtype=dtype).to(default_device())
    scores = evaluate(model, tokenizer, examples, batch_size=batch_size, decoder=decoder, progress=progress)
    metrics = {**scores.as_dict(), "size": model_size(model).as_dict()}
    if repeats:
        prompt = torch.tensor([examples[0]["input_ids"][:PROMPT_TOKENS]])
        speed = generation_speed({"model": model}, prompt, new_tokens=new_tokens, repeats=repeats)
        metrics["generation"] = speed["model"].as_dict()
    config = {
        "model": _public_name(model_name),
        "decision": dict(model.config.quantization_config) if is_coded(model) else None,
        "batch_size": batch_size,
        "split": split,
        "subset": subset,
        "dtype": str(model.dtype).removeprefix("torch."),
        **options,
    }
    record = {**provenance(sources=[source]), "started_at": started}
    record["wall_seconds"] = round(time.monotonic() - start, 3)
    return Result(_public_name(model_name), {**config, "data": file_record(source)["name"]}, metrics, record)


def _public_name(model_name: str) -> str:
    """A hub id as it is; of a local folder the last part."""
    path = Path(model_name).expanduser()
    return path.resolve().name if path.exists() else model_name
