"""The hidden layers of an MTL head: one that all bits share, one for every group of bits, or for every bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codehead import heads
from codehead.errors import ConfigurationError

HIDDEN, BITS, WIDTH = 6, 7, 3


def filled(name, **options):
    torch.manual_seed(0)
    head = heads.build(name, HIDDEN, BITS, width=WIDTH, **options).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize(
    ("groups", "owners"), [(1, [0] * 7), (2, [0, 0, 0, 0, 1, 1, 1]), (5, [0, 0, 1, 1, 2, 3, 4]), (7, list(range(7)))]
)
def test_every_bit_reads_the_hidden_layer_of_its_group(groups, owners, activation, bias):
    head = filled("mtl", groups=groups, activation=activation, bias=bias)
    hidden = torch.randn(2, 4, HIDDEN, dtype=torch.float64)
    act = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}[activation]
    expected = []
    for bit, owner in enumerate(owners):
        tower = act(hidden @ head.weight[owner].T + (head.bias[owner] if bias else 0))
        expected.append(tower @ head.output_weight[bit] + (head.output_bias[bit] if bias else 0))
    torch.testing.assert_close(head(hidden), torch.stack(expected, dim=-1))


@pytest.mark.parametrize("bias", [False, True])
def test_a_group_for_every_bit_is_the_default(bias):
    default, grouped = filled("mtl", bias=bias), filled("mtl", groups=BITS, bias=bias)
    torch.nn.init.ones_(grouped.weight)
    grouped.load_state_dict(default.state_dict())
    hidden = torch.randn(4, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(grouped(hidden), default(hidden))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"groups": 1}, 2048 * 512 + 50 * 512),
        ({"groups": 8}, 8 * 2048 * 512 + 50 * 512),
        ({}, 52_454_400),  # the MTL head of the paper
        ({"groups": 8, "bias": True}, 8 * 2049 * 512 + 50 * 513),
    ],
)
def test_parameters(options, parameters):
    assert heads.count_parameters("mtl", 2048, 50, width=512, **options) == parameters


def test_leading_shape_and_dtype_are_kept():
    out = filled("mtl", groups=3).bfloat16()(torch.zeros(2, 0, HIDDEN, dtype=torch.bfloat16))
    assert out.shape == (2, 0, BITS) and out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": None}, r"width=None.*head='linear'"),
        ({"width": 0}, r"width=0.*head='linear'"),
        ({"groups": 0}, "groups=0 is not possible; give a whole number, 1 or more"),
        ({"groups": 8}, "groups=8 is more than the 7 bits"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"group": 2}, "did you mean 'groups'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigurationError, match=message):
        heads.build("mtl", HIDDEN, BITS, **{"width": WIDTH, **options})
