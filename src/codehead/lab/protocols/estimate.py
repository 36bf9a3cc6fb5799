"""What a run will about cost, told before it starts: operations, time on this machine, memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from codehead.config import ModelShape
from codehead.training.config import RunConfig
from codehead.training.model import default_device

EFFICIENCY = 0.35  # of the speed of one large matrix product, in a training step of a small model
FLOAT = 4  # bytes
ADAM = 3 * FLOAT  # gradient and two moments of every trained parameter
ACTIVATIONS = 16  # numbers kept per token, layer and hidden unit for the backward pass


@dataclass(frozen=True)
class Cost:
    """Of one training run, evaluation not included."""

    steps: int | None
    """Optimizer steps; None where they follow from the length of the data."""
    operations_per_step: float
    """Floating-point operations."""
    memory: int
    """Bytes."""

    def seconds(self, speed: float) -> float | None:
        """On a machine that multiplies matrices with `speed` operations per second."""
        return None if self.steps is None else self.steps * self.operations_per_step / (EFFICIENCY * speed)


def run_cost(run: RunConfig, architecture: Any) -> Cost:
    """Cost of training `run`, whose model has the transformers configuration `architecture`.

    Two operations per weight and token forwards and four backwards, two of these where the weights are frozen; what
    does not multiply weights (attention scores, norms, the optimizer) is left out of the time.
    """
    architecture = architecture.get_text_config()
    hidden, layers, vocabulary = architecture.hidden_size, architecture.num_hidden_layers, architecture.vocab_size
    everything, body, softmax = _parameters(architecture)
    shape = ModelShape(softmax // vocabulary, vocabulary)
    bits = 0 if run.decision is None else run.decision.length(vocabulary)
    head = softmax if run.decision is None else run.decision.size(shape).head_parameters
    is_wide = run.decision is None or run.decision.loss == "codeword"
    frozen = run.adapt in ("lora", "head")
    trained = head if frozen else everything - softmax + head
    batch = int(run.training.get("per_device_train_batch_size", 8)) * run.data.block_size  # tokens
    kept = ACTIVATIONS * layers * hidden + (2 * vocabulary if is_wide else 0)  # numbers per token
    scored = is_wide and bits < vocabulary  # the outputs of one_vs_all are the scores
    per_token = (4 if frozen else 6) * body + 6 * head + (6 * vocabulary * bits if scored else 0)
    steps = int(run.training.get("max_steps", 0))
    return Cost(
        steps=steps if steps > 0 else None,
        operations_per_step=per_token * batch * int(run.training.get("gradient_accumulation_steps", 1)),
        memory=FLOAT * (everything - softmax + head) + ADAM * trained + FLOAT * batch * kept,
    )


def machine_speed(training: Mapping[str, Any], size: int = 1024, repeats: int = 8) -> float:
    """Operations per second of a float32 matrix product where `training` will run, measured in about a second."""
    a = torch.ones(size, size, device="cpu" if training.get("use_cpu") else default_device())
    (a @ a).sum().item()
    start = time.perf_counter()
    for _ in range(repeats):
        product = a @ a
    product.sum().item()
    return 2 * size**3 * repeats / (time.perf_counter() - start)


def _parameters(architecture: Any) -> tuple[int, int, int]:
    """Parameters of the whole model, of its body without embeddings and head, and of the Softmax head."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(architecture)
    embeddings = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    head = model.get_output_embeddings().weight
    is_tied = head is model.get_input_embeddings().weight
    everything = sum(parameter.numel() for parameter in model.parameters()) + (head.numel() if is_tied else 0)
    return everything, everything - embeddings - head.numel(), head.numel()
