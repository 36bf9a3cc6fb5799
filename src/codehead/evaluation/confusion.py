"""Which tokens a language model takes for which: the counts that the design ecoc_one grows a code by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from codehead.codes import Confusion
from codehead.errors import DataError
from codehead.evaluation.metrics import SCORE_BYTES
from codehead.models import is_coded
from codehead.training.data import Collator
from codehead.training.tokenization import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def token_confusions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset | Sequence[dict[str, Any]],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Confusion:
    """How often each token was the label and each the first choice, over every labelled token of `dataset`.

    Model, examples, tokenizer and `progress` are those of `metrics.evaluate`. The first choice is that of the model's
    own decoder, for a stock model the largest logit. DataError if there is no labelled token, or a label is not a
    token of the model.
    """
    was_training = model.training
    model.eval()
    found: list[np.ndarray] = []
    try:
        for start in range(0, len(dataset), batch_size):
            stop = min(start + batch_size, len(dataset))
            found.append(_answers(model, tokenizer, [dataset[i] for i in range(start, stop)]))
            if progress is not None:
                progress(stop, len(dataset))
    finally:
        model.train(was_training)
    answers = np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)
    if not len(answers):
        raise DataError("the data hold no labelled token to count; every label is -100 or out of reach")
    return Confusion.of((answers[:, 0], answers[:, 1], np.ones(len(answers))), _num_tokens(model))


def _answers(model: Any, tokenizer: PreTrainedTokenizerBase | None, examples: list[dict[str, Any]]) -> np.ndarray:
    """Labels and top-1 predictions (tokens, 2) of one batch."""
    device = next(model.parameters()).device
    pad_id = None if tokenizer is None else tokenizer.pad_token_id
    batch = {name: values.to(device) for name, values in Collator(pad_id)(examples).items()}
    labels = batch.pop("labels")[:, 1:]
    scored = labels != IGNORED
    labels = labels[scored]
    num_tokens = _num_tokens(model)
    if labels.numel() and int(labels.max()) >= num_tokens:
        message = f"the data hold the label {int(labels.max())}, but the model has {num_tokens} tokens"
        raise DataError(f"{message}; tokenise with the model's own tokenizer")
    outputs = (
        model.head_outputs(**batch, use_cache=False) if is_coded(model) else model(**batch, use_cache=False).logits
    )
    rows = max(1, SCORE_BYTES // (4 * num_tokens))
    choices = [_first_choice(model, some) for some in outputs[:, :-1][scored].split(rows)]
    return torch.stack([labels, torch.cat(choices)], dim=1).cpu().numpy()


def _first_choice(model: Any, outputs: Tensor) -> Tensor:
    """The best tokens `(tokens,)` for what the head gives, `(tokens, n)` or `(tokens, V)`."""
    ids: Tensor = model.decision.decode(outputs).ids[:, 0] if is_coded(model) else outputs.argmax(dim=-1)
    return ids


def _num_tokens(model: Any) -> int:
    return int(model.decision.table.num_classes if is_coded(model) else len(model.get_output_embeddings().weight))
