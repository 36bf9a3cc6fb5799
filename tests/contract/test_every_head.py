"""What every registered head promises."""

from __future__ import annotations

import pytest
import torch

from codehead import heads
from codehead.codes import build
from codehead.heads import HEADS
from codehead.layer import DecisionLayer

OPTIONS = {
    "mtl": {"width": 3},
    "low_rank": {"rank": 3},
    "adaptive": {"cutoffs": [6, 12], "bias": True},
    "chain": {"width": 3, "block": 2},
}
CODES = {"adaptive": "one_vs_all"}  # others take any code, here a minimal one of 5 bits
LOSSES = {"adaptive": "codeword"}
CLASSES = 23


def name_of(head):
    return next(name for name in HEADS.names() if HEADS.get(name) is type(head))


def code_of(name):
    return build(CODES.get(name, "minimal"), CLASSES)


def new(name):
    return heads.build(name, 8, code_of(name).length, **OPTIONS.get(name, {}))


@pytest.fixture(params=HEADS.names())
def head(request):
    torch.manual_seed(0)
    return new(request.param)


@pytest.fixture
def layer(head):
    return DecisionLayer(code_of(name_of(head)), head, loss=LOSSES.get(name_of(head), "bitwise"))


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
    other = new(name_of(head))
    other.load_state_dict(head.state_dict())
    hidden = torch.randn(4, 8)
    assert torch.equal(head(hidden), other(hidden))


def test_has_a_weight_that_cannot_be_taken_for_a_softmax_matrix(head):
    assert head.state_dict()["weight"].shape != (CLASSES, 8)


def test_counted_parameters_are_those_of_the_whole_decision_layer(head, layer):
    described = name_of(head), 8, code_of(name_of(head)).length
    options = OPTIONS.get(name_of(head), {})
    assert heads.count_parameters(*described, **options) == sum(p.numel() for p in layer.parameters())
