"""What the decision layer of a model weighs, and what those of the paper would (see `codehead.config.size`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from codehead.config import DecisionConfig, DecisionSize, ModelShape
from codehead.config.size import UNPACKED_BYTES, packed_row
from codehead.models import is_coded
from codehead.models.rounding import rounded_weights

USUAL = (
    DecisionConfig(code="one_vs_all", loss="codeword"),
    DecisionConfig(code="minimal"),
    DecisionConfig(code="minrandom", bits=50),
    DecisionConfig(code="minrandom", bits=100),
    DecisionConfig(code="minimal", head="mtl", width=512),
    DecisionConfig(code="minrandom", bits=50, head="mtl", width=512),
)
"""Softmax and the configurations of the paper (protocol 1 and the length 100 of protocol 3)."""


def model_size(model: nn.Module, *, weight_bytes: int | None = None) -> DecisionSize:
    """The sizes of a model's decision layer, coded or stock; by default with the bytes of its own dtype."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if weight_bytes is None:
        weight_bytes = next(head.parameters()).element_size()
    parameters = sum(p.numel() for p in head.parameters())
    if not is_coded(model):
        return _size(parameters, 0, 0, False, True, weight_bytes)
    decision: Any = model.decision
    code = decision.table
    named = [(n, values) for n, values in decision.named_buffers() if not n.startswith("table.")] + [
        *head.named_buffers()
    ]
    buffers = [values.nbytes for name, values in named if not name.endswith("seal.digest")]  # checksums: not of a size
    size = _size(
        parameters + sum(p.numel() for p in decision.parameters()),
        code.num_classes,
        code.length,
        code.is_ternary,
        code.is_implicit,
        weight_bytes,
        other_bytes=sum(buffers),
    )
    unpacked = _further_symbols(decision) * UNPACKED_BYTES
    size = replace(
        size,
        head_parameters=size.head_parameters + rounded_weights(head) + rounded_weights(decision),
        bytes_resident=size.bytes_resident + unpacked,
        bytes_read_per_token=size.bytes_read_per_token + unpacked,
    )
    return size.packed if decision.packed else size


def _further_symbols(decision: Any) -> int:
    """Symbols that longer codewords have beyond the others."""
    refinement = None if decision.corrections is None else decision.corrections.refinement
    return 0 if refinement is None else refinement.num_tokens * refinement.length


def compare_configurations(shape: ModelShape) -> list[dict[str, Any]]:
    """One row of sizes per usual configuration, with its share of the parameters of Softmax."""
    rows: list[dict[str, Any]] = []
    for config in USUAL:
        size = config.size(shape)
        share = size.head_parameters / shape.softmax_weights
        rows.append({"configuration": config.name(shape.num_classes), "share_of_softmax": share, **size.as_dict()})
    return rows


def _size(
    parameters: int,
    num_classes: int,
    bits: int,
    ternary: bool,
    implicit: bool,
    weight_bytes: int,
    other_bytes: int = 0,
) -> DecisionSize:
    planes = 0 if implicit else 2 if ternary else 1
    packed = planes * num_classes * packed_row(bits)
    unpacked = planes * num_classes * bits * UNPACKED_BYTES
    weights = parameters * weight_bytes + other_bytes
    return DecisionSize(parameters, weights + packed, weights + packed + unpacked, weights + unpacked, packed)
