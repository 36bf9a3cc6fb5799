"""What TRL's trainers ask of a model: log-probability, entropy and more of every label, never logits.

TRL replaces the forward of a model by one that multiplies hidden states with `lm_head.weight` in pieces. A coded model
keeps its own forward, notes the request, and answers `model(..., labels=..., fused_lm_head=True)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from codehead.errors import ConfigurationError
from codehead.layer import Decision
from codehead.losses import CHUNK_SCORES, IGNORE

ANSWERING = ("sft", "dpo", "kto", "grpo", "rloo")
"""The tags of the trainers that train only on the answers to `fused_lm_head=True`."""


@dataclass
class PerTokenOutput(ModelOutput):
    """Values per token `(batch, length − 1)`, or `(batch, length)` for shifted labels; 0 where a label is −100.

    Fields that were not requested are None.
    """

    loss: Tensor | None = None
    """Scalar: the loss of the decision layer, without that of a router."""
    log_probs: Tensor | None = None
    """The label's; with the bitwise loss, that loss negated (`NegatedLosses`)."""
    entropy: Tensor | None = None
    """Entropy of the distribution of the next token, in nats."""
    log_sum_sq_probs: Tensor | None = None
    """log Σ p², without gradient."""
    mean_logits: Tensor | None = None
    """The mean score over the vocabulary, without gradient."""
    is_top1: Tensor | None = None
    """Whether the label is the most probable token."""
    label_mask: Tensor | None = None
    """Whether there is a label."""
    aux_loss: Tensor | None = None
    """The load balancing loss of a mixture of experts."""


@dataclass(frozen=True)
class Request:
    """The values of the next token's distribution that a trainer asks for."""

    fields: tuple[str, ...] = ("log_probs",)
    temperature: float = 1.0
    """Scores are divided by it."""

    @classmethod
    def of(cls, forward: Any) -> Request | None:
        """The request of a forward that TRL is about to set; None for any other, ConfigurationError if refused."""
        function = getattr(forward, "__func__", forward)
        if not str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("trl."):
            return None
        asked = inspect.getclosurevars(function).nonlocals
        if not {"outputs", "temperature"} <= asked.keys() or not set(asked["outputs"]) <= set(MEASURES):
            return None
        if asked.get("cast_lm_head_to_fp32"):
            raise ConfigurationError(
                "cast_lm_head_to_fp32=True replaces the head of a coded model by one matrix product; omit it: token "
                "scores are computed in float32 anyway"
            )
        return cls(tuple(asked["outputs"]), asked["temperature"])


class NegatedLosses(Tensor):
    """The bitwise loss of every token, negated, where TRL expects log-probabilities, which it is not.

    It can be negated again, as in the loss of `SFTTrainer`; any other use raises a ConfigurationError.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name not in ("neg", "__get__", "register_hook", "clone", "detach", "__repr__"):
            raise ConfigurationError(
                f"{name} of log-probabilities, as in DPO, GRPO or SFTConfig(loss_type='dft'), but this model has the "
                "bitwise loss: it trains bits, not the probability of tokens. Set "
                "model.decision.loss_name = 'codeword', or attach with loss='codeword'"
            )
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found.as_subclass(Tensor) if name == "neg" else found


def per_token(decision: Decision, outputs: Tensor, labels: Tensor, request: Request) -> dict[str, Tensor]:
    """The requested values of labels `(batch, length)` aligned with the outputs of a head `(batch, length, ·)`.

    Token scores `(tokens, V)` are formed CHUNK_SCORES at a time, and none for a bitwise loss and its gradient.
    """
    known = labels != IGNORE
    own, wanted, is_bitwise = outputs[known], labels[known], decision.loss_name == "bitwise"
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_bitwise):
        found = _in_pieces(decision, own, wanted, request)
    if is_bitwise:
        found["log_probs"] = -decision.token_losses(own, wanted)
    whole = {name: values.new_zeros(known.shape).masked_scatter(known, values) for name, values in found.items()}
    if is_bitwise:
        whole["log_probs"] = whole["log_probs"].as_subclass(NegatedLosses)
    return whole


def _in_pieces(decision: Decision, own: Tensor, labels: Tensor, request: Request) -> dict[str, Tensor]:
    """The requested values, each `(tokens,)`; if there are several pieces, they are recomputed for the gradient."""
    rows = max(1, CHUNK_SCORES // decision.table.num_classes)
    pieces = list(zip(own.split(rows), labels.split(rows), strict=True))
    measure: Callable[..., tuple[Tensor, ...]] = partial(_measured, decision, request)
    if len(pieces) > 1 and torch.is_grad_enabled():
        measure = partial(checkpoint, measure, use_reentrant=False, preserve_rng_state=False)
    columns = zip(*(measure(*piece) for piece in pieces), strict=True)
    return {name: torch.cat(parts) for name, parts in zip(request.fields, columns, strict=True)}


def _measured(decision: Decision, request: Request, own: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    scores = decision.logits(own).float() / request.temperature
    log_probs = scores.log_softmax(-1)
    return tuple(MEASURES[name](scores, log_probs, labels) for name in request.fields)


MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "log_probs": lambda scores, logs, labels: logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
    "entropy": lambda scores, logs, labels: -(logs.exp() * logs).sum(-1),
    "log_sum_sq_probs": lambda scores, logs, labels: (2 * logs.detach()).logsumexp(-1),
    "mean_logits": lambda scores, logs, labels: scores.detach().mean(-1),
    "is_top1": lambda scores, logs, labels: scores.argmax(-1) == labels,
}
"""(scores `(tokens, V)`, their log-softmax, labels `(tokens,)`) → `(tokens,)`."""


def refuse_trainer(tags: Iterable[str] | str, caller: FrameType, is_coded: Callable[[Any], bool]) -> None:
    """Raise a ConfigurationError if the trainer that tags a coded model would train on something else.

    A TRL trainer is visible to a model in no other way. `caller` is its constructor, which holds the reference model,
    loaded by TRL from the checkpoint that the policy came from, coded or not.
    """
    names = {tags} if isinstance(tags, str) else set(tags)
    if "trl" not in names:
        return
    if not names & set(ANSWERING):
        raise ConfigurationError(
            f"a TRL trainer tagged {', '.join(sorted(names - {'trl'}))} does not ask a coded model for "
            "log-probabilities; it may multiply by lm_head.weight as if that were a Softmax head. Those that ask: "
            f"{', '.join(ANSWERING)}; or train with transformers.Trainer or `codehead finetune`"
        )
    trainer = caller.f_locals.get("self")
    reference = getattr(trainer, "ref_model", None)
    if reference is not None and caller.f_locals.get("ref_model") is None and not is_coded(reference):
        raise ConfigurationError(
            f"{type(trainer).__name__} loaded a stock model as the reference of a coded one: it reads the checkpoint "
            "from before the model was coded. Save the coded model and load it again, or give ref_model="
            "copy.deepcopy(model)"
        )
