"""The Softmax head of a finished run, compressed as a practitioner would do it instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from codehead.errors import ConfigurationError
from codehead.evaluation.size import DecisionSize
from codehead.lab.baselines.config import BaselineConfig
from codehead.lab.baselines.methods import Compressed, quantised, spread, trimmed
from codehead.models import is_coded
from codehead.models.hidden import hidden_states
from codehead.models.stock import replace_head
from codehead.training.config import WEIGHTS, RunConfig
from codehead.training.data import load_rows
from codehead.training.new_head import fit_decision_layer
from codehead.training.stage_store import Stages
from codehead.training.storage import finish
from codehead.training.text import STATISTICS_TOKENS, Text
from codehead.training.tokenizer import load_tokenizer

NEVER = -torch.inf
"""The score of a token that was trimmed away."""


def compress(
    model: Any, baseline: BaselineConfig, config: RunConfig, batch_size: int, stages: Stages | None = None
) -> DecisionSize | None:
    """Replace the Softmax head of a model by its compressed form, in place.

    What is quantised or trimmed is written out as a Softmax head again, and the size of its stored form is returned;
    None if the model has become a coded one, which tells its size itself. With `stages`, a conversion that was stopped
    goes on where it was.
    """
    if baseline.convert is not None:
        _convert(model, baseline.convert, config, stages)
        return None
    return _written_out(model, baseline, config, batch_size)


def _convert(model: Any, converted: Mapping[str, Any], config: RunConfig, stages: Stages | None) -> None:
    """Give a model the decision layer that replaces its Softmax head, drawn and learnt by the seed of the run."""
    parts = {key: {"seed": config.seed, **converted[key]} for key in ("decision", "distil") if converted.get(key)}
    ends = {key: converted[key] for key in WEIGHTS if key in converted}
    described = RunConfig.from_dict({**config.to_dict(), **parts, **ends, "model": config.output_dir, "adapt": "head"})
    text = _text(config)
    finish(fit_decision_layer(model, described, text, stages=stages), described, text)


@torch.no_grad()
def _written_out(model: Any, baseline: BaselineConfig, config: RunConfig, batch_size: int) -> DecisionSize:
    """The compressed head as a Softmax head in its place.

    Frequencies and second moments of hidden states are those of the run's training text. ConfigurationError if the
    model is coded, or its head has a bias.
    """
    head = model.get_output_embeddings()
    if is_coded(model) or head.bias is not None:
        raise ConfigurationError(
            "only a Softmax head without a bias is compressed as a baseline; choose such a reference"
        )
    found = _compressed(model, head.weight, baseline, _text(config), batch_size)
    dropped = found.weight.isnan().any(1)
    dense = nn.Linear(head.in_features, head.out_features, bias=bool(dropped.any()), device="meta")
    dense.weight = nn.Parameter(found.weight.nan_to_num(0.0).to(head.weight))
    if dense.bias is not None:
        dense.bias = nn.Parameter(torch.where(dropped, NEVER, 0.0).to(head.weight))
    replace_head(model, dense)
    return DecisionSize(head.weight.numel(), found.num_bytes, found.num_bytes, found.num_bytes, 0)


def _compressed(model: Any, weight: torch.Tensor, baseline: BaselineConfig, text: Text, batch_size: int) -> Compressed:
    weight = weight.cpu()
    if baseline.keep is None:
        return _quantised(model, weight, baseline, text, batch_size)
    counts = torch.from_numpy(text.counts(len(weight)))
    keep = torch.sort(counts, descending=True, stable=True).indices[: baseline.keep]
    if baseline.bits is None:
        return trimmed(weight, keep)
    return spread(_quantised(model, weight[keep], baseline, text, batch_size), keep, len(weight))


def _quantised(model: Any, weight: torch.Tensor, baseline: BaselineConfig, text: Text, batch_size: int) -> Compressed:
    assert baseline.bits is not None
    if not baseline.corrected:
        return quantised(weight, baseline.bits, baseline.group)
    hidden = hidden_states(model, text.batches(batch_size), STATISTICS_TOKENS).float()
    return quantised(weight, baseline.bits, baseline.group, hidden.T @ hidden / len(hidden))


def _text(config: RunConfig) -> Text:
    """The training text of a run, tokenised as it was."""
    rows = load_rows(config.data, config.seed).train
    tokenizer = load_tokenizer(config.output_dir)
    return Text.of(rows, tokenizer, config.data.block_size, "the training data", config.seed)
