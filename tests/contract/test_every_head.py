"""What every registered head promises."""

from __future__ import annotations

import pytest
import torch

from codehead import heads
from codehead.heads import HEADS

OPTIONS = {"mtl": {"width": 3}}


@pytest.fixture(params=HEADS.names())
def head(request):
    torch.manual_seed(0)
    return heads.build(request.param, 8, 5, **OPTIONS.get(request.param, {}))


def test_maps_hidden_states_to_bit_logits_position_by_position(head):
    hidden = torch.randn(2, 3, 8)
    bits = head(hidden)
    assert bits.shape == (2, 3, 5)
    torch.testing.assert_close(bits[1, 2], head(hidden[1, 2]))


def test_gradients_reach_every_parameter_and_the_hidden_state(head):
    hidden = torch.randn(16, 8, requires_grad=True)
    head(hidden).square().sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_state_dict_round_trip(head):
    other = type(head)(8, 5, **({"width": 3} if hasattr(head, "width") else {}))
    other.load_state_dict(head.state_dict())
    hidden = torch.randn(4, 8)
    assert torch.equal(head(hidden), other(hidden))


def test_has_a_weight_that_cannot_be_a_softmax_matrix_unless_it_has_a_row_per_token(head):
    weight = head.state_dict()["weight"]
    assert weight.dim() != 2 or weight.shape[0] == 5


def test_counted_parameters_are_the_real_ones(head):
    name = next(n for n in HEADS.names() if HEADS.get(n) is type(head))
    counted = heads.count_parameters(name, 8, 5, **OPTIONS.get(name, {}))
    assert counted == sum(p.numel() for p in head.parameters())
