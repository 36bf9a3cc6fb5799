"""One training run: a thin layer over transformers' Trainer that can be killed and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    default_logdir,
    get_reporting_integration_callbacks,
)

from codehead.boundaries import library_bars_hidden, peft_warnings_hidden
from codehead.config import DecisionConfig
from codehead.errors import ConfigurationError
from codehead.models.description import weights_checksum
from codehead.models.surgery import describe, is_coded
from codehead.processes import is_main
from codehead.training.config import RunConfig, refuse_softmax_only
from codehead.training.data import Collator, Rows, Text, check_labels, check_vocabulary, load_rows
from codehead.training.folder import RunFolder, save_whole
from codehead.training.loop import SILENT, Show, Stages, Work, refuse_divergence, shown
from codehead.training.model import (
    adapt,
    check_length,
    decision_paths,
    device_of,
    find_targets,
    load_model,
    merge,
    new_model,
)
from codehead.training.new_head import calibrated, check_end, finish, fit_decision_layer, looks_at_text
from codehead.training.tokenizer import load_tokenizer, tokenizer_checksum, train_bpe
from codehead.training.trainer import NarrowTrainer, RichProgress, decision_rates, filled, knows_its_tokens, skeleton

KEPT_CHECKPOINTS = 2
"""Checkpoints kept unless `training.save_total_limit` says otherwise."""
NO_WAY_BACK = {
    "save_only_model": "its checkpoints lack the optimizer",
    "ignore_data_skip": "it would learn from some examples twice",
}
"""Trainer options with which a stopped run could not resume to the same numbers."""


def train(
    config: RunConfig,
    *,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
) -> Path:
    """Run `config` to its end and return `output_dir`: a checkpoint with tokenizer and `run.json`.

    An unfinished run of the same configuration resumes from its last complete checkpoint, with the loss
    curve of a run that was never stopped. Raises ConfigurationError if the folder holds anything else
    (unless `overwrite`), or another process is using it; DataError for unusable data.
    """
    folder = RunFolder(config, overwrite)
    with folder.locked(), library_bars_hidden(), peft_warnings_hidden():
        return _run(folder, config, callbacks, progress)


def _run(folder: RunFolder, config: RunConfig, callbacks: Sequence[TrainerCallback], progress: bool) -> Path:
    folder.check()
    arguments = training_arguments(config, folder.checkpoints)  # before anything is read or learnt
    rows = load_rows(config.data, config.seed)
    tokenizer = _tokenizer(config, rows)
    set_seed(config.seed)
    text_of = partial(Text.of, tokenizer=tokenizer, block_size=config.data.block_size, seed=config.seed)
    text = text_of(rows.train, name="the training data")
    validation = None if rows.validation is None else text_of(rows.validation, name="the validation data").read()
    model: Any = _loaded(config, tokenizer)
    folder.begins_with("tokenizer", tokenizer_checksum(tokenizer))
    folder.begins_with("weights", None if config.is_pretraining else weights_checksum(model))
    distils = config.distil is not None  # takes long enough to be killed, so its progress is saved
    with folder.begun() if distils else nullcontext(Stages()) as stages:
        with _shown(progress and distils) as show:
            model = _built(model, config, text, Work(show, stages))
        folder.begins_with("codebook", describe(model, "train").codebook.checksum if is_coded(model) else None)
        paths, knowing = decision_paths(model), knows_its_tokens(model, config)
        model = adapt(model, config)
        rates = decision_rates(model, paths, config, arguments.learning_rate, knowing)
        datasets = [text.examples, None if validation is None else validation.examples]
        callbacks = [*callbacks, RichProgress(folder.path.name)] if progress else callbacks
        trainer = _trainer(arguments, model, tokenizer, datasets, callbacks, rates)
    checkpoint = folder.resumed_from()
    limit = config.training.get("save_total_limit", KEPT_CHECKPOINTS)
    trainer.add_callback(_Keeper(folder, checkpoint, limit, replaces=folder.overwrite and not distils))
    empty = skeleton(model) if trainer.is_fsdp_enabled else None
    with _one_mlflow_run(trainer):
        _train(trainer, checkpoint, has_validation=validation is not None)
    model = trainer.accelerator.unwrap_model(trainer.model) if empty is None else filled(empty, trainer)
    if not is_main():
        return folder.path
    told: dict[str, Any] = {"log_history": trainer.state.log_history}
    with _shown(progress and config.decision is not None) as show:
        trained = merge(model)
        if config.calibrate is not None and validation is not None:
            told |= calibrated(trained, config, validation, Work(show))
        trained = finish(trained, config, text, Work(show))
    save_whole(trained, tokenizer, folder.path)
    folder.finish(told | ({"head_rates": rates} if rates else {}))
    return folder.path


def _loaded(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model to train, before any change; ConfigurationError if tokenizer or block size do not fit it."""
    if isinstance(config.model, dict):
        model = new_model(config.model, tokenizer)
    else:
        model = load_model(config.model, dtype=config.dtype, device=device_of(config))
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    check_length(model, config.data.block_size, "data.block_size")
    return model


def _built(model: Any, config: RunConfig, text: Text, work: Work) -> nn.Module:
    """The model with the decision layer that `config.decision` asks for; None keeps the one it has.

    `text` is the training text: a new decision layer that looks at text, or learns from the old head before training,
    uses it, on the accelerator if there is one; the stages of `work` save the progress.
    """
    if config.adapt == "lora":
        find_targets(model, config.lora)  # fails before anything is learnt
    if config.decision is not None and not is_coded(model):
        if looks_at_text(config):
            model = model.to(device_of(config))
        return fit_decision_layer(model, config, text, work)
    if is_coded(model):
        refuse_softmax_only(config.training)
    if config.decision is not None:
        _reread(model, config.decision)
    check_end(model, config)
    return model


def _reread(model: Any, decision: DecisionConfig) -> None:
    """Give a coded model another loss or decoder; its final storage may change too, but not its code or head."""
    given = decision.to_dict()
    fixed = sorted(set(given) - {"loss", "decoder", "weights", "packed"})
    if fixed:
        raise ConfigurationError(
            f"decision.{fixed[0]} is {given[fixed[0]]!r}, but this checkpoint is coded already: omit --code, --bits, "
            "--head, --width, --budget; only --loss, --decoder, --weights and --packed can change"
        )
    model.decision.loss_name = given.get("loss", model.decision.loss_name)
    model.decision.decoder_name = given.get("decoder", model.decision.decoder_name)


def _shown(wanted: bool) -> AbstractContextManager[Show]:
    """Progress of the work before and after training; not shown unless `wanted`."""
    return shown() if wanted else nullcontext(SILENT.show)


class _Keeper(TrainerCallback):
    """Maintains the folder of a run: `run.json` from the first step on, and no more than `limit` checkpoints.

    The wall time is saved at every checkpoint. A run that `replaces` another clears it only when the first step is due,
    after every check of the configuration.
    """

    def __init__(self, folder: RunFolder, checkpoint: Path | None, limit: int | None, replaces: bool) -> None:
        self.folder, self.limit, self.replaces = folder, limit, replaces
        self.best = None if checkpoint is None else folder.best_of(checkpoint)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.replaces:
            self.folder.clear_work()
        if self.best is not None:
            state.best_model_checkpoint = str(self.best)
        self.folder.keep()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = state.best_model_checkpoint
        self.folder.rotate(self.limit, None if best is None else Path(best).name)
        self.folder.keep()


def training_arguments(config: RunConfig, output_dir: Path) -> TrainingArguments:
    """The literal TrainingArguments of the run; ConfigurationError for values that transformers refuses."""
    values: dict[str, Any] = {
        "report_to": "none",
        "run_name": output_dir.parent.name,  # shown by Weights & Biases, MLflow
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),  # without one, torch warns
        "use_cpu": device_of(config).type == "cpu",
        **config.training,
        "save_total_limit": None,  # the Trainer orders by file times, `RunFolder.rotate` by steps
    }
    for key, reason in NO_WAY_BACK.items():
        if values.get(key):
            raise ConfigurationError(f"training.{key} is true, but a run must be resumable: {reason}; remove it")
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), seed=config.seed, **values)
        for reporter in get_reporting_integration_callbacks(arguments.report_to):
            reporter()  # raises if its library is missing, now rather than after setup
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"training: transformers refuses these arguments: {error}") from error
    _check_sharding(arguments)
    return arguments


def _trainer(
    arguments: TrainingArguments,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Sequence[Dataset | None],
    callbacks: Sequence[TrainerCallback],
    rates: Mapping[str, float],
) -> Trainer:
    """A Trainer on training and validation data."""
    for examples in datasets:
        if examples is not None:
            check_labels(examples, model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    trainer = NarrowTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
        own_rates=rates,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_deepspeed_enabled:
        raise ConfigurationError(
            "DeepSpeed is untested here, and its shards would not be gathered at the end of a run; use FSDP2 "
            "(training.fsdp=true)"
        )
    _logs_in_sight(trainer)
    return trainer


def _check_sharding(arguments: TrainingArguments) -> None:
    """Raise ConfigurationError if sharding is requested where accelerate does none."""
    if arguments.fsdp and arguments.distributed_state.distributed_type.value in ("NO", "MULTI_CPU"):
        raise ConfigurationError(
            "training.fsdp is set, but accelerate shards nothing here: it needs several processes with an accelerator "
            "each; start the run with torchrun or accelerate launch on such a machine, or remove the key"
        )


def _logs_in_sight(trainer: Trainer) -> None:
    """Put TensorBoard's files into the run's folder, not its checkpoints', unless the environment names one."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(str(trainer.args.output_dir)).parent / default_logdir())


def _one_mlflow_run(trainer: Trainer) -> AbstractContextManager[Any]:
    """One MLflow run for both training and evaluation; transformers would end it before the evaluation."""
    if "mlflow" not in trainer.args.report_to or not trainer.is_world_process_zero():
        return nullcontext()
    import mlflow

    return nullcontext() if mlflow.active_run() else mlflow.start_run(run_name=trainer.args.run_name)


def _train(trainer: Trainer, checkpoint: Path | None, *, has_validation: bool) -> None:
    try:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RichProgress):
                callback.close()
    refuse_divergence(outcome.training_loss, outcome.global_step)
    if has_validation:
        trainer.evaluate()


def _tokenizer(config: RunConfig, rows: Rows) -> PreTrainedTokenizerBase:
    if isinstance(config.tokenizer, dict):
        return train_bpe(rows.texts(), config.tokenizer["vocab_size"])
    name = config.tokenizer or config.model
    assert isinstance(name, str)  # RunConfig asks for a tokenizer where the model is an architecture
    return load_tokenizer(name)
