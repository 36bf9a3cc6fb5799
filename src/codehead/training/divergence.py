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
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise CodeheadError(
                f"the training loss is {loss} at step {state.global_step}: the run has diverged, or the model holds "
                "NaN. Lower training.learning_rate, train in bf16 or float32 rather than fp16, and start again with "
                "--overwrite"
            )
