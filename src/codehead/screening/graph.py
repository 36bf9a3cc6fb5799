"""A screened head as a graph of plain tensor operations, for ONNX: TopK, Gather, and the exact logits of candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.models.probe import LogitScaling
from codehead.screening.model import screened_head
from codehead.screening.screen import Screen

PIECE = 2**13
"""Rows whose codewords are unpacked at a time."""


class ScreenedGraph(nn.Module):
    """Hidden states `(batch, hidden)` → ids `(batch, m)` of the m candidates and their logits `(batch, m)`, best first.

    The logits are the dense head's. Where torch scans packed codewords, the graph multiplies what they stand for:
    `coded` `(rank, V)`, an ordinary matrix, which tools such as onnxruntime's MatMulNBitsQuantizer round to int4.
    """

    white: Tensor
    shift: Tensor
    coded: Tensor
    rows: Tensor
    bias: Tensor
    scores_bias: Tensor

    def __init__(self, screen: Screen, head: nn.Linear, scaling: LogitScaling) -> None:
        super().__init__()
        self.candidates, self.scaling = screen.settings.candidates, scaling
        white = screen.get("white")
        self.register_buffer("white", white.clone())
        self.register_buffer("shift", -(white @ screen.get("mean")))
        self.register_buffer("coded", _rows(screen).T.contiguous())
        self.register_buffer("rows", head.weight.detach().float())
        bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias.detach().float()
        self.register_buffer("bias", bias)
        self.register_buffer("scores_bias", bias + self.rows @ screen.get("mean"))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(hidden, self.white, self.shift) @ self.coded + self.scores_bias
        ids = scores.topk(self.candidates).indices
        logits = (F.embedding(ids, self.rows) @ hidden.unsqueeze(-1)).squeeze(-1) + self.bias[ids]
        logits, order = self.scaling(logits).topk(self.candidates)
        return ids.gather(-1, order), logits


def exportable(model: Any) -> ScreenedGraph:
    """The head of a screened model for `torch.onnx.export`; its input is the head's, one position per sequence.

    ConfigurationError if the model is not screened, or in mode "exact": whether its candidates suffice is known only
    when it runs.
    """
    head = screened_head(model)
    if head.screen.settings.mode == "exact":
        raise ConfigurationError(
            "mode 'exact' falls back to the dense head where its candidates are not certain, which a graph cannot do; "
            "screen with mode='fast'"
        )
    return ScreenedGraph(head.screen, head, LogitScaling.of(model)).eval()


def _rows(screen: Screen) -> Tensor:
    """Every row decoded from its codeword, in whitened coordinates `(V, rank)`, without the part common to all rows."""
    parts = []
    for plane in screen.plane.split(PIECE):
        bits = np.unpackbits(plane.numpy(), axis=1, count=screen.settings.bits, bitorder="little")
        values = (torch.from_numpy(bits).float() - 0.5) * screen.get("sizes")
        parts.append(torch.zeros(len(plane), screen.settings.rank).index_add(1, screen.coordinates.long(), values))
    return torch.cat(parts)
