"""The ECOC head (n, 0): one linear map from the hidden state to the bit logits."""

from __future__ import annotations

from torch import nn

from codehead.heads.base import HEADS, require_positive


@HEADS.register("linear")
class LinearHead(nn.Linear):
    """Hidden states `(…, hidden)` → bit logits `(…, num_bits)`.

    With `bias=False` (the default) it has `hidden · num_bits` parameters. With the one_vs_all code it is the
    Softmax layer itself.
    """

    def __init__(self, hidden_size: int, num_bits: int, bias: bool = False) -> None:
        super().__init__(
            require_positive("hidden_size", hidden_size),
            require_positive("num_bits", num_bits),
            bias=bool(bias),
        )
