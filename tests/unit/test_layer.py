"""The decision layer as a drop-in for a Softmax layer in any module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from codehead import heads
from codehead.codes import build
from codehead.errors import ConfigurationError
from codehead.layer import Decision, DecisionLayer


def test_one_vs_all_with_codeword_loss_is_a_softmax_layer():
    torch.manual_seed(0)
    layer = DecisionLayer(build("one_vs_all", 30), heads.build("linear", 8, 30), loss="codeword")
    softmax = nn.Linear(8, 30, bias=False)
    softmax.weight.data.copy_(layer.head.weight)
    hidden, labels = torch.randn(5, 8), torch.randint(30, (5,))
    assert torch.equal(layer(hidden), softmax(hidden))
    loss, stock = layer.loss(hidden, labels), F.cross_entropy(softmax(hidden), labels)
    loss.backward(), stock.backward()
    assert torch.equal(loss, stock) and torch.equal(layer.head.weight.grad, softmax.weight.grad)


@pytest.mark.parametrize("head", ["linear", "mtl"])
@pytest.mark.parametrize("loss", ["bitwise", "codeword"])
def test_learns_to_tell_tokens_apart(head, loss):
    torch.manual_seed(0)
    options = {"width": 8} if head == "mtl" else {}
    layer = DecisionLayer(build("minrandom", 20, bits=12), heads.build(head, 16, 12, **options), loss=loss)
    hidden, labels = torch.randn(20, 16), torch.arange(20)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        layer.loss(hidden, labels).backward()
        optimizer.step()
    assert (layer.decode(hidden).ids.squeeze(-1) == labels).float().mean() >= 0.95
    assert (layer(hidden).argmax(-1) == labels).float().mean() >= 0.95


def test_saves_its_code_beside_its_weights():
    layer = DecisionLayer(build("minrandom", 20, bits=12, seed=3), heads.build("linear", 16, 12))
    other = DecisionLayer(build("minrandom", 20, bits=12, seed=4), heads.build("linear", 16, 12))
    hidden = torch.randn(4, 16)
    other(hidden)  # fills its working copy of the old code
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(hidden), other(hidden))


def test_copies_and_half_precision_keep_the_code():
    layer = DecisionLayer(build("minrandom", 20, bits=12), heads.build("linear", 16, 12))
    hidden = torch.randn(4, 16)
    expected = layer(hidden)
    assert torch.equal(copy.deepcopy(layer)(hidden), expected)
    half = copy.deepcopy(layer).half()
    assert half(hidden.half()).shape == (4, 20)
    assert torch.equal(half.decision.table.signs(), layer.decision.table.signs())


def test_node_losses_of_the_last_batch_are_kept():
    decision = Decision(build("minrandom", 20, bits=12))
    assert decision.node_loss is None
    value = decision.loss(torch.randn(6, 12, requires_grad=True), torch.arange(6))
    assert decision.node_loss.shape == (12,) and not decision.node_loss.requires_grad
    torch.testing.assert_close(decision.node_loss.mean(), value.detach())


def test_a_head_of_another_length_is_refused():
    with pytest.raises(ConfigurationError, match="the head gives 11 outputs but the decision layer reads 12"):
        DecisionLayer(build("minrandom", 20, bits=12), heads.build("linear", 16, 11))


def test_unknown_loss_and_decoder_are_refused_at_once():
    with pytest.raises(ConfigurationError, match="did you mean 'bitwise'"):
        Decision(build("minimal", 4), loss="bitwize")
    with pytest.raises(ConfigurationError, match="did you mean 'hamming'"):
        Decision(build("minimal", 4), decoder="haming")
