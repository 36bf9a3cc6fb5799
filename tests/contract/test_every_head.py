"""What every registered head promises."""

from __future__ import annotations

import pytest
import torch

from codehead import heads
from codehead.codes import build
from codehead.heads import HEADS
from codehead.layer import DecisionLayer

OPTIONS = {"mtl": {"width": 3}, "low_rank": {"rank": 3}, "chain": {"width": 3, "block": 2}}

CLASSES = 23  # of a minimal code of 5 bits


def name_of(head):
    return next(name for name in HEADS.names() if HEADS.get(name) is type(head))


@pytest.fixture(params=HEADS.names())
def head(request):
    torch.manual_seed(0)
    return heads.build(request.param, 8, 5, **OPTIONS.get(request.param, {}))


@pytest.fixture
def layer(head):
    return DecisionLayer(build("minimal", CLASSES), head)


def test_maps_hidden_states_to_what_the_decision_layer_reads_position_by_position(head, layer):
    hidden = torch.randn(2, 3, 8)
    outputs = head(hidden)
    assert outputs.shape == (2, 3, layer.decision.num_outputs)
    torch.testing.assert_close(outputs[1, 2], head(hidden[1, 2]))


def test_learns_and_decodes_what_it_gives_the_highest_score(layer):
    hidden, labels = torch.randn(CLASSES, 8), torch.arange(CLASSES).flip(0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    before = layer.loss(hidden, labels).item()
    for _ in range(40):
        optimizer.zero_grad()
        layer.loss(hidden, labels).backward()
        optimizer.step()
    assert layer.loss(hidden, labels) < 0.9 * before
    assert torch.equal(layer.decode(hidden).ids.squeeze(-1), layer(hidden).argmax(-1))


def test_gradients_reach_every_parameter_and_the_hidden_state(head):
    hidden = torch.randn(16, 8, requires_grad=True)
    head(hidden).square().sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_state_dict_round_trip(head):
    other = heads.build(name_of(head), 8, 5, **OPTIONS.get(name_of(head), {}))
    other.load_state_dict(head.state_dict())
    hidden = torch.randn(4, 8)
    assert torch.equal(head(hidden), other(hidden))


def test_has_a_weight_that_cannot_be_taken_for_a_softmax_matrix(head):
    assert head.state_dict()["weight"].shape != (CLASSES, 8)


def test_counted_parameters_are_those_of_the_whole_decision_layer(head, layer):
    counted = heads.count_parameters(name_of(head), 8, 5, **OPTIONS.get(name_of(head), {}))
    assert counted == sum(p.numel() for p in layer.parameters())
