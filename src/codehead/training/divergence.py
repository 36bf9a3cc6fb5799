"""Stops a run whose loss is no longer a number, before it saves what cannot be used."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from codehead.errors import CodeheadError


class StopAtDivergence(TrainerCallback):
    """Raises CodeheadError when a logged training loss is NaN or infinite; needs logging_nan_inf_filter=False."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_divergence((logs or {}).get("loss", 0.0), state.global_step)


def refuse_divergence(loss: float, step: int, rate: str = "training.learning_rate") -> None:
    """Raise CodeheadError if a training loss is NaN or infinite; `rate` names the learning rate."""
    if not math.isfinite(loss):
        raise CodeheadError(
            f"the training loss is {loss} at step {step}: the run has diverged, or the model holds NaN. Lower "
            f"{rate}, train in bf16 or float32 rather than fp16, and start the run again with --overwrite"
        )
