"""BERTScore of answers against references (Zhang et al. 2020, arXiv:1904.09675), matched by torchmetrics.

Tokens of the two texts are embedded by a pretrained encoder and matched greedily by cosine similarity: precision
averages over the answer's tokens, recall over the reference's, F1 is their harmonic mean. The figures are those of
the authors' own package, bert-score. Used directly, torchmetrics differs from it in two ways, which `bert_score`
avoids: within a batch it pairs answers with other answers' references, and it lets no token match a special token.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from codehead.errors import ConfigurationError, DataError
from codehead.lab.answers.encoder import PUBLISHED_LAYERS, Encoder, encoder_on, sha256
from codehead.training.model import default_device

SPECIAL = 2  # tokens that a tokenizer puts around a text: [CLS] … [SEP]


@dataclass(frozen=True)
class Baseline:
    """Mean scores of unrelated sentences, which rescaling maps to 0."""

    name: str
    sha256: str
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class BertScore:
    """One raw score per answer in every list, 0 for an answer or reference without tokens."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    encoder: Encoder
    baseline: Baseline | None = None

    @property
    def rescaled(self) -> dict[str, list[float]] | None:
        """The scores mapped by `(x − b) / (1 − b)`, so that unrelated texts score 0; None without a baseline."""
        if self.baseline is None:
            return None
        pairs = [(name, getattr(self.baseline, name)) for name in ("precision", "recall", "f1")]
        return {name: [(score - b) / (1 - b) for score in getattr(self, name)] for name, b in pairs}

    def as_dict(self) -> dict[str, Any]:
        """The means over the answers, the encoder and the baseline, as plain JSON values."""
        raw = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        rescaled = None
        if self.baseline is not None and self.rescaled is not None:
            origin = {"name": self.baseline.name, "sha256": self.baseline.sha256}
            rescaled = {**_means(self.rescaled), "baseline": origin}
        encoder = self.encoder.as_dict()
        return {**_means(raw), "answers": len(self.f1), "encoder": encoder, "rescaled": rescaled}


def bert_score(
    answers: Sequence[str],
    references: Sequence[str],
    encoder: Encoder,
    *,
    batch_size: int = 32,
    baseline: str | Path | None = None,
    device: str | torch.device | None = None,
) -> BertScore:
    """Score every answer against its reference, without idf weights; the encoder is loaded once per process.

    Texts are stripped and cut at the positions of the encoder. `baseline` is a file of bert-score's
    `rescale_baseline` folder. Computes on the accelerator if there is one, unless `device` is given.

    Raises DataError for lists of different length or without entries; ConfigurationError for a baseline that is
    not the encoder's.
    """
    if len(answers) != len(references) or not answers:
        raise DataError(
            f"{len(answers)} answers and {len(references)} references; give one reference per answer, at least one"
        )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size} must be at least 1")
    found = None if baseline is None else read_baseline(baseline, encoder)
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]) + len(references[i]))  # needs little padding
    scores: dict[int, tuple[float, float, float]] = {}
    with encoder_on(encoder, default_device() if device is None else device) as (tokenizer, model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            left = _embed(tokenizer, model, encoder.layers, [answers[i] for i in chosen])
            right = _embed(tokenizer, model, encoder.layers, [references[i] for i in chosen])
            scores.update((i, _score(model, *pair)) for i, *pair in zip(chosen, left, right, strict=True))
    precision, recall, f1 = (list(column) for column in zip(*(scores[i] for i in range(len(answers))), strict=True))
    return BertScore(precision, recall, f1, encoder, found)


def read_baseline(path: str | Path, encoder: Encoder) -> Baseline:
    """The row of the encoder's layer; ConfigurationError if the file is no baseline, or that of another encoder."""
    path = Path(path).expanduser()
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        precision, recall, f1 = (float(rows[encoder.layers][column]) for column in ("P", "R", "F"))
        if not all(value < 1 for value in (precision, recall, f1)):
            raise ValueError("they must be below 1")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigurationError(
            f"baseline {str(path)!r} gives no numbers LAYER,P,R,F for layer {encoder.layers} of {encoder.name!r} "
            f"({error!r}); take the encoder's file from bert_score/rescale_baseline of bert-score"
        ) from None
    # The table's names end in one another (distilroberta-base, roberta-base): the longest is meant.
    owner = max((name for name in PUBLISHED_LAYERS if path.stem.endswith(name)), key=len, default=encoder.name)
    if len(rows) != encoder.depth + 1 or (encoder.name in PUBLISHED_LAYERS and owner != encoder.name):
        raise ConfigurationError(
            f"baseline {str(path)!r} has {len(rows) - 1} layers and is not for encoder {encoder.name!r}, "
            f"which has {encoder.depth}; take the encoder's own, or none"
        )
    return Baseline(path.name, sha256([path]), precision, recall, f1)


def harmonic_mean(precision: float, recall: float) -> float:
    """F1; 0 where it is undefined."""
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _means(scores: dict[str, list[float]]) -> dict[str, float]:
    return {name: fmean(values) for name, values in scores.items()}


@torch.no_grad()
def _embed(tokenizer: Any, model: Any, layers: int, texts: list[str]) -> list[Tensor]:
    """Hidden states of every text, special tokens included, each `(tokens, hidden)` on the CPU."""
    inputs = tokenizer([text.strip() for text in texts], padding=True, truncation=True, return_tensors="pt")
    ids, mask = inputs.input_ids.to(model.device), inputs.attention_mask.to(model.device)
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[layers]
    if not states.isfinite().all():
        raise ConfigurationError(f"layer {layers} of the encoder gives numbers that are not finite; check its weights")
    return [state[real.bool()].cpu() for state, real in zip(states, mask, strict=True)]


def _score(model: Any, answer: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of two embedded texts; 0 if one is empty, as bert-score has it."""
    if min(len(answer), len(reference)) <= SPECIAL:
        return 0.0, 0.0, 0.0
    precision, recall = _precision(model, answer, reference), _precision(model, reference, answer)
    return precision, recall, harmonic_mean(precision, recall)


def _precision(model: Any, text: Tensor, other: Tensor) -> float:
    """How well each token of `text` (tokens, hidden) is matched in `other`: the mean of the best cosines.

    torchmetrics takes embeddings in the place of token ids and drops the first and the last of each text. In
    bert-score only the averaging leaves special tokens out, so those of `other` get a row each to be dropped
    instead. One pair at a time, because torchmetrics restores the order of a sorted batch wrongly.
    """
    from torchmetrics.functional.text.bert import bert_score as match

    wrapped = torch.cat([other[:1], other, other[-1:]])
    preds, target = (
        {"input_ids": states[None], "attention_mask": torch.ones(1, len(states), dtype=torch.long)}
        for states in (text, wrapped)
    )
    with torch.random.fork_rng(devices=[]):  # its data loaders draw a seed each
        scores: Any = match(preds, target, model=model, user_forward_fn=lambda _, batch: batch["input_ids"].clone())
    return float(scores["precision"])
