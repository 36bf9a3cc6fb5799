"""Heads: parameter counts of the paper, the arithmetic of MTL nodes, options."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codehead import heads
from codehead.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "bits", "options", "parameters"),
    [
        ("linear", 50272, {}, 102_957_056),  # "without ECOC"
        ("linear", 16, {}, 32_768),
        ("linear", 50, {}, 102_400),
        ("mtl", 16, {"width": 512}, 16_785_408),
        ("mtl", 50, {"width": 512}, 52_454_400),
    ],
)
def test_parameter_counts_printed_in_the_paper(name, bits, options, parameters):
    assert heads.count_parameters(name, 2048, bits, **options) == parameters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_mtl_equals_a_loop_over_its_nodes(activation, bias):
    torch.manual_seed(0)
    head = heads.build("mtl", 6, 5, width=3, activation=activation, bias=bias).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 4, 6, dtype=torch.float64)
    act = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}[activation]
    nodes = []
    for i in range(5):
        inner = hidden @ head.weight[i].T + (head.bias[i] if bias else 0)
        nodes.append((act(inner) * head.output_weight[i]).sum(-1) + (head.output_bias[i] if bias else 0))
    torch.testing.assert_close(head(hidden), torch.stack(nodes, dim=-1))


def test_mtl_first_layer_cannot_be_mistaken_for_a_softmax_matrix():
    assert heads.build("mtl", 8, 4, width=2).state_dict()["weight"].dim() == 3


def test_heads_keep_leading_shape_and_dtype():
    for name, options in [("linear", {}), ("mtl", {"width": 3})]:
        head = heads.build(name, 8, 5, **options).bfloat16()
        out = head(torch.zeros(2, 0, 8, dtype=torch.bfloat16))
        assert out.shape == (2, 0, 5) and out.dtype == torch.bfloat16


@pytest.mark.parametrize("width", [None, 0])
def test_mtl_without_width_names_the_remedy(width):
    with pytest.raises(ConfigurationError, match=r"width.*head='linear'"):
        heads.build("mtl", 8, 4, width=width)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heads.build("lineer", 8, 4), "did you mean 'linear'"),
        (lambda: heads.build("mtl", 8, 4, widht=4), "did you mean 'width'"),
        (lambda: heads.build("mtl", 8, 4, width=-3), "width=-3 is not possible; give a whole number, 1 or more"),
        (
            lambda: heads.build("mtl", 8, 4, width=2, activation="rleu"),
            "unknown activation 'rleu'; did you mean 'relu'",
        ),
        (lambda: heads.build("linear", 8, 0), "num_bits=0 is not possible; give a whole number, 1 or more"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
