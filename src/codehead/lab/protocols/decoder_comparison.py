"""One coded model under several decoders: the same outputs of its head, ranked in different ways."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder, Weights, decode, fit
from codehead.errors import ConfigurationError
from codehead.evaluation.metrics import SCORE_BYTES, TOP
from codehead.models import is_coded
from codehead.models.calibration import text_outputs
from codehead.training.data import Collator

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Outputs = tuple[Tensor, Tensor]
"""Bit logits `(tokens, n)` and labels `(tokens,)`."""


@torch.no_grad()
def compare_decoders(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset | Sequence[dict[str, Any]],
    held_out: Dataset | Sequence[dict[str, Any]],
    decoders: Sequence[str],
    *,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """`top1` and `top5` of a coded model on `examples` under every decoder; those that learn are fitted on `held_out`.

    Raises ConfigurationError if the model has a Softmax head, or outputs that are not bit logits alone (a shortlist, a
    bias per token, a chain): those can be read in one way only.
    """
    if not is_coded(model) or model.decision.reading.decoders:
        raise ConfigurationError("only heads whose outputs are bit logits alone can be decoded in several ways")
    table = model.decision.table
    outputs = partial(_outputs, model, tokenizer, batch_size=batch_size)
    tested = outputs(examples)
    is_fitted = {name: isinstance(DECODERS.get(name), FittedDecoder) for name in decoders}
    fitted_on = outputs(held_out) if any(is_fitted.values()) else None
    found = {}
    for name in decoders:
        weights = fit(name, *fitted_on, table) if is_fitted[name] and fitted_on is not None else None
        found[name] = _hits(*tested, table, name, weights)
    return found


def _outputs(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Any, batch_size: int) -> Outputs:
    """What the head gives at every labelled position."""
    collate = Collator(tokenizer.pad_token_id)
    starts = range(0, len(examples), batch_size)
    batches = (collate([examples[i] for i in range(s, min(s + batch_size, len(examples)))]) for s in starts)
    return text_outputs(model, batches, sum(len(example["input_ids"]) for example in examples))


def _hits(
    bit_logits: Tensor, labels: Tensor, table: CodewordTable, decoder: str, weights: Weights | None
) -> dict[str, float]:
    rows = max(1, SCORE_BYTES // (4 * table.num_classes))
    first, top = 0, 0
    for some, wanted in zip(bit_logits.split(rows), labels.split(rows), strict=True):
        k = min(TOP, table.num_classes)
        hits = decode(some, table, decoder=decoder, k=k, weights=weights).ids == wanted.unsqueeze(-1)
        first, top = first + int(hits[:, 0].sum()), top + int(hits.sum())
    return {"top1": first / len(labels), "top5": top / len(labels)}
