"""Distillation of a decision layer from the Softmax head that it replaces: head, extras and code; then the backbone.

The code is learnt too: every symbol is the sign of a real number, and gradients reach that number as if the sign were
the identity (straight-through; Y. Bengio, N. Léonard, A. Courville 2013, https://arxiv.org/abs/1308.3432). At the end,
rows that have become equal are made distinct by changing the symbols nearest to a change of sign.

The backbone adapts to its new decision layer by LoRA on its attention, trained together with the head. The teacher is
the original model, backbone and head: switching the adapters off restores its backbone.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.boundaries import peft_warnings_hidden
from codehead.codes.codebook import PackedCodebook
from codehead.codes.packing import Floats, Integers, pack_bits
from codehead.codes.prototypes import make_distinct
from codehead.errors import ConfigurationError
from codehead.losses import CHUNK_SCORES, IGNORE
from codehead.models.hidden import labelled_states
from codehead.models.probe import LogitScaling, SoftmaxHead
from codehead.models.surgery import describe
from codehead.training.config import Distillation, LoraConfig
from codehead.training.likely_tokens import SIZES, LikelyTokens, Scores, divergence, imitate, imitate_some
from codehead.training.loop import ResumableLoop, Stages, StepProgress, refuse_divergence
from codehead.training.model import merge, with_lora

MARGIN = 1.0
"""Initial magnitude of the numbers behind the symbols; gradients pass while they are between −1 and +1."""
RATE = "distil.learning_rate or distil.code_learning_rate"
BACKBONE_RATE = "distil.backbone_learning_rate"
RELATIVE_RATE = 1e-2
"""The default learning rate, as a share of the root mean square of a row of weights."""
LARGE = 0.1
"""Rows of larger weights, and biases, learn as if this were their root mean square."""
TOLERANCE = 0.01
"""Nats (1% of perplexity) by which a head may end worse than it began."""
CHECKED = 2048
"""Positions at which this is checked."""
WARM_UP = 20
"""Warm-up steps, at most a twentieth of all: Adam's first steps move every number by the full rate, whatever its
gradient, and would lead far away from a good start."""
STEADY = 0.01
"""The most a tensor's weights move in a step, as a share of the median root mean square of its rows."""
GRADIENT_SCALE = 2.0**10
"""Scale of gradients in the backbone's backward pass, so that small ones survive float16 (P. Micikevicius et al. 2018,
https://arxiv.org/abs/1710.03740)."""
BETAS = (0.9, 0.99)
"""Adam's averages: shorter than usual, since there are only hundreds of steps."""

Batch = dict[str, Tensor]
"""input_ids, attention_mask and labels, `(batch, length)`."""


def distil(
    model: Any,
    teacher: Scores,
    hidden: Tensor,
    options: Distillation,
    progress: StepProgress = lambda done, steps, nats: None,
    stages: Stages | None = None,
    labels: Tensor | None = None,
    likely: LikelyTokens | None = None,
) -> None:
    """Fit the decision layer of a coded model to a teacher's distributions over tokens, in place.

    Minimises the Kullback-Leibler divergence of the codeword posterior from the teacher's softmax with Adam, at the
    positions whose hidden states `(tokens, hidden)` are given; rates rise over the first WARM_UP steps and fall to
    zero along a cosine. Given the `likely` tokens of the positions, a step compares the scores of only some tokens. No
    more than CHUNK_SCORES scores are formed at a time. With `stages`, it resumes where it was stopped. A non-zero
    `options.label_weight` is the weight of the cross entropy of the `labels` `(tokens,)` at the same positions: it
    corrects a teacher that is wrong or overconfident.

    Raises:
        ConfigurationError: the code is ternary, the bits form a chain, or labels are needed but not given.
        CodeheadError: it diverged; the model is unchanged.

    If it ends worse than it began by more than TOLERANCE, the model is left unchanged, with a warning.
    """
    decision = model.decision
    _check(decision, options, labels)
    units = row_sizes if options.learning_rate is None else lambda values: torch.ones_like(values[..., :1])
    student = _Student(model.get_output_embeddings(), decision, LogitScaling.of(model), units)
    aim = _Aim(student, teacher, hidden, labels if options.label_weight else None, options.label_weight, likely)
    rate = RELATIVE_RATE if options.learning_rate is None else options.learning_rate
    optimizer = torch.optim.Adam(
        [
            {"params": student.weights, "lr": rate},
            {"params": student.numbers, "lr": options.code_learning_rate},
        ],
        betas=BETAS,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share_of_rate, steps=options.steps))
    order = torch.Generator().manual_seed(options.seed)
    begun = aim.nats()
    loop = ResumableLoop(stages or Stages(), "distillation", optimizer, schedule, order, student.checksum())
    loop.run(options.steps, partial(aim.learn, options.batch_tokens, order), progress, RATE)
    ended = aim.nats()
    if ended <= begun + TOLERANCE:
        student.write_back(model, options.seed)
        return
    relative = f"{RELATIVE_RATE:g} of each row's size, at most {RELATIVE_RATE * LARGE:g}"
    told = relative if options.learning_rate is None else f"{options.learning_rate:.2g}"
    warnings.warn(
        f"distillation raised the divergence from {begun:.3g} to {ended:.3g} nats, so the new head was reset "
        f"to its start; give a smaller {RATE} (they were {told} and {options.code_learning_rate:.2g})",
        stacklevel=2,
    )


@dataclass(frozen=True)
class _Aim:
    """The objective: the divergence of a student from its teacher, mixed with the labels' cross entropy."""

    student: _Student
    teacher: Scores
    hidden: Tensor  # (tokens, hidden)
    labels: Tensor | None  # (tokens,); None: they have no weight
    label_weight: float
    likely: LikelyTokens | None

    @torch.enable_grad()
    def learn(self, count: int, generator: torch.Generator) -> float:
        """The mean over `count` positions drawn at random; adds its gradients."""
        chosen = torch.randint(len(self.hidden), (count,), generator=generator)
        given, known = self._at(chosen)
        if self.likely is not None and isinstance(self.teacher, SoftmaxHead):
            tokens = self.likely.draw(chosen, generator)
            return imitate_some(self.student.of_some, self.teacher, given, self.likely.log_sums[chosen], tokens)
        num_classes = self.student.table.num_classes
        return imitate(self.student.scores, given, self.teacher, given, known, self.label_weight, num_classes)

    def nats(self) -> float:
        """The mean over CHECKED evenly spaced positions, or all if there are fewer."""
        chosen = torch.linspace(0, len(self.hidden) - 1, min(CHECKED, len(self.hidden)), dtype=torch.float64).long()
        return sum(map(self._sum, chosen.split(max(1, CHUNK_SCORES // self.student.table.num_classes)))) / len(chosen)

    @torch.no_grad()
    def _sum(self, chosen: Tensor) -> float:
        given, known = self._at(chosen)
        return float(divergence(self.student.scores(given), self.teacher, given, known, self.label_weight))

    def _at(self, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states and labels, on the student's device."""
        device = self.student.weights[0].device
        known = None if self.labels is None else self.labels[chosen].to(device)
        return self.hidden[chosen].to(device, torch.float32), known


def _share_of_rate(step: int, steps: int) -> float:
    """The share of the learning rate that applies at a step."""
    warm_up = min(WARM_UP, steps // 20)
    return min(1.0, (step + 1) / (warm_up + 1)) * (1 + math.cos(math.pi * step / steps)) / 2


def row_sizes(values: Tensor) -> Tensor:
    """The root mean square of every row of weights `(…, rows, 1)`, at most LARGE; LARGE for vectors and zero rows."""
    if values.dim() < 2:
        return torch.full_like(values[..., :1], LARGE)
    sizes = values.square().mean(-1, keepdim=True).sqrt()
    return torch.where(sizes > 0, sizes, LARGE).clamp(max=LARGE)


def steady_rate(values: Tensor) -> float:
    """A rate at which training does not undo what a head's tensor has learnt: STEADY times its median row size.

    A single number is the scale of an int8 bias; its size is its magnitude.
    """
    values = values.detach().float()
    return STEADY * float((values.abs() if values.numel() == 1 else row_sizes(values)).median())


class _Student:
    """float32 copies of the trained tensors; the model is unchanged until the end.

    `weights` are learnt; multiplied by their `scales` they are the model's tensors. `units` gives the scales of a
    tensor. `row_sizes` puts rows in units of their size: a step of Adam moves all numbers about equally far, but some
    rows of a head are a hundred times larger than others. `numbers` holds the tensors whose signs are the code,
    `(V, n)` and, with extra bits, `(K, m)`; it is empty for one_vs_all, whose code cannot be learnt.
    """

    def __init__(
        self, head: nn.Module, decision: Any, scaling: LogitScaling, units: Callable[[Tensor], Tensor]
    ) -> None:
        self.head, self.scaling = head, scaling
        self.corrections, self.table = decision.corrections, decision.table
        modules = [module for module in (head, decision.corrections) if module is not None]
        self.owners = [(module, name) for module in modules for name, _ in module.named_parameters()]
        own = [owner.get_parameter(name).detach().float() for owner, name in self.owners]
        self.scales = [units(values) for values in own]
        self.weights = [(values / scale).requires_grad_() for values, scale in zip(own, self.scales, strict=True)]
        self.refinement = None if decision.corrections is None else decision.corrections.refinement
        tables = [] if self.table.is_implicit else [self.table]
        tables += [] if self.refinement is None else [self.refinement.table]
        self.numbers = [(MARGIN * table.signs()).clone().requires_grad_() for table in tables]

    def checksum(self) -> str:
        """The checksum of the code, by which a saved state is matched to it."""
        digest = hashlib.sha256()
        for numbers in self.numbers:
            digest.update(pack_bits((numbers.detach().cpu() >= 0).numpy()).tobytes())
        return digest.hexdigest()

    def scores(self, hidden: Tensor) -> Tensor:
        """Token scores `(tokens, V)` of hidden states `(tokens, hidden)`."""
        outputs = self.scaling(torch.func.functional_call(self.head, self._of(self.head), (hidden,)))
        if not self.numbers:
            return outputs
        signs, *further = [_Sign.apply(numbers) for numbers in self.numbers]
        scores = 0.5 * outputs[..., : self.table.length] @ signs.T
        if self.corrections is None:
            return scores
        arguments = (scores, outputs[..., self.table.length :], *further)
        corrected: Tensor = torch.func.functional_call(self.corrections, self._of(self.corrections), arguments)
        return corrected

    def of_some(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The scores `(tokens, K)` of only the tokens `ids` `(K,)`, ascending."""
        halves = self.scaling(torch.func.functional_call(self.head, self._of(self.head), (hidden,))) / 2
        bits, others = halves[:, : self.table.length], halves[:, self.table.length :]
        scores = (bits @ _Sign.apply(self.numbers[0].index_select(0, ids)).T).float()
        if self.corrections is None:
            return scores
        if self.refinement is not None:
            columns, rows = _shared(ids, self.refinement.ids())
            signs = _Sign.apply(self.numbers[1].index_select(0, rows))
            padded = F.pad(signs, (0, 0, 0, -len(signs) % SIZES))
            further = (others[:, : signs.shape[1]] @ padded.T)[:, : len(signs)]
            scores = scores.index_add(1, columns, further.float())
        columns, rows = _shared(ids, self.corrections.shortlist.long())
        dense = 2 * others[:, self.corrections.num_bits :].index_select(1, rows)
        scores = scores.index_add(1, columns, dense.float())
        bias = self._of(self.corrections).get("token_bias")
        return scores if bias is None else scores + bias.index_select(0, ids)

    def _of(self, module: nn.Module) -> dict[str, Tensor]:
        triples = zip(self.owners, self.weights, self.scales, strict=True)
        return {name: weight * scale for (owner, name), weight, scale in triples if owner is module}

    @torch.no_grad()
    def write_back(self, model: Any, seed: int) -> None:
        """Put the weights and the code, with distinct rows, into the model."""
        for (owner, name), weight, scale in zip(self.owners, self.weights, self.scales, strict=True):
            owner.get_parameter(name).copy_(weight * scale)
        if self.numbers:
            old = describe(model, "distil")
            codebook = _codebook(self.numbers[0].detach().cpu(), seed, old.design)
            model.decision.replace_codebook(codebook)
            model.config.quantization_config = old.of_another(codebook).to_dict()
        if self.refinement is not None:  # its rows may be equal: the codewords they extend are not
            self.refinement.set_plane(torch.from_numpy(pack_bits((self.numbers[1] >= 0).cpu().numpy())))
            model.decision.reseal()


def _shared(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The positions in `ids` `(K,)`, ascending, and in `others` of the ids they share."""
    places = torch.searchsorted(ids, others).clamp(max=len(ids) - 1)
    rows = (ids[places] == others).nonzero().flatten()
    return places[rows], rows


def _codebook(latent: Tensor, seed: int, start: str) -> PackedCodebook:
    """The signs of numbers `(V, n)`; a number's magnitude is the certainty of its symbol."""

    def margins(ids: Integers) -> Floats:
        return latent[torch.as_tensor(ids)].abs().double().numpy()

    length = latent.shape[1]
    plane, collisions = make_distinct(pack_bits((latent >= 0).numpy()), length, margins)
    params = {"start": start, "collisions": collisions}
    return PackedCodebook(length=length, design="learned", seed=seed, params=params, sign_plane=plane)


class _Sign(torch.autograd.Function):
    """+1 or −1; its gradient is that of the identity for numbers between −1 and +1, otherwise zero."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        ctx.save_for_backward(numbers)
        return torch.where(numbers >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (numbers,) = ctx.saved_tensors
        return gradient * (numbers.abs() <= 1)


def _check(decision: Any, options: Distillation, labels: Tensor | None) -> None:
    if options.label_weight and labels is None:
        raise ConfigurationError(f"distil.label_weight is {options.label_weight}, but there are no labels; give them")
    if decision.table.is_ternary or getattr(decision, "chain", None) is not None:
        raise ConfigurationError(
            "distil learns a binary code of independent bits; choose such a code (additive, minrandom, …) and a head "
            "without a chain"
        )


def learn_together(
    model: Any,
    teacher: Scores,
    draw: Callable[[torch.Generator], Batch],
    options: Distillation,
    lora: LoraConfig,
    progress: Callable[[int, int], None] = lambda done, steps: None,
    stages: Stages | None = None,
) -> None:
    """Train LoRA on a coded model's backbone, and its decision layer except the code, `options.backbone_steps` steps.

    Minimises the objective of `distil` over batches from `draw`: the divergence from the old model, whose head is the
    `teacher`, mixed with the labels' cross entropy by `options.label_weight`. At the end the adapters are merged into
    the backbone, in place. With `stages`, it resumes where it was stopped. A one_vs_all head computes all V outputs of
    a batch at once.
    """
    dtype, device = next(model.parameters()).dtype, next(model.parameters()).device
    model.eval()
    learnable = {name for name, values in model.named_parameters() if values.requires_grad}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), peft_warnings_hidden():
        torch.manual_seed(options.seed)
        adapted: Any = with_lora(model, lora)
    learnt = [values for values in adapted.parameters() if values.requires_grad]
    for values in learnt:
        values.data = values.data.float()  # bf16 rounds small steps away
    optimizer = torch.optim.Adam(_groups(adapted, options))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.backbone_steps)
    order = torch.Generator().manual_seed(options.seed)
    loop = ResumableLoop(stages or Stages(), "trunk", optimizer, schedule, order)

    def learn() -> float:
        batch = {name: values.to(device) for name, values in draw(order).items()}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):  # the adapters are in float32
            return _gradients(adapted, model, teacher, batch, options.label_weight)

    with torch.enable_grad():
        loop.run(options.backbone_steps, learn, lambda done, steps, nats: progress(done, steps), BACKBONE_RATE)
        refuse_divergence(learn(), loop.done, BACKBONE_RATE)  # the last step has no other check
    for values in learnt:
        values.data = values.data.to(dtype)
    merge(adapted)
    for name, values in model.named_parameters():
        values.requires_grad_(name in learnable)


def _groups(adapted: Any, options: Distillation) -> list[dict[str, Any]]:
    """Parameter groups: the adapters, and the decision layer at its own rate or `steady_rate`, capped at theirs."""
    found = [(name, values) for name, values in adapted.named_parameters() if values.requires_grad]
    groups = [{"params": [values for name, values in found if "lora_" in name], "lr": options.backbone_learning_rate}]
    for values in (values for name, values in found if "lora_" not in name):
        own = steady_rate(values) if options.learning_rate is None else options.learning_rate
        groups.append({"params": [values], "lr": min(own, options.backbone_learning_rate)})
    return groups


def _gradients(adapted: Any, model: Any, teacher: Scores, batch: Batch, label_weight: float) -> float:
    """Add gradients of the mean loss over a batch's labelled positions, if any; returns the loss in nats."""
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
    own = {id(values) for values in model.decision.parameters()}  # whose gradients are not scaled
    for values in adapted.parameters():
        if values.grad is not None and id(values) not in own:
            values.grad /= GRADIENT_SCALE
    return nats
