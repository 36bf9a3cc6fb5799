"""The adaptive softmax as a head: its definition, its order of tokens, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import AdaptiveLogSoftmaxWithLoss

from codehead import heads
from codehead.codes import build
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError
from codehead.layer import DecisionLayer

HIDDEN, V, CUTOFFS = 16, 60, [7, 25]


def adaptive(**options):
    torch.manual_seed(0)
    head = heads.build("adaptive", HIDDEN, V, **{"cutoffs": CUTOFFS, **options})
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize(("cutoffs", "div_value"), [([7], 4.0), ([7, 25], 4.0), ([7, 25, 50], 2.5)])
def test_without_a_bias_it_is_the_adaptive_softmax_of_torch(cutoffs, div_value):
    head = adaptive(cutoffs=cutoffs, div_value=div_value).double()
    reference = AdaptiveLogSoftmaxWithLoss(HIDDEN, V, cutoffs, div_value).double()
    reference.head.weight.data.copy_(head.weight)
    for (down, up), tail in zip(reference.tail, head.tail, strict=True):
        down.weight.data.copy_(tail.weight)
        up.weight.data.copy_(tail.output_weight)
    hidden = torch.randn(5, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(head(hidden), reference.log_prob(hidden))


def test_with_a_bias_it_is_its_two_steps():
    head = adaptive(bias=True).double()
    hidden = torch.randn(HIDDEN, dtype=torch.float64)
    top = (head.weight @ hidden + head.bias).softmax(-1)
    expected = [top[:7]]
    for share, tail in zip(top[7:], head.tail, strict=True):
        expected.append(share * (tail.output_weight @ (tail.weight @ hidden) + tail.output_bias).softmax(-1))
    torch.testing.assert_close(head(hidden).exp(), torch.cat(expected))


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_normalised_exactly(bias):
    head = adaptive(bias=bias).double()
    head.sort_by(torch.rand(V))
    total = head(3 * torch.randn(2, 5, HIDDEN, dtype=torch.float64)).logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros(2, 5, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probabilities_of_a_head_in_half_precision_are_normalised_in_float32(dtype):
    outputs = adaptive(bias=True).to(dtype)(torch.randn(4, HIDDEN).to(dtype))
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.logsumexp(-1), torch.zeros(4), rtol=0, atol=1e-5)


def test_automatic_mixed_precision_leaves_them_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert adaptive()(torch.randn(4, HIDDEN)).dtype == torch.float32


def test_counts_order_the_tokens_and_ties_go_by_id():
    head, hidden = adaptive(), torch.randn(3, HIDDEN)
    plain = head(hidden)
    counts = torch.zeros(V)
    counts[[40, 3, 50]] = torch.tensor([9.0, 5.0, 7.0])
    head.sort_by(counts)
    frequent, *_ = parts = head.parts()
    assert frequent.tolist() == [40, 50, 3, 0, 1, 2, 4] and [len(part) for part in parts] == [7, 18, 35]
    assert head.order.dtype == torch.int32 and head.order[[40, 50, 3, 0]].tolist() == [0, 1, 2, 3]
    assert torch.equal(head(hidden)[:, torch.cat(parts)], plain)


def test_counts_of_other_tokens_are_refused():
    with pytest.raises(ConfigurationError, match=r"counts of shape \(3,\) .* 60 tokens"):
        adaptive().sort_by(torch.ones(3))


def test_the_order_is_saved():
    head, other = adaptive(), adaptive()
    head.sort_by(torch.rand(V))
    assert not torch.equal(head.order, other.order)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.order, other.order)


def test_the_weight_cannot_be_taken_for_that_of_softmax():
    for cutoffs in ([58], [V - 3], [1, 30]):
        head = heads.build("adaptive", 2, V, cutoffs=cutoffs)
        assert head.weight.shape[0] < V


def test_its_loss_is_that_of_its_log_probabilities():
    layer = DecisionLayer(build("one_vs_all", V), adaptive(), loss="codeword")
    hidden, labels = torch.randn(4, HIDDEN), torch.tensor([0, 8, 59, -100])
    expected = -layer.head(hidden)[range(3), [0, 8, 59]].mean()
    torch.testing.assert_close(layer.loss(hidden, labels), expected)
    assert torch.equal(layer.decode(hidden).ids.squeeze(-1), layer(hidden).argmax(-1))


def test_size_is_that_of_the_parameters_in_bf16_and_four_bytes_a_token():
    config = DecisionConfig(code="one_vs_all", head="adaptive", head_params={"cutoffs": CUTOFFS, "bias": True})
    size = config.size(ModelShape(HIDDEN, V))
    parameters = 9 * (HIDDEN + 1) + 4 * HIDDEN + 18 * (4 + 1) + 1 * HIDDEN + 35 * (1 + 1)
    assert size.head_parameters == parameters == sum(p.numel() for p in adaptive(bias=True).parameters())
    assert size.bytes_stored == size.bytes_resident == size.bytes_read_per_token == 2 * parameters + 4 * V


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": None}, "needs cutoffs"),
        ({"cutoffs": []}, "needs cutoffs"),
        ({"cutoffs": 7}, "got cutoffs=7"),
        ({"cutoffs": [0, 7]}, "rises from 1"),
        ({"cutoffs": [7, 7]}, "rises from 1"),
        ({"cutoffs": [25, 7]}, "rises from 1"),
        ({"cutoffs": [7, V]}, f"less than the {V} tokens"),
        ({"cutoffs": [7.5]}, "a list of ranks"),
        ({"cutoffs": [True]}, "a list of ranks"),
        ({"cutoffs": [7, 10]}, "leave 3 tokens to cluster 1, which has rank 4"),
        ({"cutoffs": [V - 1]}, "leave 1 tokens to cluster 1"),
        ({"div_value": 0.5}, "div_value=0.5"),
        ({"div_value": float("nan")}, "div_value=nan"),
        ({"div_value": "4"}, "div_value='4'"),
        ({"cutofs": [7]}, "did you mean 'cutoffs'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        heads.build("adaptive", HIDDEN, V, **{"cutoffs": CUTOFFS, **options})
