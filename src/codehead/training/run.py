"""One training run: a thin layer over transformers' Trainer that can be killed and goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from codehead.errors import ConfigurationError
from codehead.training.adapt import adapt, merge
from codehead.training.config import RunConfig
from codehead.training.data import Collator, Rows, check_labels, load_rows, tokenize
from codehead.training.folder import RunFolder
from codehead.training.model import build_model
from codehead.training.progress import RichProgress
from codehead.training.provenance import provenance, utc_now
from codehead.training.quiet import library_bars_hidden, peft_warnings_hidden
from codehead.training.tokenizer import load_tokenizer, train_bpe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

DEFAULTS = {
    "report_to": "none",
    "logging_steps": 10,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
}


def train(
    config: RunConfig,
    *,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
) -> Path:
    """Run `config` to its end and return `output_dir`: a checkpoint with tokenizer and `run.json`.

    An unfinished run of the same configuration goes on from its last complete checkpoint, with the loss
    curve of a run that was never stopped. Raises ConfigurationError if the folder holds anything else
    (unless `overwrite`), DataError for unusable data.
    """
    with library_bars_hidden(), peft_warnings_hidden():
        return _run(config, overwrite, callbacks, progress)


def _run(config: RunConfig, overwrite: bool, callbacks: Sequence[TrainerCallback], progress: bool) -> Path:
    from transformers import set_seed

    folder = RunFolder(config)
    sources = [source for source in (config.data.train, config.data.validation) if source]
    record = {"provenance": {**provenance(seed=config.seed, sources=sources), "started_at": utc_now()}}
    if not overwrite:
        folder.check(record["provenance"]["data"])
    rows = load_rows(config.data, config.seed)
    tokenizer = _tokenizer(config, rows)
    set_seed(config.seed)
    model = adapt(build_model(config, tokenizer), config)
    if overwrite:
        folder.clear()
    folder.write("running", record)
    started = time.monotonic()
    trainer = _trainer(config, folder, model, tokenizer, rows, callbacks, progress)
    _train(trainer, folder, has_validation=rows.validation is not None)
    _save(trainer, tokenizer, folder.path)
    record["provenance"]["wall_seconds"] = round(time.monotonic() - started, 3)
    folder.write("finished", {**record, "log_history": trainer.state.log_history})
    return folder.path


def training_arguments(config: RunConfig, output_dir: Path) -> TrainingArguments:
    """The literal TrainingArguments of the run; ConfigurationError for values that transformers refuses."""
    from transformers import TrainingArguments

    pin_memory = torch.accelerator.is_available()  # without one, torch warns of it
    values: dict[str, Any] = {"dataloader_pin_memory": pin_memory, **DEFAULTS, **config.training}
    try:
        return TrainingArguments(output_dir=str(output_dir), seed=config.seed, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigurationError(f"training: transformers refuses these arguments: {error}") from error


def _trainer(
    config: RunConfig,
    folder: RunFolder,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    callbacks: Sequence[TrainerCallback],
    progress: bool,
) -> Trainer:
    from transformers import PrinterCallback

    from codehead.training.divergence import StopAtDivergence
    from codehead.training.trainer import NarrowTrainer

    datasets = [
        None if part is None else tokenize(part, tokenizer, config.data.block_size)
        for part in (rows.train, rows.validation)
    ]
    for examples in datasets:
        if examples is not None:
            check_labels(examples, model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    trainer = NarrowTrainer(
        model=model,
        args=training_arguments(config, folder.checkpoints),
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[StopAtDivergence(), *callbacks, *([RichProgress(folder.path.name)] if progress else [])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train(trainer: Trainer, folder: RunFolder, *, has_validation: bool) -> None:
    folder.drop_incomplete()
    checkpoint = folder.last_checkpoint()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RichProgress):
                callback.close()
    if has_validation:
        trainer.evaluate()


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    model: Any = merge(trainer.accelerator.unwrap_model(trainer.model))
    if trainer.is_world_process_zero():
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)


def _tokenizer(config: RunConfig, rows: Rows) -> PreTrainedTokenizerBase:
    if isinstance(config.tokenizer, dict):
        return train_bpe(rows.texts(), config.tokenizer["vocab_size"])
    name = config.tokenizer or config.model
    assert isinstance(name, str)  # RunConfig asks for a tokenizer where the model is an architecture
    return load_tokenizer(name)
