"""One cell of a protocol: train, evaluate, measure the size → one result; and the times of all cells of one seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.config.size import FLOAT_BYTES as WEIGHT_BYTES
from codehead.config.size import INTEGER_BITS
from codehead.decoding import DECODERS, FittedDecoder, Weights, decode, fit
from codehead.errors import CheckpointError, DataError
from codehead.evaluation.metrics import SCORE_BYTES, TOP, evaluate
from codehead.evaluation.size import model_size
from codehead.lab.answers import left_padded, score_answers
from codehead.lab.baselines import compress
from codehead.lab.bertscore import find_encoder
from codehead.lab.measure import generation_speed
from codehead.lab.protocols.protocol import AnswersConfig, Entry, Protocol, TimingConfig
from codehead.lab.protocols.resolve import Cell
from codehead.lab.protocols.store import digest, folder_record
from codehead.lab.result import EVERY_SETTING, Result, canonical_json, timing_path, write_json
from codehead.models.calibration import text_outputs
from codehead.models.description import Description
from codehead.models.surgery import is_coded
from codehead.training.config import RunConfig
from codehead.training.data import Collator, tokenize
from codehead.training.folder import RECORD, RunFolder, first_difference, read_record
from codehead.training.loop import Stages
from codehead.training.model import default_device, device_of, load_model, max_length
from codehead.training.provenance import file_record, file_records, git_state, hardware, provenance, utc_now
from codehead.training.run import train
from codehead.training.sources import read_rows
from codehead.training.tokenizer import load_tokenizer, prompt_ids

if TYPE_CHECKING:
    from transformers import TrainerCallback


def run_cell(cell: Cell, callbacks: Sequence[TrainerCallback] = ()) -> Result:
    """Train the cell (resuming a killed run) and measure it on the test split.

    A finished run of the same configuration on the same data is neither trained again nor measured twice the same way.
    The provenance is that of the training, with the data of this protocol, and that of the backbone's training.
    """
    record = train_once(cell.run, callbacks)
    metrics = _measured_once(cell)
    metrics |= {
        "train_seconds": record["provenance"]["wall_seconds"],
        "history": [entry for entry in record["log_history"] if "loss" in entry],
    }
    data = file_records(cell.run.data.sources)  # a shared run may have been trained with other test data
    provenance = {**record["provenance"], "data": data, **cell.of_code_files, "measured": metrics.pop("measured")}
    if cell.backbone is not None:
        backbone = Path(cell.backbone.run.output_dir)
        provenance["backbone"] = folder_record(backbone)
        provenance["backbone_training"] = read_record(backbone)["provenance"]
    return Result(f"{cell.protocol.name}/{cell.key}", cell.record, metrics, provenance)


def describe(model: Any) -> dict[str, Any] | None:
    """The decision layer in short; None for the model's own Softmax head."""
    if not is_coded(model):
        return None
    config = Description.current(model).decision
    return {
        "design": config.code,
        "bits": model.decision.table.length,
        "head": config.head,
        "head_options": config.head_options,
        "width": config.width or 0,
        "rank": config.head_params.get("rank"),
        "shortlist": config.num_dense_rows,
        "refined": config.num_extra_bit_tokens,
        "refined_bits": config.extra_bits,
        "rounded": config.weights != "float",
        "rounded_bits": INTEGER_BITS.get(config.weights, 8),
        "token_bias": config.token_bias,
        "loss": config.loss,
        "decoder": config.decoder,
    }


def _measured_once(cell: Cell) -> dict[str, Any]:
    """The measurements of a trained run; stored beside it, so that protocols that share the run share them."""
    asked = {
        "test": file_record(str(cell.run.data.test)),
        "validation": file_record(str(cell.run.data.validation)),
        "batch_size": cell.protocol.batch_size,
        **cell.measures,
        **cell.of_baseline,
    }
    path = Path(cell.run.output_dir) / f"measured-{digest(asked)}.json"
    stages = Stages(path.with_suffix(""))
    if not path.is_file():
        write_json(path, _measure(cell, stages))
    stages.remove()
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _measure(cell: Cell, stages: Stages) -> dict[str, Any]:
    """The measurements of a trained run, or of a baseline made from it; `stages` keep the state of a conversion."""
    run, protocol, tokenizer = cell.run, cell.protocol, load_tokenizer(cell.run.output_dir)
    model = load_model(run.output_dir).to(device_of(run))
    compressed = None
    if cell.entry.baseline is not None:
        compressed = compress(model, cell.entry.baseline, run, protocol.batch_size, stages)
    size, in_bf16 = (
        compressed or model_size(model, weight_bytes=weight_bytes) for weight_bytes in (None, WEIGHT_BYTES)
    )
    metrics = {
        **{
            split: evaluate(model, tokenizer, _examples(run, split), batch_size=protocol.batch_size).as_dict()
            for split in ("test", "validation")
        },
        "size": {**size.as_dict(), "bytes_in_bf16": in_bf16.bytes_stored},
        "decision": describe(model),
        **cell.of_baseline,
        "model_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if protocol.decoders and is_coded(model) and not model.decision.outputs.decoders:
        metrics["decoders"] = _decoders(model, run, protocol)
    if protocol.answers is not None:
        metrics["answers"] = _answers(model, run, protocol.answers)
    return {**metrics, "measured": {"git": git_state(), "hardware": hardware(), "at": utc_now()}}


def _examples(config: RunConfig, split: str) -> Any:
    """The tokenised examples of the test or the validation split."""
    data, source = config.data, getattr(config.data, split)
    rows = read_rows(source, split=split, subset=data.subset, text_field=data.text_field, as_text=data.as_text)
    return tokenize(rows, load_tokenizer(config.output_dir), data.block_size)


def _answers(model: Any, config: RunConfig, options: AnswersConfig) -> dict[str, Any]:
    """Answers to the first prompts of the test split, and their BERTScore if there is an encoder."""
    assert config.data.test is not None
    tokenizer = load_tokenizer(config.output_dir)
    rows = read_rows(config.data.test, split="test", subset=config.data.subset, limit=options.prompts)
    encoder = None if options.encoder is None else find_encoder(options.encoder, options.encoder_layers)
    return score_answers(
        model,
        tokenizer,
        rows,
        encoder,
        max_new_tokens=options.new_tokens,
        batch_size=options.batch_size,
        samples=options.samples,
    )


# Runs in a store: each is trained once, resumed if it was stopped, or found already trained.


def train_once(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train, or resume an unfinished run, or do nothing if it is finished; returns its `run.json`.

    The folder is named after the content that training reads, so a run in it that seems to differ was begun with its
    files in another place, or with other test data: it starts again.
    """
    folder, moved = RunFolder(config), False
    if not is_trained(config):
        if (folder.path / RECORD).exists():
            record = read_record(folder.path)
            is_other = record["provenance"]["data"] != file_records(config.data.sources)
            moved = is_other or first_difference(record["config"], folder.config) is not None
        train(config, overwrite=moved, callbacks=callbacks, progress=False)
    return read_record(folder.path)


def is_trained(config: RunConfig) -> bool:
    """Whether the run is there and finished; not if its record is damaged."""
    try:
        return bool(read_record(Path(config.output_dir))["status"] == "finished")
    except CheckpointError:
        return False


# One coded model under several decoders: the same head outputs, ranked in different ways.


@torch.no_grad()
def _decoders(model: Any, config: RunConfig, protocol: Protocol) -> dict[str, dict[str, float]]:
    """`top1` and `top5` on the test split under each decoder; decoders with weights are fitted on the validation split.

    The model's outputs must be bit logits only: dense rows, a bias per token or a chain work with one decoder only.
    """
    table = model.decision.table
    tested = _outputs(model, config, "test", protocol.batch_size)
    weights: dict[str, Weights] = {}
    fitted = [name for name in protocol.decoders if isinstance(DECODERS.get(name), FittedDecoder)]
    if fitted:
        held_out = _outputs(model, config, "validation", protocol.batch_size)
        weights = {name: fit(name, *held_out, table) for name in fitted}
    return {name: _hits(*tested, table, name, weights.get(name)) for name in protocol.decoders}


def _outputs(model: Any, config: RunConfig, split: str, batch_size: int) -> tuple[Tensor, Tensor]:
    """Bit logits `(tokens, n)` and labels `(tokens,)` at every labelled position of a split."""
    examples = _examples(config, split)
    batches = Collator(load_tokenizer(config.output_dir).pad_token_id).batches(examples, batch_size)
    return text_outputs(model, batches, sum(len(example["input_ids"]) for example in examples))


def _hits(
    bit_logits: Tensor, labels: Tensor, table: CodewordTable, decoder: str, weights: Weights | None
) -> dict[str, float]:
    rows = max(1, SCORE_BYTES // (4 * table.num_classes))
    first, top = 0, 0
    for some, wanted in zip(bit_logits.split(rows), labels.split(rows), strict=True):
        k = min(TOP, table.num_classes)
        hits = decode(some, table, decoder=decoder, k=k, weights=weights).ids == wanted.unsqueeze(-1)
        first, top = first + int(hits[:, 0].sum()), top + int(hits.sum())
    return {"top1": first / len(labels), "top5": top / len(labels)}


# Generation times of the cells of one seed: all take turns, on the same prompts.


ARITHMETIC = {"bf16": "bfloat16", "fp16": "float16"}  # option of the Trainer → dtype


def timed_entries(protocol: Protocol, setting: str) -> list[Entry]:
    """The cells that are timed together: those of the first seed, but no baselines, which are only simulated."""
    runs = [entry for entry in protocol.entries if entry.baseline is None]
    return [entry for entry in runs if (entry.setting, entry.seed) == (setting, protocol.seeds[0])]


def time_cells(cells: Sequence[Cell]) -> Result:
    """Measure the cells of `timed_entries`, which must be trained, unless that was done before.

    Seconds to generate exactly `new_tokens` after every prompt, and tokens per second at batch size 1; an
    end-of-text token is ignored, so all cells do the same work. Medians over repeats, the cells taking turns: all
    models are in memory at once, in the dtype of `generation_dtype`.
    """
    protocol, setting, seed = cells[0].protocol, cells[0].entry.setting, cells[0].entry.seed
    options = protocol.timing
    assert options is not None
    config = {
        "protocol": protocol.name,
        "setting": setting,
        "seed": seed,
        "timing": asdict(options),
        "runs": {cell.entry.name: cell.entry.config for cell in cells},
    }
    path = timing_path(cells[0].result.parent, setting)
    if path.is_file() and canonical_json(Result.read(path).config) == canonical_json(config):
        return Result.read(path)
    device, started = default_device(), utc_now()
    models = {
        cell.entry.name: load_model(cell.run.output_dir, dtype=generation_dtype(cell.run, device)).to(device)
        for cell in cells
    }
    limit = max_length(next(iter(models.values()))) or math.inf
    prompts = _prompts(cells[0].run, options, limit - options.new_tokens)
    metrics = {"cells": _measured_times(models, prompts, options), **asdict(options), "prompts": len(prompts)}
    record = {**provenance(seed=seed), "started_at": started}
    result = Result(f"{protocol.name}/timing/{setting or EVERY_SETTING}", config, metrics, record)
    result.write(path)
    return result


def generation_dtype(run: RunConfig, device: torch.device) -> str:
    """The dtype in which a run's model is timed: on an accelerator the one that it trains in, else `dtype`."""
    chosen = [dtype for option, dtype in ARITHMETIC.items() if run.training.get(option) and device.type != "cpu"]
    return chosen[0] if chosen else run.dtype


def _measured_times(
    models: Mapping[str, Any], prompts: Sequence[list[int]], options: TimingConfig
) -> dict[str, dict[str, Any]]:
    speeds = partial(generation_speed, models, new_tokens=options.new_tokens, repeats=options.repeats)
    seconds = {name: [0.0] * options.repeats for name in models}
    for start in range(0, len(prompts), options.batch_size):
        ids, mask = left_padded(prompts[start : start + options.batch_size])
        for name, speed in speeds(ids, attention_mask=mask).items():
            for repeat, rate in enumerate(speed.repeats):
                seconds[name][repeat] += len(ids) * options.new_tokens / rate
    alone = speeds(torch.tensor(prompts[:1]))
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


def _prompts(run: RunConfig, options: TimingConfig, longest: float) -> list[list[int]]:
    """Token ids of the first prompts of the test split that have at most `longest`; DataError if there are none.

    The prompts of a text are the beginnings of its blocks.
    """
    assert run.data.test is not None
    tokenizer = load_tokenizer(run.output_dir)
    rows = read_rows(run.data.test, split="test", subset=run.data.subset, text_field=run.data.text_field)
    if "prompt" in rows.column_names:
        prompts = prompt_ids(list(rows["prompt"]), tokenizer)
    else:
        blocks = tokenize(rows, tokenizer, run.data.block_size)["input_ids"]
        prompts = [ids[: options.prompt_tokens] for ids in blocks]
    found = [ids for ids in prompts if len(ids) <= longest][: options.prompts]
    if not found:
        raise DataError(
            f"no prompt fits the model together with {options.new_tokens} new tokens; lower timing.new_tokens "
            "or timing.prompt_tokens"
        )
    return found
