"""Whether a model is a causal language model, by what it does: it looks back only, and its loss shifts labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.models.probe import LENGTH, probe

REMEDY = (
    "use a causal language model, such as GPT-2 or Llama (of the BERT family, a class for causal language models built "
    "with is_decoder=True)"
)
TOLERANCE = 16
"""How far hidden states may be apart that should be the same, in rounding errors of the largest."""
SPREAD = 8.0
"""The logits with which the loss is looked at lie between this and its negative."""


def refuse_non_causal(model: Any) -> None:
    """Raise a ConfigurationError unless a stock model is a causal language model.

    Told by a forward pass of a few tokens: an earlier hidden state must not depend on a later token, and the model's
    own loss must be that of the next token. On the meta device no model runs: there it is told by its class alone.
    """
    refuse_other_classes(model)
    if next(model.parameters()).is_meta:
        return
    name, width = type(model).__name__, model.get_output_embeddings().weight.shape[0]
    labels = torch.tensor([[0] + [width - 1] * (LENGTH - 1)] * 2)
    outputs, hidden = probe(model, torch.linspace(-SPREAD, SPREAD, width), labels=labels)
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
    """Whether a model could be a decoder (BERT) but is not built as one: told in low precision and without weights."""
    causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return getattr(model.config, "is_decoder", None) is False and bool(causal) and not any(causal)


def _looks_ahead(hidden: Tensor) -> bool:
    """Whether hidden states `(2, LENGTH, hidden)` of the same first token are different."""
    one, other = hidden[:, 0].float()
    return bool((one - other).abs().max() > TOLERANCE * torch.finfo(hidden.dtype).eps * one.abs().max())


def _shifts_labels(outputs: Any, labels: Tensor) -> bool:
    """Whether the loss is nearer to the cross entropy of the next token than to that of the own one."""
    loss = getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor):
        return False
    logits, labels = outputs.logits.float().transpose(1, 2), labels.to(outputs.logits.device)
    aligned, shifted = F.cross_entropy(logits, labels), F.cross_entropy(logits[..., :-1], labels[:, 1:])
    return bool((loss - shifted).abs() <= (loss - aligned).abs())
