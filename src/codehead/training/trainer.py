"""The Trainer of transformers, with evaluation that forms no logits, and resuming that leaves no trace.

A decision layer that is already fitted to its tokens has learning rates of its own, beside those of the backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from codehead.boundaries import reason
from codehead.errors import ConfigurationError
from codehead.models import named
from codehead.models.description import weights_checksum
from codehead.models.registration import METHOD
from codehead.models.surgery import is_coded
from codehead.processes import is_main
from codehead.training.config import RunConfig
from codehead.training.distil import steady_rate
from codehead.training.loop import Lines, refuse_divergence, shown


def decision_rates(
    model: nn.Module, paths: list[str], config: RunConfig, learning_rate: float, knowing: bool
) -> dict[str, float]:
    """A learning rate for each trained tensor of the decision layer, by its name in the `model` that is trained.

    `paths` are the modules of the decision layer. The rate is `config.head_learning_rate`; by default that of the run,
    but at most `steady_rate` for a code that is `knowing` its tokens: every token uses all rows of a code, so a score
    adds up the changes of hundreds of rows, and steps that suit a backbone undo what the head has learnt. Empty if
    everything learns at the run's rate. ConfigurationError if the head cannot have the rate of its own that is asked.
    """
    if config.head_learning_rate is None and not knowing:
        return {}
    named = {
        name: values
        for name, values in model.named_parameters()
        if values.requires_grad and any(f".{path}." in f".{name}" for path in paths)
    }
    if config.head_learning_rate is None:
        return {name: min(learning_rate, steady_rate(values)) for name, values in named.items()}
    if not named:
        raise ConfigurationError(
            f"head_learning_rate is {config.head_learning_rate}, but the head is the input embedding, which learns at "
            "training.learning_rate; omit it, or choose adapt: head or lora, which untie them"
        )
    return dict.fromkeys(named, config.head_learning_rate)


def knows_its_tokens(model: Any, config: RunConfig) -> bool:
    """Whether a run begins with a code that was fitted to an old head, or trained before."""
    if not is_coded(model) or model.decision.table.is_implicit or config.is_pretraining:
        return False
    stored = getattr(named.configuration(str(config.model)), "quantization_config", None) or {}
    if stored.get("quant_method") == METHOD:
        is_fresh = stored.get("fresh", "") == weights_checksum(model.get_output_embeddings())
        return bool(model.decision.loss_name == "codeword") and not is_fresh
    return config.distil is not None or (config.decision is not None and config.decision.start == "old_head")


def give_own_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Move the parameters named in `rates` into optimizer groups of their own, before the first step."""
    own = {id(values): rates[name] for name, values in model.named_parameters() if name in rates}
    groups = list(optimizer.param_groups)
    for group in groups:
        moved = [values for values in group["params"] if id(values) in own]
        group["params"] = [values for values in group["params"] if id(values) not in own]
        options = {key: value for key, value in group.items() if key != "params"}
        for values in moved:
            optimizer.add_param_group({**options, "params": [values], "lr": own[id(values)]})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


SUMS = "NarrowTrainer"
"""The key of the sums of losses among the callback states of a checkpoint."""


class NarrowTrainer(Trainer):
    """Asks a coded model only for its evaluation loss: no `(batch, length, V)` logits are formed.

    `own_rates` are the learning rates, by name, of parameters that do not learn at the rate of the others.

    It resumes from a checkpoint with the numbers of a training that was never stopped: the checkpoint holds losses that
    were summed but not logged yet, every data order is fixed by the seed, a training that was at its end takes no
    further step, and `train_loss` is the mean over all steps.
    """

    def __init__(self, *args: Any, own_rates: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_rates = own_rates
        self.is_over = False
        self.add_callback(_Ends(self))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in transformers, with the own rates."""
        fresh = self.optimizer is None
        with _refusing("optimizer"):
            optimizer = super().create_optimizer(model)
        if fresh and self.own_rates:
            give_own_rates(optimizer, self.model if model is None else model, self.own_rates)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; values that it refuses raise ConfigurationError."""
        with _refusing("schedule"):
            return super().create_scheduler(*args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        plain = self.accelerator.unwrap_model(model)
        plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        if prediction_loss_only and is_coded(plain):
            inputs = {**inputs, "output_token_logits": False}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in transformers, but `train_loss` is the mean over all steps, even after resuming; CodeheadError for NaN.

        Finding NaN needs logging_nan_inf_filter=False.
        """
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, *args, **kwargs)
        refuse_divergence(logs.get("loss", 0.0), self.state.global_step)

    def recall(self) -> None:
        """Restore the sums of the checkpoint, and take no step if it was the last one."""
        states = self.state.stateful_callbacks
        self.is_over = states["TrainerControl"]["args"]["should_training_stop"]
        if SUMS in states:
            sums = states[SUMS]["attributes"]
            self._tr_loss.fill_(sums["unlogged_loss"])
            self._total_loss_scalar = sums["logged_loss"]
            self._globalstep_last_logged = sums["logged_step"]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        sums = {
            "unlogged_loss": self.accelerator.gather(self._tr_loss).mean().item(),
            "logged_loss": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
        }
        self.state.stateful_callbacks[SUMS] = {"args": {}, "attributes": sums}
        super()._save_checkpoint(model, trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.is_over:  # transformers checks only after a step
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        return _SeededLengths(sampler, self.args.seed) if isinstance(sampler, LengthGroupedSampler) else sampler


class _Ends(TrainerCallback):
    """Tells the trainer when the state of a checkpoint is loaded; evaluates and saves only when an epoch is over.

    That is after its last step, or the last of all. The Trainer would save first, and a run resumed from there would
    lack what is logged and evaluated at the end of the epoch.
    """

    def __init__(self, trainer: NarrowTrainer) -> None:
        self.trainer = trainer
        self.waiting: list[str] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.recall()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if control.should_training_stop or control.should_epoch_stop or float(state.epoch or 0).is_integer():
            self.waiting = [name for name in ("should_evaluate", "should_save") if getattr(control, name)]
            for name in self.waiting:
                setattr(control, name, False)
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        for name in self.waiting:
            setattr(control, name, True)
        self.waiting = []
        return control


class RichProgress(TrainerCallback):
    """Shows steps, loss and time left of any Trainer. Pass it through `callbacks=`."""

    def __init__(self, label: str = "training", console: Console | None = None) -> None:
        self.label, self.loss = label, "loss –"
        self.console = console or Console(stderr=True)
        self.under_way = ExitStack()
        self.show: Callable[..., None]  # from the beginning of the training on

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show = self.under_way.enter_context(shown(self.console))
        self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:  # the last step is shown when its loss is logged
            self._tell(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        text = " ".join(f"{key} {logs[key]:.4f}" for key in ("loss", "eval_loss") if key in (logs or {}))
        if text:
            self.loss = text
            if state.global_step == state.max_steps:
                self._tell(state, always=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, also after an interruption; a later evaluation prints a line."""
        self.under_way.close()
        if self.console.is_terminal and is_main():
            self.show = Lines(self.console).show

    def _tell(self, state: Any, *, always: bool = False) -> None:
        detail = f": step {state.global_step}/{state.max_steps} {self.loss}"
        self.show(self.label, state.global_step, state.max_steps, detail, always=always)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raise ConfigurationError for values of `training` that the `what` (optimizer, schedule) refuses."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(
            f"training: the {what} refuses these arguments: {reason(error)}; change them"
        ) from error


class _SeededLengths(LengthGroupedSampler):
    """Batches of similar lengths in an order that depends only on seed and epoch.

    The sampler of transformers draws from the global random state, so a resumed run would get another order.
    """

    def __init__(self, plain: LengthGroupedSampler, seed: int) -> None:
        super().__init__(plain.batch_size, lengths=plain.lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return iter(super().__iter__())


# Gathering a model that was trained in shards (FSDP2).


def skeleton(model: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory, for `filled`; make it before the model is sharded."""
    empty: dict[int, Any] = {}
    for values in model.parameters():
        empty[id(values)] = nn.Parameter(torch.empty_like(values, device="meta"), values.requires_grad)
    return copy.deepcopy(model, empty)


def filled(empty: nn.Module, trainer: Trainer) -> nn.Module:
    """The skeleton of a sharded model with the trained parameters and buffers, on the CPU of the first process.

    Called by all processes; in the others the skeleton stays empty.
    """
    state = trainer.accelerator.get_state_dict(trainer.model)
    if state:
        empty.load_state_dict(state, assign=True)
    return empty
