"""Statistics of a model on a text: the hidden states that reach its head, and how often tokens occur."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError, DataError
from codehead.losses import IGNORE
from codehead.models.probe import Probe, evaluating
from codehead.models.stock import replace_head
from codehead.processes import ALONE, Processes

PIECE = 2**13
"""Rows of a head converted to float64 at a time."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a model on a text: token counts, and mean and covariance of the hidden states before its head.

    Raises ConfigurationError if shapes do not fit together, values are not finite, or a count is negative.
    """

    counts: Tensor
    """`(V,)`, float64: how often each token is the one to predict."""
    mean: Tensor | None = None
    """`(hidden,)`, float64."""
    covariance: Tensor | None = None
    """`(hidden, hidden)`, float64."""

    def __post_init__(self) -> None:
        for name in ("counts", "mean", "covariance"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _finite(name, value))
        if self.counts.ndim != 1 or bool((self.counts < 0).any()):
            raise ConfigurationError(
                f"counts of shape {tuple(self.counts.shape)} must be one number of 0 or more per token, in the "
                "order of the token ids"
            )
        if (self.mean is None) != (self.covariance is None):
            raise ConfigurationError("mean and covariance of the hidden states go together; give both or neither")
        if self.mean is not None and self.covariance is not None and self.covariance.shape != (len(self.mean),) * 2:
            raise ConfigurationError(
                f"covariance of shape {tuple(self.covariance.shape)} does not fit a mean of shape "
                f"{tuple(self.mean.shape)}; it must be (hidden, hidden)"
            )

    @classmethod
    def of(cls, counts: Any, hidden: Tensor) -> Statistics:
        """The statistics of a text from its counts `(V,)` and some of its hidden states `(tokens, hidden)`."""
        wide = hidden.double()
        mean = wide.mean(0)
        centred = wide - mean
        return cls(torch.as_tensor(counts), mean, centred.T @ centred / len(wide))

    @cached_property
    def root(self) -> Tensor:
        """The square root of the covariance, `(hidden, hidden)`, float64.

        With fewer positions than `hidden`, some directions have no variance. Their rounding errors are set to zero:
        the root of one, 1e-8 of the largest, would pass for a direction that varies.
        """
        if self.covariance is None:
            raise ConfigurationError("these statistics hold counts alone; measure hidden states too (Statistics.of)")
        variances, directions = torch.linalg.eigh(self.covariance)
        smallest = len(variances) * torch.finfo(variances.dtype).eps * variances[-1]
        return (directions * variances.where(variances > smallest, 0).sqrt()) @ directions.T

    def seen(self, rows: Tensor) -> Tensor:
        """Rows `(V, hidden)` of a head times Σ½, so that distances between them measure differences of scores.

        |w Σ½|² is the variance of `w · h`; directions in which hidden states do not vary do not count. float32, on the
        CPU. Without a covariance, the rows as they are.
        """
        if self.covariance is None:
            return rows.float().cpu()
        root = self.root.to(rows.device)
        return torch.cat([(some.double() @ root).float().cpu() for some in rows.split(PIECE)])


def _finite(name: str, value: Any) -> Tensor:
    array = torch.as_tensor(value, dtype=torch.float64)
    if not bool(torch.isfinite(array).all()):
        raise ConfigurationError(
            f"{name} holds values that are not finite; measure it on a model that has not diverged"
        )
    return array


def hidden_states(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    limit: int,
    progress: Callable[[int, int], None] = lambda seen, limit: None,
    processes: Processes = ALONE,
) -> Tensor:
    """The inputs of the output embedding at the first `limit` labelled positions of batches: `(tokens, hidden)`.

    As `labelled_states`, without the labels.
    """
    return labelled_states(model, batches, limit, progress, processes)[0]


def labelled_states(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    limit: int,
    progress: Callable[[int, int], None] = lambda seen, limit: None,
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor]:
    """The inputs of the output embedding at the first `limit` labelled positions of batches, and the labels there.

    Hidden states `(tokens, hidden)`, in the dtype of the model, and labels `(tokens,)`, both on the CPU. Batches hold
    input_ids, labels and, where there is padding, attention_mask, each `(batch, length)`. The output embedding itself
    is not evaluated, so no tensor is as wide as the vocabulary. `progress` is called with (positions seen, `limit`).
    Several `processes`, each given all batches, share the forward passes. DataError if no position is labelled.
    """
    with probed(model) as read:
        return at_labels(model, batches, limit, lambda **inputs: read(**inputs).cpu(), progress, processes)


@contextmanager
def probed(model: Any) -> Iterator[Callable[..., Tensor]]:
    """Yields a function from a model's inputs to those of its output embedding, `(batch, length, hidden)`.

    Meanwhile a probe stands in for the output embedding, which computes nothing.
    """
    head = model.get_output_embeddings()
    probe = Probe(torch.zeros(1), next(head.parameters()).dtype)
    forward = getattr(model, "head_outputs", model)  # a decision layer could not read what the probe gives

    def read(**inputs: Any) -> Tensor:
        forward(**inputs)
        return probe.seen

    replace_head(model, probe)
    try:
        yield read
    finally:
        replace_head(model, head)


@torch.no_grad()
def at_labels(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    limit: int,
    read: Callable[..., Tensor],
    progress: Callable[[int, int], None],
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor]:
    """The values `(batch, length, ·)` of `read` at the first `limit` labelled positions, and the labels there.

    `read` is called with the model's inputs, in eval mode. Both results are `(tokens, …)`, on the device of the values,
    or on the CPU if several `processes` read them. DataError if no position is labelled.
    """
    device, seen = next(model.parameters()).device, 0
    parts: list[tuple[Tensor, Tensor]] = []
    with evaluating(model):
        for number, batch in enumerate(batches):
            _check_batch(batch, model.get_input_embeddings().num_embeddings)
            labels = batch["labels"][:, 1:]
            known = labels != IGNORE
            if processes.does(number):
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if name in batch}
                found = read(**inputs, use_cache=False)[:, :-1]
                parts.append((found[known.to(found.device)], labels[known].to(found.device)))
            seen += int(known.sum())
            progress(min(seen, limit), limit)
            if seen >= limit:
                break
    if not seen:
        raise DataError("the text holds no token to predict; give more text, or a longer block_size")
    values, wanted = zip(*processes.gathered(parts), strict=True)
    return torch.cat(values)[:limit], torch.cat(wanted)[:limit]


def _check_batch(batch: Any, num_embeddings: int) -> None:
    """Raise ConfigurationError if this is not a batch, or holds ids that are not below `num_embeddings`."""
    if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= set(batch):
        raise ConfigurationError(
            f"a batch is {type(batch).__name__}; give mappings with input_ids and labels, each (batch, length)"
        )
    labels = batch["labels"]
    for name, ids in (("input_ids", batch["input_ids"]), ("labels", labels[labels != IGNORE])):
        beyond = ids[(ids < 0) | (ids >= num_embeddings)]
        if len(beyond):
            raise ConfigurationError(
                f"{name} of a batch holds {int(beyond[0])}, but the model's token ids are 0 to {num_embeddings - 1}; "
                "tokenise with the tokenizer of the model"
            )
