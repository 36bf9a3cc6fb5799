"""The runs of a protocol in their order, what each will cost, and which of them are done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codehead.config import ModelShape
from codehead.errors import ConfigurationError
from codehead.lab.baselines import BaselineConfig
from codehead.lab.bertscore import find_encoder
from codehead.lab.protocols.cells import is_trained
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.resolve import Cell, resolve
from codehead.lab.protocols.store import Context, Store, locate, prepared_sources
from codehead.lab.result import Result, canonical_json
from codehead.training.config import RunConfig
from codehead.training.model import default_device
from codehead.training.provenance import file_records
from codehead.training.sources import check_source


@dataclass(frozen=True)
class Step:
    """One run that a protocol needs."""

    key: str
    cost: Cost | None  # None: the model's configuration cannot be read from here
    is_done: bool
    trains: bool = True  # False: it compresses the head of another run

    def seconds(self, speed: float) -> float | None:
        """About how long its training takes on a machine of this speed; 0 if none is left, None if nobody can tell."""
        if self.is_done or not self.trains:
            return 0.0
        return None if self.cost is None else self.cost.seconds(speed)


def plan_steps(
    protocol: Protocol, out: Path, store: Store, only: Iterable[str], variables: Mapping[str, str]
) -> list[Step]:
    """Validate everything and list the runs: each backbone before the first cell that starts from it.

    Nothing is written, but an encoder of the hub is fetched. Raises the errors with which `run_protocol` would refuse.
    """
    context = locate(protocol, store, variables)
    cells = resolve(protocol, context, out, protocol.plan(only))
    check_runs(protocol, cells, context)
    backbones = {cell.backbone.name: cell for cell in reversed(cells) if cell.backbone is not None}  # their first cells
    steps: list[Step] = []
    for cell in cells:
        if cell.backbone is not None and backbones[cell.backbone.name] is cell:
            run = cell.backbone.run
            steps.append(Step(cell.backbone.key, _cost(run, cell), is_trained(run)))
        has_result, trains = is_finished(cell), cell.baseline is None
        if has_result and context.is_prepared:
            check_data(cell)
        is_done = has_result or (trains and is_trained(cell.run))  # another protocol may have trained it
        steps.append(Step(cell.key, _cost(cell.run, cell), is_done, trains))
    return steps


def _cost(run: RunConfig, cell: Cell) -> Cost | None:
    try:
        return run_cost(run, cell.architecture)
    except ConfigurationError:  # a hub that cannot be reached: the plan goes on without its cost
        return None


# What a run will about cost, told before it starts: operations, time on this machine, memory.


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


# What would stop a run, told before anything is written; and which results are there already.


INCIDENTAL = ("description",)  # keys of a result's configuration that its numbers do not depend on


def check_runs(protocol: Protocol, cells: Sequence[Cell], context: Context) -> None:
    """Look for the encoder and for every source that the cells and their backbones need.

    Nothing is written, but an encoder of the hub is fetched. Raises ConfigurationError, also for two cells that are
    the same run and would write into one folder, and DataError for a source that does not exist.
    """
    if protocol.answers is not None and protocol.answers.encoder is not None:  # what could not be scored in the end
        find_encoder(protocol.answers.encoder, protocol.answers.encoder_layers)
    runs = [cell.backbone.run for cell in cells if cell.backbone is not None] + [cell.run for cell in cells]
    needed = [*prepared_sources(protocol, context), *(source for run in runs for source in run.data.sources)]
    for source in dict.fromkeys(needed):
        if source not in context.data.values():  # those are made from the others
            check_source(source)
    _check_folders([cell for cell in cells if cell.baseline is None])
    for cell in {(cell.entry.setting, cell.name): cell for cell in cells}.values():
        if cell.baseline is not None and cell.baseline.convert is None:
            _check_baseline(cell.key, cell.baseline, _shape(cell))


def is_finished(cell: Cell) -> bool:
    """Whether the cell has a result; ConfigurationError if it is one of another configuration."""
    if not cell.result.is_file():
        return False
    found = Result.read(cell.result).config
    if canonical_json(_essential(found)) != canonical_json(_essential(cell.record)):
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured with another configuration of {cell.key!r}; remove it or choose "
            "another --out"
        )
    return True


def check_data(cell: Cell) -> None:
    """Refuse a result over other data, which its configuration, free of local paths, does not tell apart.

    The data must be prepared. Raises ConfigurationError.
    """
    provenance = Result.read(cell.result).provenance
    if provenance["data"] != file_records(cell.run.data.sources):
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured on other data: a file has changed since; remove it or choose another "
            "--out"
        )
    if provenance.get("files", []) != cell.of_code_files.get("files", []):
        raise ConfigurationError(
            f"{str(cell.result)!r} was measured with another code: a file that it is made of has changed since; remove "
            "it or choose another --out"
        )


def _shape(cell: Cell) -> ModelShape | None:
    """The shape of a cell's model; None if it cannot be looked at from here."""
    try:
        return ModelShape.of_config(cell.architecture)
    except ConfigurationError:  # a hub that cannot be reached: what is wrong is told when the model is loaded
        return None


def _check_baseline(key: str, baseline: BaselineConfig, shape: ModelShape | None) -> None:
    """Raise ConfigurationError, before anything is trained, if a head of a known shape cannot be so compressed."""
    if shape is None:
        return
    if baseline.bits is not None and shape.hidden_size % baseline.group:
        raise ConfigurationError(
            f"{key}: baseline.group is {baseline.group}, which does not divide the hidden size {shape.hidden_size}"
        )
    if baseline.keep is not None and baseline.keep > shape.num_classes:
        raise ConfigurationError(
            f"{key}: baseline.keep is {baseline.keep}, but the model has {shape.num_classes} tokens"
        )


def _check_folders(cells: Sequence[Cell]) -> None:
    owners: dict[str, str] = {}
    for cell in cells:
        owner = owners.setdefault(cell.run.output_dir, cell.key)
        if owner != cell.key:
            raise ConfigurationError(f"{owner!r} and {cell.key!r} are the same run; remove one of them")


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in INCIDENTAL}
