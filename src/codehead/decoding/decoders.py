"""The registry of decoders, and those that are one bilinear form of the bit logits.

A decoder is a function from bit logits `(…, n)` to a form that scores codewords; larger scores are better, and a
distance is returned negated. With bit logits z and soft bits x = tanh(z/2) = 2σ(z) − 1 in the ±1 scale of the codeword.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.decoding.fitted import FittedDecoder
from codehead.decoding.forms import Form
from codehead.decoding.terms import Terms
from codehead.registry import Registry

Decoder = Callable[[Tensor], Form] | FittedDecoder
DECODERS: Registry[Decoder] = Registry("decoder")


@DECODERS.register("hamming")
def hamming(bit_logits: Tensor) -> Terms:
    """−½ Σ(1 − sign(z)·c): hard bits; a zero in the codeword (or a bit logit of exactly 0) costs ½."""
    bits = torch.sign(bit_logits)
    return Terms(bits / 2, None, torch.full_like(bits[..., :1], -bits.shape[-1] / 2))


@DECODERS.register("manhattan")
def manhattan(bit_logits: Tensor) -> Terms:
    """−Σ|x − c| with soft bits x = tanh(z/2)."""
    x = torch.tanh(bit_logits / 2)
    return Terms(x, x.abs() - 1, -x.abs().sum(-1, keepdim=True))


@DECODERS.register("euclidean")
def euclidean(bit_logits: Tensor) -> Terms:
    """−Σ(x − c)² with soft bits x = tanh(z/2): the squared distance, which ranks as the distance does."""
    x = torch.tanh(bit_logits / 2)
    return Terms(2 * x, torch.full_like(x, -1.0), -x.square().sum(-1, keepdim=True))


@DECODERS.register("attenuated_euclidean")
def attenuated_euclidean(bit_logits: Tensor) -> Terms:
    """−Σ|c|(x − c)²: the squared distance over the non-zero positions (Escalera, Pujol, Radeva 2010, AED)."""
    x = torch.tanh(bit_logits / 2)
    return Terms(2 * x, -(x.square() + 1), torch.zeros_like(x[..., :1]))


@DECODERS.register("likelihood")
def likelihood(bit_logits: Tensor) -> Terms:
    """log Π σ(c·z) over the codeword's non-zero positions, up to a constant: its softmax is the codeword posterior."""
    half = bit_logits / 2
    return Terms(half, half + F.logsigmoid(-bit_logits), None)


@DECODERS.register("loss_linear")
def loss_linear(bit_logits: Tensor) -> Terms:
    """−Σ L(c·z) with L(θ) = −θ (Allwein, Schapire, Singer 2000): the sum of the margins."""
    return Terms(bit_logits, None, torch.zeros_like(bit_logits[..., :1]))
