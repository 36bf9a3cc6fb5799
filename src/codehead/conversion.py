"""Gives a model a smaller or better calibrated head, and measures both; resumes where it was killed.

`convert` gives a stock model a decision layer that learns from the old head, within a budget; `run_conversion`, any
layer of a RunConfig. `recalibrate` scales the bits of a coded model; `run_folding` makes it a stock model again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.config.blocks import merged
from codehead.errors import ConfigurationError, DataError
from codehead.evaluation.metrics import evaluate
from codehead.evaluation.size import model_size
from codehead.models.calibration import check_calibration
from codehead.models.description import weights_checksum
from codehead.models.folding import check_foldable, fold
from codehead.models.hidden import Statistics, hidden_states
from codehead.models.surgery import is_coded
from codehead.processes import launched
from codehead.recommendation import Recommendation, recommend
from codehead.training.config import RunConfig
from codehead.training.data import (
    STATISTICS_TOKENS,
    Rows,
    Text,
    batch_size_of,
    check_labels,
    check_vocabulary,
    load_rows,
)
from codehead.training.folder import RunFolder, flattened, save_whole
from codehead.training.in_memory import on_disk
from codehead.training.loop import SILENT, Show, Work
from codehead.training.model import check_length, device_of, load_model
from codehead.training.new_head import calibrated, finish, fit_decision_layer
from codehead.training.tokenizer import load_tokenizer, tokenizer_checksum

if TYPE_CHECKING:
    from datasets import Dataset

MEASURED = ("tokens", "top1", "top5", "perplexity", "bits_per_byte")
HELD_OUT = 0.05
"""Share of the documents that is measured before and after, and not learnt from."""
BLOCK_SIZE = 256
"""Tokens per example, unless the model takes fewer."""
CALIBRATED_ON = 0.1
"""Share of the training documents that `convert` calibrates on, and does not learn from."""
READ = ("per_device_train_batch_size", "use_cpu")
"""The keys of `training` that conversion reads."""
UNREAD = {
    "adapt": "distil.backbone_steps trains the backbone too",
    "head_learning_rate": "set distil.learning_rate",
    "training.learning_rate": "set distil.learning_rate",
    "training.max_steps": "set distil.steps",
    "training.num_train_epochs": "set distil.steps",
    "decision.start": "the new head always starts near the old one",
    "lora.dropout": "the adapters have none",
    "data.test": "the held-out text is measured; evaluate measures others",
}
"""Keys of a run that conversion does not read, like the rest of `training`, and what to do instead."""
TEMPERATURE_TOKENS = 4096
"""Positions for fitting one temperature, which suffices for a head that has learnt a posterior: an error of 1% costs
about 0.0001 nats."""


@dataclass(frozen=True)
class Converted:
    """What `convert` returns."""

    model: Any
    """The model with its new head."""
    record: dict[str, Any]
    """`run.json`: the configuration, `before` and `after` on held-out text, `calibration`, provenance."""


def convert(
    model: Any,
    text: str | Sequence[str],
    *,
    out: str | Path,
    budget: str | float | None = None,
    bits: int | None = None,
    speed: str | float | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    show: Show = SILENT.show,
    **options: Any,
) -> Converted:
    """Give a trained model a coded head that learns from the old one, and measure both on held-out text.

    Args:
        model: hub id, folder or GGUF file of a stock causal language model; or one in memory, with its `tokenizer`.
        text: hub id or file of text like yours, or a list of documents.
        out: folder of the converted checkpoint. A stopped conversion resumes there, to the same numbers.
        budget: the head's bytes, as a share of the old head's in bf16; 5% unless `bits` or `speed` is given.
        bits: the codeword length instead.
        speed: how many times fewer multiply-adds than Softmax's, such as 4x, instead.
        tokenizer: for a model in memory; a hub id, folder or file comes with its own.
        overwrite: replace a run in `out`.
        show: called with the stage, how much of it is done, and the total.
        options: as for `conversion_config`: steps, tokens, own_text, backbone_steps, calibrate, seed, dtype, …

    Raises:
        ConfigurationError: an impossible value, a model that is coded already, or a folder that holds something else.
        DataError: unusable data.
    """
    with on_disk(model, tokenizer, text, out) as (name, source):
        found = recommend(name, budget=budget, bits=bits, speed=speed)
        config = conversion_config(name, source, out, found, **options)
        record = run_conversion(config, overwrite=overwrite, show=show)
    return Converted(load_model(str(out), dtype="stored"), record)


def conversion_config(
    model: str,
    data: str,
    out: str | Path,
    found: Recommendation,
    *,
    steps: int = 500,
    tokens: int = 200_000,
    own_text: float = 0.0,
    backbone_steps: int = 0,
    calibrate: bool = True,
    packed: bool = True,
    batch_size: int = 8,
    block_size: int | None = None,
    max_documents: int | None = None,
    text_field: str | None = None,
    dtype: str = "auto",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The run that gives `model` the recommended decision layer `found`; `changes` are dotted keys → values.

    One document in twenty is held out, unless the changes name validation data.
    """
    changes = dict(changes or {})
    held_out = 0.0 if changes.get("data.validation") else HELD_OUT
    decision = replace(found.config, seed=seed, packed=packed)
    size = min(BLOCK_SIZE, found.shape.positions or BLOCK_SIZE) if block_size is None else block_size
    config = RunConfig.from_dict(
        {
            "model": model,
            "output_dir": str(out),
            "data": {
                "train": data, "validation_fraction": held_out, "block_size": size, "max_documents": max_documents,
                "text_field": text_field,
            },
            "decision": decision.to_dict(),
            "distil": {
                "steps": steps, "tokens": tokens, "own_text": own_text, "backbone_steps": backbone_steps, "seed": seed
            },
            "calibrate": {"tokens": TEMPERATURE_TOKENS, "per_bit": False} if calibrate else None,
            "training": {"per_device_train_batch_size": batch_size},
            "seed": seed,
            "dtype": dtype,
        },
        changes,
    )  # fmt: skip
    _refuse_unread(changes)
    return config


def _refuse_unread(changes: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a dotted key that conversion does not read."""
    for key, _ in flattened(merged({}, changes)):
        block, _, name = key.partition(".")
        if key in UNREAD or (block == "training" and name not in READ):
            raise ConfigurationError(f"{key} is set, but convert does not read it: {UNREAD.get(key, 'omit it')}")


def run_conversion(config: RunConfig, *, overwrite: bool = False, show: Show = SILENT.show) -> dict[str, Any]:
    """Replace the Softmax head of `config.model` as `config.decision` and `config.distil` say.

    With `config.calibrate`, the bits are scaled on a tenth of the training documents, which are not learnt from.
    Measures the model on the validation data, never learnt from, before and after; writes checkpoint, tokenizer and
    `run.json`, with `before`, `after` and `calibration`, to `config.output_dir`; returns that record.

    If it is stopped at any time, the same call resumes and gives the same numbers.

    Raises:
        ConfigurationError: the model is coded already, there is no validation data, or the folder holds something else.
        DataError: unusable data.
    """
    return _changed(config, _check_stock, _replace_head, overwrite, show)


def recalibrate(config: RunConfig, *, overwrite: bool = False, show: Show = SILENT.show) -> dict[str, Any]:
    """Scale the bits of the coded checkpoint `config.model` on its training data, as `config.calibrate` says.

    Measures, writes, resumes and refuses as `convert` does. The training data should be text that the model was not
    trained on.
    """
    return _changed(config, _check_coded, _calibrate_head, overwrite, show)


def run_folding(config: RunConfig, *, overwrite: bool = False, show: Show = SILENT.show) -> dict[str, Any]:
    """Make the coded checkpoint `config.model` a stock one, as `codehead.fold` does with statistics of training data.

    Measures, writes, resumes and refuses as `convert` does.
    """
    return _changed(config, lambda job: check_foldable(job.model), _fold_head, overwrite, show)


@dataclass(frozen=True)
class _Job:
    """The inputs of a change to a model."""

    config: RunConfig
    model: Any
    tokenizer: Any
    rows: Rows
    work: Work

    def text(self, rows: Dataset, name: str) -> Text:
        """Some rows, called `name` in errors, tokenised on access."""
        return Text.of(rows, self.tokenizer, self.config.data.block_size, name, self.config.seed)

    def measure(self, model: Any, name: str, stage: str) -> dict[str, Any]:
        """The metrics of a model on the validation data, measured once."""
        assert self.rows.validation is not None
        held_out = self.text(self.rows.validation, "the text that is held out").examples
        check_labels(held_out, model.get_input_embeddings().num_embeddings)

        def compute() -> dict[str, Any]:
            size, progress = batch_size_of(self.config), partial(self.work.show, stage)
            options: Any = {"batch_size": size, "progress": progress, "processes": self.work.processes}
            found = evaluate(model, self.tokenizer, held_out, **options).as_dict()
            weighed = model_size(model, weight_bytes=2)
            return {**{key: found[key] for key in MEASURED}, "bytes_in_bf16": weighed.bytes_stored}

        return self.work.stages.values(name, compute)


Check = Callable[[_Job], Any]
Change = Callable[[_Job], tuple[Any, dict[str, Any]]]


def _changed(config: RunConfig, check: Check, change: Change, overwrite: bool, show: Show) -> dict[str, Any]:
    """Check, measure, change, measure and save a model; `change` returns the new one and what to add to the record."""
    folder = RunFolder(config, overwrite)
    processes = launched(on_cpu=device_of(config).type == "cpu")
    with folder.locked():
        folder.check()
        model, tokenizer = _load(config)
        folder.begins_with("weights", weights_checksum(model))
        folder.begins_with("tokenizer", tokenizer_checksum(tokenizer))
        job = _Job(config, model, tokenizer, load_rows(config.data, config.seed), Work(show, folder.stages, processes))
        check(job)
        if job.rows.validation is None:
            raise ConfigurationError(
                "the model is measured before and after: give data.validation or data.validation_fraction"
            )
        with folder.begun():
            processes.wait()  # until the first one has cleared the folder
            before = job.measure(model, "before", "measuring the old head")
            if before["perplexity"] is None:  # it is not finite
                raise ConfigurationError(
                    f"model {config.model!r} has no finite perplexity on the text that is held out: its weights "
                    "contain NaN, or it gives some token zero probability; give another checkpoint"
                )
            model, told = change(job)
            after = job.measure(model, "after", "measuring the new one")
        measured = {"before": before, "after": after} if is_coded(model) else None  # a stock model has no card of ours
        if processes.is_main:
            save_whole(model, tokenizer, folder.path, measured)
        record = folder.finish({"log_history": [], "before": before, "after": after, **told})
        processes.wait()  # until the first one has written everything
    return record


def _check_stock(job: _Job) -> None:
    config = job.config
    if is_coded(job.model):
        raise ConfigurationError(f"model {config.model!r} has a decision layer already; convert its stock checkpoint")
    if config.decision is None:
        raise ConfigurationError(
            "decision is missing; give one, such as that of DecisionConfig.for_budget(model, '5%')"
        )
    if config.calibrate is not None:
        _parted(job.rows.train, config.seed)


def _check_coded(job: _Job) -> None:
    if job.config.calibrate is None:
        raise ConfigurationError("calibrate is missing; give, for example, calibrate: {per_bit: true}")
    if job.config.decision is not None:
        raise ConfigurationError("decision is given, but recalibrate scales the bits alone; omit it")
    check_calibration(job.model, job.config.calibrate.per_bit)


def _replace_head(job: _Job) -> tuple[Any, dict[str, Any]]:
    """A new decision layer, calibrated if the configuration says so."""
    learnt, other = job.rows.train, None
    if job.config.calibrate is not None:
        learnt, kept_back = _parted(job.rows.train, job.config.seed)
        other = job.text(kept_back, "the text to calibrate on").read()
    text = job.text(learnt, "the text to learn from")
    model = fit_decision_layer(job.model, job.config, text, job.work)
    told = {} if other is None else calibrated(model, job.config, other, job.work)
    return finish(model, job.config, text, job.work), told


def _calibrate_head(job: _Job) -> tuple[Any, dict[str, Any]]:
    text = job.text(job.rows.train, "the text to calibrate on")
    return job.model, calibrated(job.model, job.config, text, job.work)


def _fold_head(job: _Job) -> tuple[Any, dict[str, Any]]:
    text = job.text(job.rows.train, "the text to fold with")
    batches, reading = text.batches(batch_size_of(job.config)), partial(job.work.show, "reading text")
    hidden = hidden_states(job.model, batches, STATISTICS_TOKENS, reading, job.work.processes)
    counts = text.counts(len(job.model.get_input_embeddings().weight))
    return fold(job.model, Statistics.of(counts, hidden)), {}


def _parted(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """The documents to learn from, and those to calibrate on."""
    held_back = round(len(rows) * CALIBRATED_ON)
    if not held_back:
        raise DataError(
            f"calibrate takes {CALIBRATED_ON:.0%} of {len(rows)} training documents, which is none; give more text, or "
            "omit calibration (--no-calibrate)"
        )
    parts = rows.train_test_split(test_size=held_back, seed=seed)
    return parts["train"], parts["test"]


def _load(config: RunConfig) -> tuple[Any, Any]:
    """The model, on the device that the run computes on, and its tokenizer."""
    assert isinstance(config.model, str)
    model = load_model(config.model, dtype=config.dtype, device=device_of(config))
    tokenizer = load_tokenizer(config.tokenizer if isinstance(config.tokenizer, str) else config.model)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    check_length(model, config.data.block_size, "data.block_size")
    return model.to(device_of(config)), tokenizer
