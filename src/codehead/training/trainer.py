"""The Trainer of transformers, with an evaluation that stays as narrow as the training."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from codehead.models import is_coded


class NarrowTrainer(Trainer):
    """Asks a coded model for its evaluation loss alone: no `(batch, length, V)` logits are formed."""

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        plain = self.accelerator.unwrap_model(model)
        plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        if prediction_loss_only and is_coded(plain):
            inputs = {**inputs, "output_token_logits": False}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
