"""Decoders as bilinear forms: every distance here is an inner product with the codeword and with its support.

With x the prediction vector and c a codeword over {−1, 0, +1}, each token score can be written

    score(c) = signed · c + support · |c| + constant

where the three terms depend on the bit logits alone. One matrix product therefore scores all tokens, whatever the
decoder. Larger scores are better; a distance is returned negated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.registry import Registry


class Terms(NamedTuple):
    """The bilinear form of one decoder for given bit logits `(…, n)`."""

    signed: Tensor
    """`(…, n)`: weights of the codeword's symbols."""
    support: Tensor | None
    """`(…, n)`: weights of the codeword's non-zero positions; None if they do not count."""
    constant: Tensor | None
    """`(…, 1)`: added to every score; None if scores mean something only up to a constant of the bit logits."""


DECODERS: Registry[Callable[[Tensor], Terms]] = Registry("decoder")


@DECODERS.register("hamming")
def hamming(bit_logits: Tensor) -> Terms:
    """−½ Σ(1 − sign(z)·c): hard bits; a zero in the codeword (or a bit logit of exactly 0) costs ½."""
    bits = torch.sign(bit_logits)
    return Terms(bits / 2, None, torch.full_like(bits[..., :1], -bits.shape[-1] / 2))


@DECODERS.register("manhattan")
def manhattan(bit_logits: Tensor) -> Terms:
    """−Σ|x − c| with soft bits x = tanh(z/2) = 2σ(z) − 1."""
    x = torch.tanh(bit_logits / 2)
    return Terms(x, x.abs() - 1, -x.abs().sum(-1, keepdim=True))


@DECODERS.register("euclidean")
def euclidean(bit_logits: Tensor) -> Terms:
    """−Σ(x − c)² with soft bits x = tanh(z/2): the squared distance, which ranks as the distance does."""
    x = torch.tanh(bit_logits / 2)
    return Terms(2 * x, torch.full_like(x, -1.0), -x.square().sum(-1, keepdim=True))


@DECODERS.register("likelihood")
def likelihood(bit_logits: Tensor) -> Terms:
    """log Π σ(c·z) over the codeword's non-zero positions, up to a constant: its softmax is the codeword posterior."""
    half = bit_logits / 2
    return Terms(half, half - F.softplus(bit_logits), None)
