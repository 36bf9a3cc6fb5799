"""The backbone learns to serve a new decision layer: LoRA on its attention, together with the head, from the old model.

The teacher is the model as it was, backbone and head: it is there as long as the adapters can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from codehead.boundaries import peft_warnings_hidden
from codehead.losses import IGNORE
from codehead.models.hidden import labelled_states
from codehead.training.adapt import merge, with_lora
from codehead.training.config import Distillation, LoraConfig
from codehead.training.likely_tokens import Scores, imitate
from codehead.training.loop import ResumableLoop, Stages, refuse_divergence
from codehead.training.trainer import steady_rate

GRADIENT_SCALE = 2.0**10
"""Of gradients on their way through the model, so that in float16 small ones are not lost (P. Micikevicius et al. 2018,
https://arxiv.org/abs/1710.03740)."""
Batch = dict[str, Tensor]
"""input_ids, attention_mask and labels, `(batch, length)`."""


def learn_together(
    model: Any,
    teacher: Scores,
    draw: Callable[[torch.Generator], Batch],
    options: Distillation,
    lora: LoraConfig,
    progress: Callable[[int, int], None] = lambda done, steps: None,
    stages: Stages | None = None,
) -> None:
    """Train LoRA on the backbone of a coded model, and its decision layer but the code: `options.backbone_steps` steps.

    Minimises what `distil` does, over the batches that `draw` gives: the divergence from the old model, whose head is
    the `teacher`, mixed with the labels' cross entropy by `options.label_weight`. In the end the adapters are folded
    into the backbone, in place. With `stages`, it goes on where it was stopped. A head of one_vs_all gives all V
    outputs of a batch at once.
    """
    dtype, device = next(model.parameters()).dtype, next(model.parameters()).device
    model.eval()
    learnable = {name for name, values in model.named_parameters() if values.requires_grad}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), peft_warnings_hidden():
        torch.manual_seed(options.seed)
        adapted: Any = with_lora(model, lora)
    learnt = [values for values in adapted.parameters() if values.requires_grad]
    _cast(learnt, torch.float32)  # bf16 rounds small steps away
    optimizer = torch.optim.Adam(_groups(adapted, options))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.backbone_steps)
    order = torch.Generator().manual_seed(options.seed)
    loop = ResumableLoop(stages or Stages(), "trunk", optimizer, schedule, order)

    def learn() -> None:
        """Gradients over a batch; CodeheadError if it has diverged."""
        batch = {name: values.to(device) for name, values in draw(order).items()}
        optimizer.zero_grad()
        with _mixed(device, dtype):
            nats = _gradients(adapted, model, teacher, batch, options.label_weight)
        refuse_divergence(nats, loop.done, "distil.backbone_learning_rate")

    with torch.enable_grad(), loop.saved_at_the_end():
        while loop.done < options.backbone_steps:
            learn()
            loop.step()
            progress(loop.done, options.backbone_steps)
        learn()  # the last step may be the one that ruined it
    _cast(learnt, dtype)
    merge(adapted)
    for name, values in model.named_parameters():
        values.requires_grad_(name in learnable)


def _groups(adapted: Any, options: Distillation) -> list[dict[str, Any]]:
    """What is learnt: adapters, and the decision layer at no more than its own rate, or what keeps what it knows."""
    found = [(name, values) for name, values in adapted.named_parameters() if values.requires_grad]
    backbone = [values for name, values in found if "lora_" in name]
    head = [values for name, values in found if "lora_" not in name]
    learning_at = [{"params": [values], "lr": _head_rate(values, options)} for values in head]
    return [{"params": backbone, "lr": options.backbone_learning_rate}, *learning_at]


def _head_rate(values: Tensor, options: Distillation) -> float:
    own = steady_rate(values) if options.learning_rate is None else options.learning_rate
    return min(own, options.backbone_learning_rate)


def _gradients(adapted: Any, model: Any, teacher: Scores, batch: Batch, label_weight: float) -> float:
    """Those of the loss over the labelled positions of a batch, none if there are none; returns it in nats."""
    labelled = batch["labels"][:, 1:] != IGNORE
    if not bool(labelled.any()):
        return 0.0
    with adapted.disable_adapter():
        hidden, labels = (part.to(labelled.device) for part in labelled_states(model, [batch], labelled.numel()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    outputs = model.head_outputs(**inputs, use_cache=False)[:, :-1][labelled]
    given = outputs.detach().float().requires_grad_()
    wanted, num_classes = labels if label_weight else None, model.decision.table.num_classes
    nats = imitate(model.decision.logits, given, teacher, hidden, wanted, label_weight, num_classes)
    assert given.grad is not None
    outputs.backward((GRADIENT_SCALE * given.grad).to(outputs.dtype))
    own = {id(values) for values in model.decision.parameters()}  # which have theirs already
    for values in adapted.parameters():
        if values.grad is not None and id(values) not in own:
            values.grad /= GRADIENT_SCALE
    return nats


def _cast(parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
    for values in parameters:
        values.data = values.data.to(dtype)


def _mixed(device: torch.device, dtype: torch.dtype) -> Any:
    """Automatic mixed precision for a model of low precision, whose adapters are in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
