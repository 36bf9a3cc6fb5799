"""Probes a model by a forward pass of a few tokens, with known numbers in place of the head's outputs.

This shows what the model does to the outputs of its head: most do nothing, some multiply them, some soft-cap them. And
it shows whether this is a causal language model: it only looks back, and its loss shifts labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.models.stock import replace_head, soft_cap

LENGTH = 4
"""Tokens per sequence."""


class Probe(nn.Module):
    """Replaces the output embedding: keeps its input, and answers every position with the same numbers.

    They are float32, so that a factor is not rounded. The weight is empty, but has the dtype of the output embedding's,
    which some models (Mamba) read.
    """

    seen: Tensor

    def __init__(self, answer: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return self.answer.to(hidden.device).expand(*hidden.shape[:-1], -1).clone()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def probe(model: Any, answer: Tensor, **inputs: Tensor) -> tuple[Any, Tensor]:
    """The outputs of a model, stock or coded, whose head answers every position with `answer` `(width,)`.

    Also the head's inputs, `(2, LENGTH, hidden)`, for two sequences that differ from the second token on.
    ConfigurationError if the model cannot be run on them.
    """
    stand_in = Probe(answer, next(model.get_output_embeddings().parameters()).dtype)
    forward: Callable[..., Any] = getattr(model, "_stock_outputs", model._call_impl)  # no compiled graph of it
    inputs["input_ids"] = _sequences(model)
    inputs = {name: values.to(next(model.parameters()).device) for name, values in inputs.items()}
    try:
        with replaced(model, stand_in), evaluating(model):
            outputs = forward(**inputs, use_cache=False, return_dict=True)
    except Exception as error:
        raise ConfigurationError(
            f"{type(model).__name__} cannot be run on {LENGTH} tokens with {len(answer)} outputs of its head "
            f"({type(error).__name__}: {error}); use a causal language model that runs on input_ids alone and takes "
            "any number of outputs from its head (as many as before, if code='one_vs_all')"
        ) from error
    return outputs, stand_in.seen


@contextmanager
def replaced(model: Any, stand_in: nn.Module) -> Iterator[None]:
    """A model with another module in place of its output embedding; if screened, in this thread alone."""
    head = model.get_output_embeddings()
    if hasattr(head, "replaced_by"):
        with head.replaced_by(stand_in):
            yield
        return
    replace_head(model, stand_in)
    try:
        yield
    finally:
        replace_head(model, head)


def _sequences(model: Any) -> Tensor:
    """Two sequences of tokens that start with the same one, `(2, LENGTH)`, without special tokens if possible."""
    num_tokens = model.get_input_embeddings().weight.shape[0]
    special = set(_special(model.config.to_dict()))
    usual = [token for token in range(min(num_tokens, len(special) + 3)) if token not in special]
    first, second, third = [*usual, *range(num_tokens), *usual, 0, 0][:3]
    rows = [[first] + [other] * (LENGTH - 1) for other in (second, third)]
    return torch.tensor(rows)


def _special(config: dict[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif isinstance(value, int) and name.endswith(("_id", "_index")):
            yield value


ROUNDING = 1e-4
"""A factor this near to 1 counts as 1: a soft cap was inverted to find it."""
CLOSE = 1e-2
"""The tolerance for expected outputs: some models round them to a low precision."""


@dataclass(frozen=True)
class LogitScaling:
    """`cap · tanh(scale · outputs / cap)`; without a cap, `scale · outputs`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        scaled = outputs if self.scale == 1 else self.scale * outputs
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    @classmethod
    def of(cls, model: Any, width: int = 1) -> LogitScaling:
        """The scaling of a model, stock or coded, whose head has `width` outputs, from a forward pass of a few tokens.

        Granite divides, Cohere multiplies, and configuration names mean one or the other; so it is measured.
        ConfigurationError on the meta device, or if the model changes the outputs in any other way.
        """
        if next(model.parameters()).is_meta:
            raise ConfigurationError(
                f"a forward pass must show how {type(model).__name__} scales its logits, but its weights are on the "
                "meta device; load them first"
            )
        answer = torch.linspace(1, -1, width, dtype=torch.float32)
        outputs, _ = probe(model, answer)
        found, cap = outputs.logits.float().cpu(), soft_cap(model)
        first = float(found.flatten()[0])
        scale = first if cap is None or abs(first) >= cap else cap * math.atanh(first / cap)
        scaling = cls(1.0 if math.isclose(scale, 1, rel_tol=ROUNDING) else scale, cap)
        expected = scaling(answer).expand(*found.shape[:-1], -1)
        if found.shape != expected.shape or not torch.allclose(found, expected, CLOSE, CLOSE * abs(first)):
            raise ConfigurationError(
                f"{type(model).__name__} changes the outputs of its head, and not all in proportion (it masks tokens "
                "or adds to them): that would change bit logits, and the ranking of a screen's candidates; attach "
                "with code='one_vs_all', or use another architecture"
            )
        return scaling


@dataclass(frozen=True)
class SoftmaxHead:
    """A stock model's map from hidden states `(…, hidden)` to logits `(…, V)`, in float32.

    It uses the module `head` itself, not a copy, and scales or caps as the model does.
    """

    head: nn.Linear
    scaling: LogitScaling

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.scaling(self.head(hidden.to(self.head.weight)).float())

    def of_some(self, hidden: Tensor, ids: Tensor | slice) -> Tensor:
        """The logits `(…, tokens)` of only the tokens `ids` `(tokens,)`, or of a slice of all."""
        bias = None if self.head.bias is None else self.head.bias[ids]
        return self.scaling(F.linear(hidden.to(self.head.weight), self.head.weight[ids], bias).float())


def softmax_head(model: Any) -> SoftmaxHead:
    """The head that a stock model has now."""
    return SoftmaxHead(model.get_output_embeddings(), LogitScaling.of(model))


REMEDY = (
    "use a causal language model, such as GPT-2 or Llama (of the BERT family, a class for causal language models built "
    "with is_decoder=True)"
)
TOLERANCE = 16
"""How far hidden states that should be equal may differ, in rounding errors of the largest."""
SPREAD = 8.0
"""The logits for probing the loss lie between minus this and this."""


def refuse_non_causal(model: Any) -> None:
    """Raise a ConfigurationError unless a stock model is a causal language model.

    A forward pass of a few tokens shows it: an earlier hidden state must not depend on a later token, and the model's
    own loss must be that of the next token. On the meta device no model runs: there only the class is checked.
    """
    refuse_other_classes(model)
    if next(model.parameters()).is_meta:
        return
    name, width = type(model).__name__, model.get_output_embeddings().weight.shape[0]
    labels = torch.tensor([[0] + [width - 1] * (LENGTH - 1)] * 2)
    outputs, hidden = probe(model, torch.linspace(-SPREAD, SPREAD, width, dtype=torch.float32), labels=labels)
    if _looks_ahead(hidden):
        raise ConfigurationError(
            f"{name} looks at later tokens: the hidden state of a token changes with those after it, so it is not a "
            f"causal language model; {REMEDY}"
        )
    if not _shifts_labels(outputs, labels):
        raise ConfigurationError(
            f"the loss of {name} is not that of the next token: its class does not shift labels, as a causal language "
            f"model does; {REMEDY}"
        )


def refuse_other_classes(model: Any) -> None:
    """Raise a ConfigurationError for an encoder-decoder, an encoder, or a class that does not generate text."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigurationError(f"{name} is an encoder-decoder, not a causal language model; {REMEDY}")
    if not model.can_generate():
        raise ConfigurationError(f"{name} is not a class that generates text, as causal language models do; {REMEDY}")
    if _is_encoder(model):
        raise ConfigurationError(f"{name} is an encoder here: is_decoder is False in its configuration; {REMEDY}")


def _is_encoder(model: Any) -> bool:
    """Whether a model could be a decoder (BERT) but is not built as one; works in low precision and without weights."""
    causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return getattr(model.config, "is_decoder", None) is False and bool(causal) and not any(causal)


def _looks_ahead(hidden: Tensor) -> bool:
    """Whether the hidden states `(2, LENGTH, hidden)` of the same first token differ."""
    one, other = hidden[:, 0].float()
    return bool((one - other).abs().max() > TOLERANCE * torch.finfo(hidden.dtype).eps * one.abs().max())


def _shifts_labels(outputs: Any, labels: Tensor) -> bool:
    """Whether the loss is nearer to the cross entropy of the next token than to that of the current one."""
    loss = getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor):
        return False
    logits, labels = outputs.logits.float().transpose(1, 2), labels.to(outputs.logits.device)
    aligned, shifted = F.cross_entropy(logits, labels), F.cross_entropy(logits[..., :-1], labels[:, 1:])
    return bool((loss - shifted).abs() <= (loss - aligned).abs())
