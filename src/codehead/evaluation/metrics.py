"""Next-token metrics of a causal language model, coded or stock, on one tokenised dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes import Confusion
from codehead.decoding import DECODERS, decode
from codehead.decoding.numerics import top_k
from codehead.errors import ConfigurationError, DataError
from codehead.models.hidden import probed
from codehead.models.probe import LogitScaling, evaluating
from codehead.models.surgery import is_coded
from codehead.processes import ALONE, Processes
from codehead.training.data import Collator
from codehead.training.tokenizer import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from codehead.layer import Decision


SCORE_BYTES = 64 * 2**20  # token scores held at a time
TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Metrics over every token that has a label. Rates are fractions from 0 to 1."""

    tokens: int
    """Labels scored."""
    top1: float
    """Share of tokens that are the decoder's top-1 token."""
    top5: float
    """Share of tokens among the decoder's top five."""
    perplexity: float
    """exp of the mean negative log-likelihood under the codeword posterior, in float32."""
    bits_per_byte: float | None
    """The same likelihood in bits per UTF-8 byte, comparable between tokenizers; None without byte counts."""
    node_loss: float | None
    """Binary cross entropy in nats, averaged over tokens and non-zero bits; None for a Softmax head."""
    node_losses: list[float] | None
    """The same for every node, `(n,)`; None for a Softmax head."""
    bit_accuracy: float | None
    """Share of non-zero bits with the right sign; None for a Softmax head."""
    bit_accuracies: list[float] | None
    """The same for every column, `(n,)`; None for a Softmax head."""
    decoder: str
    """Decoder that ranked the tokens."""

    def as_dict(self) -> dict[str, Any]:
        """The metrics as plain JSON values; infinite or undefined ones, of a diverged model, are None."""
        return {key: _defined(value) for key, value in asdict(self).items()}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset | Sequence[dict[str, Any]],
    *,
    batch_size: int = 8,
    decoder: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Score every labelled token of `dataset` with a coded or stock causal language model of transformers.

    Examples have `input_ids`, `labels` (not shifted) and optionally `num_bytes`, each `(length,)`, as
    `training.data.load_examples` gives them; `batch_size` of them go through the model at a time. A stock
    model counts as the one_vs_all code with the codeword loss. Of the tokenizer only the pad token is
    used. `decoder` ranks the tokens for top-1 and top-5; None: the model's own, or a stock model's logits.
    `progress` is called with (examples done, examples in all) after every batch. Several `processes`, each with the
    model and all examples, share the batches, and all return the same metrics over all examples.

    Raises DataError if there is no labelled token, or a label is not below V; ConfigurationError for an unknown
    decoder, or one for a stock model.
    """
    decoder, head, totals = _ranking(model, decoder), _Head.of(model), _Totals()
    with closing(_scored(model, head, tokenizer, dataset, batch_size, progress, processes)) as pieces:
        for outputs, labels, num_bytes in pieces:
            totals.num_bytes += float(num_bytes.sum())
            _add_tokens(totals, head.decision, outputs, labels, decoder)
    return _Totals.of(processes.gathered([totals])).finish(decoder)


@dataclass
class _Totals:
    """Sums over tokens, in float64."""

    tokens: int = 0
    first: int = 0
    top: int = 0
    nats: float = 0.0
    num_bytes: float = 0.0
    """NaN (unknown for all) as soon as that of one token is unknown."""
    nodes: Tensor | float = 0.0
    """`(3, n)`: for every node the nats, how often it was right, and how often it counted; 0.0 without nodes."""

    @classmethod
    def of(cls, parts: Sequence[_Totals]) -> _Totals:
        """The sums over several parts of the tokens."""
        return cls(*map(sum, zip(*(vars(part).values() for part in parts), strict=True)))

    def finish(self, decoder: str) -> Evaluation:
        if not self.tokens:
            raise DataError("the data hold no labelled token to score; every label is -100 or out of reach")
        mean = self.nats / self.tokens
        return Evaluation(
            tokens=self.tokens,
            top1=self.first / self.tokens,
            top5=self.top / self.tokens,
            perplexity=math.exp(mean) if mean < 700 else math.inf,
            bits_per_byte=self.nats / math.log(2) / self.num_bytes if self.num_bytes > 0 else None,
            **self._of_nodes(),
            decoder=decoder,
        )

    def _of_nodes(self) -> dict[str, Any]:
        """Means over all nodes, and for every node."""
        if isinstance(self.nodes, float):
            return dict.fromkeys(("node_loss", "node_losses", "bit_accuracy", "bit_accuracies"))
        *sums, count = self.nodes
        loss, accuracy = (float(one.sum() / count.sum().clamp(min=1)) for one in sums)
        losses, accuracies = ((one / count.clamp(min=1)).tolist() for one in sums)
        return {"node_loss": loss, "node_losses": losses, "bit_accuracy": accuracy, "bit_accuracies": accuracies}


@dataclass(frozen=True)
class _Head:
    """The last layer of a model, which is detached while its hidden states are read."""

    module: Any
    scaling: LogitScaling
    decision: Decision | None  # None for a stock model

    @classmethod
    def of(cls, model: Any) -> _Head:
        return cls(model.get_output_embeddings(), LogitScaling.of(model), model.decision if is_coded(model) else None)

    @property
    def num_classes(self) -> int:
        """V."""
        if self.decision is not None:
            return self.decision.table.num_classes
        return len(self.module.weight)

    def outputs(self, hidden: Tensor, rows: int) -> Iterator[Tensor]:
        """Outputs `(rows, n + K)` for hidden states `(tokens, hidden)`, in order; V-wide ones a piece at a time."""
        is_wide = self.decision is None or self.decision.table.is_implicit
        for some in hidden.split(rows if is_wide else len(hidden)):
            yield from self.scaling(self.module(some)).split(rows)


Pieces = Generator[tuple[Tensor, Tensor, Tensor], None, None]
"""Outputs `(rows, n + K)` of a head, labels and bytes of the labels `(rows,)`; NaN for unknown bytes."""


def _scored(
    model: nn.Module,
    head: _Head,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Any,
    batch_size: int,
    progress: Callable[[int, int], None],
    processes: Processes = ALONE,
) -> Pieces:
    """The `Pieces` of all batches of this process, from a model in evaluation mode until the end."""
    pad_id = None if tokenizer is None else tokenizer.pad_token_id
    collate = Collator(pad_id, with_bytes=len(dataset) > 0 and "num_bytes" in dataset[0])
    device = next(model.parameters()).device
    with evaluating(model), probed(model) as read:
        for start in range(processes.rank * batch_size, len(dataset), processes.count * batch_size):
            batch = collate([dataset[i] for i in range(start, min(start + batch_size, len(dataset)))])
            yield from _pieces(head, read, {name: values.to(device) for name, values in batch.items()})
            done = start + (processes.count - processes.rank) * batch_size  # by all processes
            progress(min(done, len(dataset)), len(dataset))


def _pieces(head: _Head, read: Callable[..., Tensor], batch: dict[str, Tensor]) -> Pieces:
    """The labelled positions of a batch, in pieces whose V-wide tensors do not exceed SCORE_BYTES."""
    labels = batch["labels"][:, 1:]
    scored = labels != IGNORED
    if not bool(scored.any()):
        return
    labels = labels[scored]
    num_bytes = batch["num_bytes"][:, 1:][scored] if "num_bytes" in batch else torch.full(labels.shape, math.nan)
    if int(labels.max()) >= head.num_classes:
        raise DataError(
            f"the data hold the label {int(labels.max())}, but the model has {head.num_classes} tokens; "
            "tokenise with the model's own tokenizer"
        )
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden = read(**inputs, use_cache=False)[:, :-1]
    hidden = hidden[scored.to(hidden.device)]
    rows = max(1, SCORE_BYTES // (4 * head.num_classes))
    pieces = zip(head.outputs(hidden, rows), labels.split(rows), num_bytes.split(rows), strict=True)
    for outputs, wanted, sizes in pieces:
        yield outputs, wanted.to(outputs.device), sizes


def _add_tokens(totals: _Totals, decision: Decision | None, outputs: Tensor, labels: Tensor, decoder: str) -> None:
    """Add outputs `(tokens, n + K)` for labels `(tokens,)`."""
    scores = (decision.logits(outputs) if decision is not None else outputs).float()
    totals.tokens += len(labels)
    totals.nats += float(F.cross_entropy(scores, labels, reduction="none").double().sum())
    ids = _best(decision, outputs, scores, decoder)
    hits = ids == labels.unsqueeze(-1)
    totals.first += int(hits[:, 0].sum())
    totals.top += int(hits.sum())
    if decision is not None and has_nodes(decision):
        bit_logits, symbols = decision.nodes(outputs, labels)
        margins, seen = symbols * bit_logits.float(), symbols.abs()
        sums = torch.stack([F.softplus(-margins) * seen, (margins > 0).to(seen), seen])
        totals.nodes = totals.nodes + sums.double().sum(1).cpu()


def has_nodes(decision: Decision) -> bool:
    """Whether the bit logits are trained or read as binary problems; the V logits of a Softmax are not."""
    return not (decision.table.is_implicit and decision.loss_name == "codeword")


def _best(decision: Decision | None, outputs: Tensor, scores: Tensor, decoder: str) -> Tensor:
    """The top five tokens `(tokens, 5)`; with one_vs_all, the likelihood ranks them as the logits do."""
    k = min(TOP, scores.shape[-1])
    if decision is None or (decision.table.is_implicit and decoder == "likelihood"):
        return scores.topk(k, dim=-1).indices
    if decision.outputs.decoders:  # it ranks by the scores alone
        return top_k(scores, k)
    weights = decision.decoder_weights if decoder == decision.decoder_name else None
    return decode(outputs, decision.table, decoder=decoder, k=k, weights=weights).ids


def _defined(value: Any) -> Any:
    """The value, or None in place of every number that JSON does not have."""
    if isinstance(value, list):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ranking(model: Any, decoder: str | None) -> str:
    """The decoder to rank tokens by: the one asked for, else the model's own."""
    if decoder is None:
        return str(model.decision.decoder_name) if is_coded(model) else "likelihood"
    DECODERS.get(decoder)
    if is_coded(model):
        model.decision.outputs.check_decoder(decoder)
    else:
        raise ConfigurationError(
            f"decoder is {decoder!r}, but this model has a Softmax head, whose logits are the scores of the tokens: "
            "there is nothing to decode; omit the decoder"
        )
    return decoder


@torch.no_grad()
def token_confusions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset | Sequence[dict[str, Any]],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Confusion:
    """How often each label met each top-1 token: the counts from which `ecoc_one` grows a code.

    Arguments and errors are those of `evaluate`. The top-1 token is that of the model's own decoder; for a stock model,
    that of the largest logit.
    """
    head = _Head.of(model)
    with closing(_scored(model, head, tokenizer, dataset, batch_size, progress)) as pieces:
        found = [torch.stack([labels, _top1(head, outputs)]).cpu() for outputs, labels, _ in pieces]
    if not found:
        raise DataError("the data hold no labelled token to count; every label is -100 or out of reach")
    labels, choices = torch.cat(found, dim=1).numpy()
    return Confusion.of((labels, choices, np.ones(len(labels))), head.num_classes)


def _top1(head: _Head, outputs: Tensor) -> Tensor:
    """The best tokens `(tokens,)` for outputs of the head."""
    return outputs.argmax(dim=-1) if head.decision is None else head.decision.decode(outputs).ids[:, 0]
