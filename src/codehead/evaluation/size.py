"""The size of a model's decision layer, and of those in the paper (see `codehead.config.size`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from codehead.config import DecisionConfig, DecisionSize, ModelShape
from codehead.config.size import UNPACKED_BYTES, packed_row
from codehead.models.rounding import rounded_weights
from codehead.models.surgery import is_coded

USUAL = (
    DecisionConfig(code="one_vs_all", loss="codeword"),
    DecisionConfig(code="minimal"),
    DecisionConfig(code="minrandom", bits=50),
    DecisionConfig(code="minrandom", bits=100),
    DecisionConfig(code="minimal", head="mtl", width=512),
    DecisionConfig(code="minrandom", bits=50, head="mtl", width=512),
)
"""Softmax and the configurations of the paper (protocol 1 and the length 100 of protocol 3)."""
CHECKSUM = "seal.digest"
"""Checksums of integers, which count for no size."""


def model_size(model: nn.Module, *, weight_bytes: int | None = None) -> DecisionSize:
    """The size of a model's decision layer, coded or stock; by default with the bytes of its own dtype."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if weight_bytes is None:
        weight_bytes = next(head.parameters()).element_size()
    parameters = sum(p.numel() for p in head.parameters())
    if not is_coded(model):
        return DecisionSize.of(parameters, parameters * weight_bytes, 0, 0)
    decision: Any = model.decision
    table, extras = decision.table, decision.corrections
    refinement = None if extras is None else extras.refinement
    named = [*decision.named_buffers(), *head.named_buffers()]
    other = [values.nbytes for name, values in named if not name.startswith("table.") and not name.endswith(CHECKSUM)]
    parameters += sum(p.numel() for p in decision.parameters())
    planes = 0 if table.is_implicit else 2 if table.is_ternary else 1
    symbols = planes * table.num_classes * table.length
    symbols += 0 if refinement is None else refinement.num_tokens * refinement.length
    size = DecisionSize.of(
        parameters + rounded_weights(head) + rounded_weights(decision),
        parameters * weight_bytes + sum(other),
        planes * table.num_classes * packed_row(table.length),
        symbols * UNPACKED_BYTES,
    )
    return size.packed if decision.packed else size


def compare_configurations(shape: ModelShape) -> list[dict[str, Any]]:
    """One row of sizes per usual configuration, with its share of the parameters of Softmax."""
    rows: list[dict[str, Any]] = []
    for config in USUAL:
        size = config.size(shape)
        share = size.head_parameters / shape.softmax_weights
        rows.append({"configuration": config.name(shape.num_classes), "share_of_softmax": share, **size.as_dict()})
    return rows
