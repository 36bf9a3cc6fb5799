"""The Trainer of transformers: evaluation as narrow as the training, every data order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from codehead.boundaries import reason
from codehead.errors import ConfigurationError
from codehead.models import is_coded
from codehead.training.rates import give_own_rates


class NarrowTrainer(Trainer):
    """Asks a coded model for its evaluation loss alone: no `(batch, length, V)` logits are formed.

    `own_rates` are learning rates of parameters, by name, that do not learn at the rate of the others.
    """

    def __init__(self, *args: Any, own_rates: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_rates = own_rates

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in transformers, with the own rates."""
        fresh = self.optimizer is None
        with _refusing("optimizer"):
            optimizer = super().create_optimizer(model)
        if fresh and self.own_rates:
            give_own_rates(optimizer, self.model if model is None else model, self.own_rates)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what it refuses is told."""
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

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        return _SeededLengths(sampler, self.args.seed) if isinstance(sampler, LengthGroupedSampler) else sampler


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """ConfigurationError for values of `training` that the makers of a `what` refuse."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(
            f"training: the {what} refuses these arguments: {reason(error)}; change them"
        ) from error


class _SeededLengths(LengthGroupedSampler):
    """Batches of like lengths in an order that depends on seed and epoch alone.

    The sampler of transformers draws from the global random state, so that a resumed run gets another order.
    """

    def __init__(self, plain: LengthGroupedSampler, seed: int) -> None:
        self.batch_size, self.lengths = plain.batch_size, plain.lengths
        self.seed, self.epoch = seed, 0
        self.generator: Any = None

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(super().__iter__())
