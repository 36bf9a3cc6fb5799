"""An existing model in, a coded one out: the decision layer learns from the old head, and both are measured."""

from __future__ import annotations

from functools import partial
from typing import Any

from codehead.errors import ConfigurationError
from codehead.evaluation.metrics import evaluate
from codehead.evaluation.size import model_size
from codehead.models import is_coded
from codehead.training.config import RunConfig
from codehead.training.data import check_labels, check_vocabulary, load_rows, tokenize
from codehead.training.folder import RunFolder
from codehead.training.model import check_length, default_device, load_model
from codehead.training.provenance import provenance, utc_now
from codehead.training.quiet import library_bars_hidden
from codehead.training.replacement import Show, Text, batch_size_of, fit_decision_layer
from codehead.training.tokenizer import load_tokenizer

MEASURED = ("tokens", "top1", "top5", "perplexity", "bits_per_byte")


def convert(
    config: RunConfig, *, overwrite: bool = False, show: Show = lambda stage, done, total: None
) -> dict[str, Any]:
    """Replace the Softmax head of `config.model` as `config.decision` and `config.distil` say, the trunk untouched.

    Measures the model on the validation data before and after, and writes checkpoint, tokenizer and `run.json`, with
    `before` and `after`, to `config.output_dir`; returns that record. What is measured was not learnt from.

    Raises:
        ConfigurationError: the model is coded already, there is no validation data, or the folder holds something else.
        DataError: unusable data.
    """
    folder = RunFolder(config)
    origin = {**provenance(seed=config.seed, sources=config.data.sources), "started_at": utc_now()}
    folder.check_foreign() if overwrite else folder.check(origin["data"])
    model, tokenizer = _load(config)
    rows = load_rows(config.data, config.seed)
    if rows.validation is None:
        raise ConfigurationError("convert measures before and after: give data.validation or data.validation_fraction")
    held_out = tokenize(rows.validation, tokenizer, config.data.block_size)
    check_labels(held_out, model.get_input_embeddings().num_embeddings)
    text = Text(partial(tokenize, rows.train, tokenizer, config.data.block_size), tokenizer.pad_token_id, config.seed)
    measure = partial(_measure, tokenizer=tokenizer, examples=held_out, batch_size=batch_size_of(config), show=show)
    before = measure(model, "measuring the old head")
    model = fit_decision_layer(model, config, text, show)
    after = measure(model, "measuring the new one")
    if overwrite:
        folder.clear()
    with library_bars_hidden():
        model.save_pretrained(folder.path)
        tokenizer.save_pretrained(folder.path)
    record = {"provenance": origin, "log_history": [], "before": before, "after": after}
    folder.write("finished", record)
    return record


def _load(config: RunConfig) -> tuple[Any, Any]:
    assert isinstance(config.model, str)
    model = load_model(config.model, dtype=config.dtype)
    if is_coded(model):
        raise ConfigurationError(f"model {config.model!r} has a decision layer already; convert its stock checkpoint")
    name = config.tokenizer if isinstance(config.tokenizer, str) else config.model
    tokenizer = load_tokenizer(name)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    check_length(model, config.data.block_size, "data.block_size")
    return model.to(default_device()), tokenizer


def _measure(model: Any, stage: str, tokenizer: Any, examples: Any, batch_size: int, show: Show) -> dict[str, Any]:
    found = evaluate(model, tokenizer, examples, batch_size=batch_size, progress=partial(show, stage)).as_dict()
    size = model_size(model, weight_bytes=2)
    return {**{name: found[name] for name in MEASURED}, "bytes_in_bf16": size.bytes_stored}
