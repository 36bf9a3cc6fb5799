"""Calibration: a scale per bit, or one for all, with which the codeword posterior is as confident as it is accurate.

Bits learnt one by one are decoded as if they were independent. Their errors are correlated, so their product is
overconfident, the more so the longer the code. Scales of the bit logits that minimise the negative log-likelihood of
held-out tokens correct most of that. One for all is temperature scaling (C. Guo et al. 2017,
https://arxiv.org/abs/1706.04599); one per bit also weights the bits by their reliability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.decoding import refuse_non_finite
from codehead.decoding.numerics import wide
from codehead.errors import ConfigurationError, DataError
from codehead.heads.feedforward import last_map, scale_outputs
from codehead.layer import Decision, DecisionLayer
from codehead.losses import CHUNK_SCORES, IGNORE
from codehead.models.hidden import at_labels
from codehead.models.stock import SOFT_CAP, soft_cap
from codehead.processes import ALONE, Processes

STORED = 2**29
"""The most outputs kept (2 GiB in float32): for one_vs_all too, a temperature needs fewer tokens than this allows."""
ITERATIONS = 30
EVALUATIONS = 40
"""L-BFGS limits, for the common scale and again for one per bit."""

Progress = Callable[[int, int], None]
"""Called with (work done, work in all)."""


@dataclass(frozen=True)
class Calibrated:
    """Scales of bit logits, and their effect on the tokens that they were fitted to."""

    scales: list[float]
    """One per bit, or a single one for all."""
    tokens: int
    perplexity_before: float
    perplexity_after: float


def calibrate(
    model: nn.Module,
    outputs: Tensor,
    labels: Tensor,
    *,
    per_bit: bool = True,
    progress: Progress = lambda done, total: None,
) -> Calibrated:
    """Fit scales to stored outputs of a head and fold them into it, in place.

    Args:
        model: a coded causal language model, or a `DecisionLayer`.
        outputs: the outputs of its head, `(…, n + K)`, on text that it was not trained on.
        labels: the tokens `(…)` to predict there; −100 is ignored.
        per_bit: a scale for every bit; otherwise one for all, a temperature.
        progress: called with (evaluations of the likelihood, the most there can be).

    Dense rows and biases per token are unchanged. With a binary code and neither of them, a temperature preserves the
    ranking of tokens, except for rounding.

    Raises:
        ConfigurationError: as `check_calibration`; the shapes do not fit; outputs are not finite.
        DataError: there is no label, or one is not a token.

    """
    check_calibration(model, per_bit)
    found = fit_scales(model.decision, outputs, labels, per_bit=per_bit, progress=progress)  # type: ignore[arg-type]
    fold_scales(model, found.scales)
    return found


def fold_scales(model: nn.Module, scales: list[float]) -> None:
    """Put scales into the head of a coded model, or of a `DecisionLayer`, in place."""
    scale_outputs(_head(model), torch.tensor(scales, dtype=torch.float64))


def check_calibration(model: nn.Module, per_bit: bool) -> None:
    """Raise ConfigurationError if scales cannot be fitted to this model, or folded into its head."""
    decision: Decision | None = getattr(model, "decision", None)
    if decision is None:
        raise ConfigurationError(
            f"this {type(model).__name__} has no decision layer to calibrate; attach one, or give a coded checkpoint"
        )
    last_map(_head(model))
    if not isinstance(model, DecisionLayer) and soft_cap(model) is not None:
        config: Any = model.config
        removable = getattr(config.get_text_config(), SOFT_CAP, None) is not None
        raise ConfigurationError(
            f"{type(model).__name__} soft-caps its logits at {soft_cap(model):g}: a temperature of the head, before "
            "the cap, is not one of the logits; omit calibration"
            + (", or take a code other than one_vs_all, under which there is no cap" if removable else "")
        )
    if decision.table.is_implicit and per_bit:
        raise ConfigurationError(
            f"the code one_vs_all has as many bits as tokens ({decision.table.length}): a scale for each would be "
            "fitted to noise; give per_bit: false, for one temperature"
        )
    if any(bool(values.any()) for values in (decision.decoder_weights or {}).values()):
        raise ConfigurationError(
            f"the decoder {decision.decoder_name!r} was fitted to bit logits that calibration is about to scale; "
            "calibrate first and call fit_decoder after it"
        )


def fit_scales(
    decision: Decision,
    outputs: Tensor,
    labels: Tensor,
    *,
    per_bit: bool = True,
    progress: Progress = lambda done, total: None,
) -> Calibrated:
    """The scales that `calibrate` folds in. No more than CHUNK_SCORES scores are formed at a time."""
    outputs, labels = _known(decision, outputs, labels)
    objective = _Objective(decision, outputs, labels, progress, 2 * EVALUATIONS if per_bit else EVALUATIONS)
    log_scales = _minimised(objective, torch.zeros(1, dtype=wide(outputs[:0]).dtype, device=outputs.device))
    before = objective.first
    if per_bit:
        log_scales = _minimised(objective, log_scales.expand(decision.table.length))
    return Calibrated(log_scales.exp().tolist(), len(labels), _perplexity(before), _perplexity(objective.least))


def text_outputs(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    tokens: int,
    progress: Progress = lambda done, total: None,
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor]:
    """The head outputs of a coded model at the first labelled positions of a text, and the labels there.

    Outputs `(tokens, n + K)` and labels `(tokens,)`, on the device of the model, or on the CPU if several `processes`
    share the forward passes; no more than STORED outputs. `progress` is called with (positions seen, positions
    wanted). DataError if no position is labelled.
    """
    limit = max(1, min(tokens, STORED // model.decision.num_outputs))
    return at_labels(model, batches, limit, model.head_outputs, progress, processes)


class _Objective:
    """The mean negative log-likelihood of labels, in nats, as a function of the logarithms of scales."""

    def __init__(self, decision: Decision, outputs: Tensor, labels: Tensor, progress: Progress, most: int) -> None:
        self.decision, self.outputs, self.labels = decision, outputs, labels
        self.progress, self.done, self.most = progress, 0, most
        self.first = self.least = math.inf
        self.best: Tensor | None = None

    def __call__(self, log_scales: Tensor) -> tuple[float, Tensor]:
        """The value at `(1,)` or `(n,)`, and its gradient."""
        rows, bits = max(1, CHUNK_SCORES // self.decision.table.num_classes), self.decision.table.length
        nats, gradient = 0.0, torch.zeros_like(log_scales)
        for some, wanted in zip(self.outputs.split(rows), self.labels.split(rows), strict=True):
            some = wide(some)
            scaled = torch.cat([some[:, :bits] * log_scales.exp(), some[:, bits:]], dim=-1)
            piece = F.cross_entropy(wide(self.decision.logits(scaled)), wanted, reduction="sum") / len(self.labels)
            gradient += torch.autograd.grad(piece, log_scales)[0]
            nats += float(piece.detach())
        self._note(nats, log_scales)
        return nats, gradient

    def _note(self, nats: float, log_scales: Tensor) -> None:
        """Keep the best point: a line search may end at a worse one."""
        if not self.done:
            self.first = nats
        if nats < self.least or self.best is None:
            self.least, self.best = nats, log_scales.detach().clone()
        self.done += 1
        self.progress(min(self.done, self.most), self.most)


def _minimised(objective: _Objective, start: Tensor) -> Tensor:
    """The logarithms of scales with the least negative log-likelihood that L-BFGS finds from `start`."""
    log_scales = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [log_scales], max_iter=ITERATIONS, max_eval=EVALUATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        nats, log_scales.grad = objective(log_scales)
        return nats

    optimizer.step(closure)
    assert objective.best is not None
    return objective.best.expand(len(start))


def _known(decision: Decision, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled positions: `(tokens, n + K)` and `(tokens,)`, checked."""
    if outputs.shape[:-1] != labels.shape or outputs.shape[-1] != decision.num_outputs:
        raise ConfigurationError(
            f"outputs of shape {tuple(outputs.shape)} and labels of shape {tuple(labels.shape)} do not fit: they must "
            f"be (…, {decision.num_outputs}) and (…), aligned"
        )
    plane, known = decision.table.sign_plane, labels != IGNORE
    device = outputs.device if plane is None else plane.device
    outputs, labels = outputs.detach()[known.to(outputs.device)].to(device), labels[known].to(device)
    classes = decision.table.num_classes
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        found = f"{int(labels.min())} … {int(labels.max())}" if len(labels) else "none"
        raise DataError(f"labels to calibrate on must be in 0 … {classes - 1}, found {found}")
    refuse_non_finite(outputs)
    return outputs, labels


def _head(model: Any) -> nn.Module:
    head: nn.Module = model.head if isinstance(model, DecisionLayer) else model.get_output_embeddings()
    return head


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
