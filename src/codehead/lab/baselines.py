"""The baselines of a coded head: a trained Softmax head, quantised, trimmed or converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from codehead.config import DecisionConfig, DecisionSize
from codehead.config.blocks import check_keys, read_block, require, require_block
from codehead.config.first_version import run_as_of_today
from codehead.config.size import INTEGER_BITS
from codehead.errors import ConfigurationError
from codehead.models.rounding import ROWS, Rounding, error_corrected, error_spread
from codehead.training.config import Distillation, RunConfig

if TYPE_CHECKING:
    from codehead.training.data import Text
    from codehead.training.loop import Stages

# How a trained Softmax head is compressed for comparison with a code: a block of a protocol file.


CONVERTED = ("decision", "distil", *INTEGER_BITS)  # keys of a run that describe the converted head
HALF = "half"
"""A width that gives the MTL head half of the Softmax parameters."""
FILE_KEY = "peer"
"""The name of a baseline in result files and older protocol files."""


@dataclass(frozen=True)
class BaselineConfig:
    """The compression of a trained Softmax head: quantised, trimmed to the frequent tokens, both, or converted."""

    bits: int | None = None  # per weight
    group: int = 32  # neighbours in a row that share scale and offset
    corrected: bool = False  # spread rounding errors over the columns still to be rounded (GPTQ)
    keep: int | None = None  # the tokens that a trimmed head keeps, the most frequent of the training text
    convert: dict[str, Any] | None = None
    """The `decision`, `distil`, `int8` and `int4` of a run: the head is replaced as by `codehead convert`."""

    def __post_init__(self) -> None:
        if self.convert is not None:
            self._check_conversion(self.convert)
            return
        if self.bits is None and self.keep is None:
            raise ConfigurationError(
                "a baseline needs bits (quantised), keep (trimmed), both, or convert; give one of these"
            )
        given = [name for name in ("bits", "keep") if getattr(self, name) is not None]
        for name in ("group", *given):
            require(getattr(self, name), f"baseline.{name}", minimum=1)
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ConfigurationError(f"baseline.bits is {self.bits!r}; give 2 to 8")

    def _check_conversion(self, convert: dict[str, Any]) -> None:
        check_keys(convert, CONVERTED, "baseline.convert")
        if self.bits is not None or self.keep is not None:
            raise ConfigurationError("baseline.convert replaces the head, so bits and keep have nothing to compress")
        if not convert.get("decision"):
            raise ConfigurationError(
                "baseline.convert has no decision; describe the decision layer that the head becomes"
            )
        converted = run_as_of_today(convert, "baseline.convert.")
        check_decision(converted["decision"], "baseline.convert")
        read_block(Distillation, converted.get("distil"), "baseline.convert.distil")

    def as_dict(self) -> dict[str, Any]:
        """The fields; `convert` if it is set."""
        return {key: value for key, value in asdict(self).items() if key != "convert" or value is not None}


def check_decision(decision: Mapping[str, Any] | None, place: str) -> None:
    """Raise ConfigurationError for an impossible decision layer."""
    if decision is not None:
        require_block(decision, f"{place}.decision")
        known = {key: value for key, value in decision.items() if (key, value) != ("width", HALF)}
        DecisionConfig.from_dict(known, f"{place}.decision")


# What a practitioner would otherwise do to a Softmax head: quantise it, or keep only the frequent tokens.
#
# Every baseline is simulated: it returns the dense weight that its stored form represents, and the bytes of that form.


SCALE_BYTES = 2  # bf16


class Compressed(NamedTuple):
    """A compressed Softmax head."""

    weight: Tensor
    """`(V, hidden)`, float32; rows that were dropped are NaN."""
    num_bytes: int
    """Bytes of the stored form: integers, with scale and offset of every group in bf16; or rows in bf16."""


def quantised(weight: Tensor, bits: int, group: int, moments: Tensor | None = None) -> Compressed:
    """A head `(V, hidden)` in integers of `bits`, with a scale and an offset per `group` neighbours of a row.

    Rounds to the nearest integer. With the second moments `(hidden, hidden)` of the hidden states the error of each
    column is spread over the columns still to be rounded, so that scores change least (`error_corrected`).

    Raises ConfigurationError if the groups do not divide a row or bits are not 2 … 8.
    """
    rows, hidden = weight.shape
    if not 2 <= bits <= 8:
        raise ConfigurationError(f"bits is {bits}; a quantised head has 2 to 8 bits per weight")
    if group < 1 or hidden % group:
        raise ConfigurationError(f"group is {group}, which does not divide the hidden size {hidden}")
    num_bytes = rows * hidden * bits // 8 + 2 * SCALE_BYTES * rows * (hidden // group)
    if moments is None:
        grouped = weight.float().unflatten(1, (-1, group))
        return Compressed(_rounding(grouped, bits)(grouped).flatten(1), num_bytes)
    reach, how = error_spread(moments), partial(_rounding, bits=bits)
    return Compressed(torch.cat([error_corrected(some, reach, group, how) for some in weight.split(ROWS)]), num_bytes)


def trimmed(weight: Tensor, keep: Tensor) -> Compressed:
    """The rows `keep` `(K,)` of a head in bf16; all other tokens can never be predicted."""
    kept = weight[keep].bfloat16().float()
    return spread(Compressed(kept, 2 * kept.numel()), keep, len(weight))


def spread(kept: Compressed, keep: Tensor, num_classes: int) -> Compressed:
    """A head `(V, hidden)` with only the rows `keep` `(K,)`, in some compressed form."""
    rows = torch.full((num_classes, kept.weight.shape[1]), float("nan"))
    rows[keep] = kept.weight
    return Compressed(rows, kept.num_bytes)


def _rounding(values: Tensor, bits: int) -> Rounding:
    """Round to the nearest integer level that covers `values` along the last axis, with scale and offset in bf16."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.bfloat16).tiny)
    return partial(_rounded, scale=scale.bfloat16().float(), low=low.bfloat16().float(), bits=bits)


def _rounded(values: Tensor, scale: Tensor, low: Tensor, bits: int) -> Tensor:
    return ((values - low) / scale).round().clamp(0, 2**bits - 1) * scale + low


# The Softmax head of a finished run, compressed as a practitioner would do it instead. Protocol files are
# read with this module, too, so training code is imported where it is used.


NEVER = -torch.inf
"""The score of a token that was trimmed away."""


def compress(
    model: Any, baseline: BaselineConfig, config: RunConfig, batch_size: int, stages: Stages
) -> DecisionSize | None:
    """Replace the Softmax head of a model by its compressed form, in place.

    A quantised or trimmed head is written out as a Softmax head again, and the size of its stored form is returned;
    None if the model is now a coded one, which knows its own size. With `stages`, a stopped conversion resumes.
    """
    if baseline.convert is not None:
        _convert(model, baseline.convert, config, stages)
        return None
    return _written_out(model, baseline, config, batch_size)


def _convert(model: Any, converted: Mapping[str, Any], config: RunConfig, stages: Stages) -> None:
    """Replace a model's Softmax head by a decision layer, built and trained with the seed of the run."""
    from codehead.training.loop import Work
    from codehead.training.new_head import finish, fit_decision_layer

    parts = {key: {"seed": config.seed, **converted[key]} for key in ("decision", "distil") if converted.get(key)}
    ends = {key: converted[key] for key in INTEGER_BITS if key in converted}
    described = RunConfig.from_dict({**config.to_dict(), **parts, **ends, "model": config.output_dir, "adapt": "head"})
    text = _text(config)
    finish(fit_decision_layer(model, described, text, Work(stages=stages)), described, text)


@torch.no_grad()
def _written_out(model: Any, baseline: BaselineConfig, config: RunConfig, batch_size: int) -> DecisionSize:
    """The compressed head as a Softmax head in its place.

    Frequencies and second moments of hidden states are those of the run's training text. ConfigurationError if the
    model is coded, or its head has a bias.
    """
    from codehead.models.stock import replace_head
    from codehead.models.surgery import is_coded

    head = model.get_output_embeddings()
    if is_coded(model) or head.bias is not None:
        raise ConfigurationError(
            "only a Softmax head without a bias can be compressed as a baseline; choose such a reference"
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
    from codehead.models.hidden import hidden_states
    from codehead.training.data import STATISTICS_TOKENS

    hidden = hidden_states(model, text.batches(batch_size), STATISTICS_TOKENS).float()
    return quantised(weight, baseline.bits, baseline.group, hidden.T @ hidden / len(hidden))


def _text(config: RunConfig) -> Text:
    """The training text of a run, tokenised as it was."""
    from codehead.training.data import Text, load_rows
    from codehead.training.tokenizer import load_tokenizer

    rows = load_rows(config.data, config.seed).train
    tokenizer = load_tokenizer(config.output_dir)
    return Text.of(rows, tokenizer, config.data.block_size, "the training data", config.seed)
