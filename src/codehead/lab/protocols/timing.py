"""How long the cells of one seed take to generate: all of them in turns, on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor

from codehead.errors import DataError
from codehead.lab.measure import Speed, generation_speed
from codehead.lab.protocols.protocol import Entry, Protocol, TimingConfig
from codehead.lab.protocols.resolve import Cell
from codehead.lab.result import EVERY_SETTING, Result, canonical_json, timing_path
from codehead.training.config import RunConfig
from codehead.training.data import load_examples
from codehead.training.model import default_device, load_model, max_length
from codehead.training.provenance import provenance, utc_now
from codehead.training.sources import read_rows
from codehead.training.tokenization import prompt_ids
from codehead.training.tokenizer import load_tokenizer

ARITHMETIC = {"bf16": "bfloat16", "fp16": "float16"}  # option of the Trainer → dtype


def timed_entries(protocol: Protocol, setting: str) -> list[Entry]:
    """The cells that are timed together: those of the first seed, but no baselines, which are only simulated."""
    runs = [entry for entry in protocol.entries if entry.baseline is None]
    return [entry for entry in runs if (entry.setting, entry.seed) == (setting, protocol.seeds[0])]


def time_cells(cells: Sequence[Cell]) -> Result:
    """Measure the cells of `timed_entries`, which must be trained, unless that was done before.

    Seconds to generate exactly `new_tokens` after every prompt, and tokens per second at batch size 1; an
    end-of-text token ends nothing, so all cells do the same work. Medians over repeats, the cells taking turns: all
    their models lie in memory at once, in the dtype of `generation_dtype`.
    """
    protocol, setting, seed = cells[0].protocol, cells[0].entry.setting, cells[0].entry.seed
    options = protocol.timing
    assert options is not None
    config = {
        "protocol": protocol.name,
        "setting": setting,
        "seed": seed,
        "timing": asdict(options),
        "runs": {cell.name: cell.entry.config for cell in cells},
    }
    path = timing_path(cells[0].result.parent, setting)
    if path.is_file() and canonical_json(Result.read(path).config) == canonical_json(config):
        return Result.read(path)
    device, started = default_device(), utc_now()
    models = {
        cell.name: load_model(cell.run.output_dir, dtype=generation_dtype(cell.run, device)).to(device)
        for cell in cells
    }
    limit = max_length(next(iter(models.values()))) or math.inf
    prompts = _prompts(cells[0].run, options, limit - options.new_tokens)
    metrics = {"cells": _measure(models, prompts, options), **asdict(options), "prompts": len(prompts)}
    record = {**provenance(seed=seed), "started_at": started}
    result = Result(f"{protocol.name}/timing/{setting or EVERY_SETTING}", config, metrics, record)
    result.write(path)
    return result


def generation_dtype(run: RunConfig, device: torch.device) -> str:
    """What a run's model is timed in: on an accelerator the arithmetic that it trains in, else `dtype`."""
    if device.type != "cpu":
        for option, dtype in ARITHMETIC.items():
            if run.training.get(option):
                return dtype
    return run.dtype


def _measure(
    models: Mapping[str, Any], prompts: Sequence[list[int]], options: TimingConfig
) -> dict[str, dict[str, Any]]:
    seconds = {name: [0.0] * options.repeats for name in models}
    for start in range(0, len(prompts), options.batch_size):
        ids, mask = _padded(prompts[start : start + options.batch_size])
        for name, speed in _speeds(models, ids, mask, options).items():
            for repeat, rate in enumerate(speed.repeats):
                seconds[name][repeat] += len(ids) * options.new_tokens / rate
    alone = _speeds(models, *_padded(prompts[:1]), options)
    return {
        name: {
            "answer_seconds": median(values),
            "answer_repeats": values,
            "tokens_per_second": alone[name].tokens_per_second,
            "tokens_per_second_repeats": alone[name].repeats,
            "dtype": str(models[name].dtype).removeprefix("torch."),
        }
        for name, values in seconds.items()
    }


def _speeds(models: Mapping[str, Any], ids: Tensor, mask: Tensor, options: TimingConfig) -> dict[str, Speed]:
    return generation_speed(models, ids, attention_mask=mask, new_tokens=options.new_tokens, repeats=options.repeats)


def _prompts(run: RunConfig, options: TimingConfig, longest: float) -> list[list[int]]:
    """Token ids of the first prompts of the test split that have at most `longest`; DataError if there are none."""
    fitting = (ids for ids in _candidates(run, options) if len(ids) <= longest)
    found = list(islice(fitting, options.prompts))
    if not found:
        raise DataError(
            f"no prompt fits the model together with {options.new_tokens} new tokens; lower timing.new_tokens "
            "or timing.prompt_tokens"
        )
    return found


def _candidates(run: RunConfig, options: TimingConfig) -> Iterator[list[int]]:
    """Token ids of every prompt of the test split; of a text, the beginnings of its blocks."""
    assert run.data.test is not None
    tokenizer = load_tokenizer(run.output_dir)
    rows = read_rows(run.data.test, split="test", subset=run.data.subset, text_field=run.data.text_field)
    if "prompt" in rows.column_names:
        return iter(prompt_ids(list(rows["prompt"]), tokenizer))
    examples = load_examples(
        run.data.test, tokenizer, block_size=run.data.block_size, subset=run.data.subset, text_field=run.data.text_field
    )
    return (example["input_ids"][: options.prompt_tokens] for example in examples)


def _padded(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, each (batch, length), padded on the left."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
