"""Calibration: honest posteriors from scales that are folded into the head."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from codehead import heads
from codehead.codes import build
from codehead.decoding.extras import Corrections, ExtendedHead
from codehead.errors import ConfigurationError, DataError
from codehead.heads.feedforward import scale_outputs
from codehead.layer import DecisionLayer
from codehead.models.calibration import calibrate, fit_scales
from codehead.models.rounding import round_parts, rounded_weights

CLASSES, HIDDEN = 60, 12
SCALABLE = {
    "linear": {"bias": True},
    "mtl": {"width": 3, "bias": True},
    "low_rank": {"rank": 4, "bias": True},
    "mtl in groups": {"width": 5, "groups": 2, "bias": True},
}


def text(tokens, seed):
    """Hidden states around one point per class, too close together to be told apart for certain."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, HIDDEN, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(CLASSES, (tokens,), generator=generator)
    return centres[labels] + torch.randn(tokens, HIDDEN, generator=generator), labels


@pytest.fixture(scope="module")
def bitwise():
    """A linear head on a long code, trained bit by bit: right about bits, far too sure about tokens."""
    torch.manual_seed(0)
    layer = DecisionLayer(build("minrandom", CLASSES, bits=120), heads.build("linear", HIDDEN, 120, bias=True))
    hidden, labels = text(2000, seed=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        layer.loss(hidden, labels).backward()
        optimizer.step()
    return layer.state_dict()


@pytest.fixture
def layer(bitwise):
    layer = DecisionLayer(build("minrandom", CLASSES, bits=120), heads.build("linear", HIDDEN, 120, bias=True))
    layer.load_state_dict(bitwise)
    return layer


@torch.no_grad()
def perplexity(layer, hidden, labels):
    return math.exp(F.cross_entropy(layer(hidden), labels))


def test_a_head_trained_bit_by_bit_becomes_honest_about_text_it_has_not_seen(layer):
    fresh, held_out = text(1500, seed=2), text(1500, seed=3)
    before = perplexity(layer, *held_out)
    found = calibrate(layer, layer.head(fresh[0]), fresh[1])
    after = perplexity(layer, *held_out)
    assert after < 0.7 * before
    assert found.perplexity_after < found.perplexity_before and found.tokens == 1500 and len(found.scales) == 120
    assert perplexity(layer, *fresh) == pytest.approx(found.perplexity_after, rel=1e-4)


def test_a_temperature_changes_no_ranking_and_scales_per_bit_fit_no_worse(layer):
    hidden, labels = text(1500, seed=2)
    old, outputs = layer.decode(hidden, k=5).ids, layer.head(hidden).detach()
    per_bit = fit_scales(layer.decision, outputs, labels)
    common = calibrate(layer, outputs, labels, per_bit=False)
    assert len(common.scales) == 1 and common.scales[0] < 0.7
    assert torch.equal(layer.decode(hidden, k=5).ids, old)
    assert per_bit.perplexity_after < common.perplexity_after < common.perplexity_before


def test_the_temperature_is_the_best_of_all(layer):
    hidden, labels = text(400, seed=2)
    outputs = layer.head(hidden).detach().double()
    (scale,) = fit_scales(layer.decision, outputs, labels, per_bit=False).scales

    def nats(factor):
        return float(F.cross_entropy(layer.decision.logits(factor * scale * outputs), labels))

    assert nats(1.0) < min(nats(0.98), nats(1.02))


def test_at_the_optimum_no_bit_gains_by_another_scale(layer):
    hidden, labels = text(1000, seed=2)
    outputs = layer.head(hidden).detach().double()
    scales = torch.tensor(fit_scales(layer.decision, outputs, labels).scales).double().requires_grad_()
    F.cross_entropy(layer.decision.logits(outputs * scales), labels).backward()
    assert (scales.grad * scales).abs().max() < 2e-3


def test_pieces_change_nothing(layer, monkeypatch):
    hidden, labels = text(300, seed=2)
    outputs = layer.head(hidden).detach().double()
    whole = fit_scales(layer.decision, outputs, labels)
    monkeypatch.setattr("codehead.models.calibration.CHUNK_SCORES", 70 * CLASSES)
    assert fit_scales(layer.decision, outputs, labels).scales == pytest.approx(whole.scales, rel=1e-6)


@pytest.mark.parametrize("name", SCALABLE)
@pytest.mark.parametrize("listed", [0, 3])
def test_folding_is_scaling_the_outputs(name, listed):
    torch.manual_seed(0)
    head = heads.build(name.split()[0], HIDDEN, 9, **SCALABLE[name])
    head = (ExtendedHead(head, HIDDEN, listed) if listed else head).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden, scales = torch.randn(20, HIDDEN).double(), torch.rand(9).double() + 0.5
    wanted = head(hidden) * torch.cat([scales, torch.ones(listed)])
    scale_outputs(head, scales)
    torch.testing.assert_close(head(hidden), wanted, rtol=1e-12, atol=1e-12)
    scale_outputs(head, torch.tensor([2.0]))
    torch.testing.assert_close(head(hidden)[:, :9], 2 * wanted[:, :9], rtol=1e-12, atol=1e-12)


def corrected():
    """A layer with rows for a shortlist and a bias per token, both large."""
    torch.manual_seed(0)
    corrections = Corrections(CLASSES, torch.tensor([3, 8]), token_bias=True)
    torch.nn.init.normal_(corrections.token_bias)
    head = ExtendedHead(heads.build("linear", HIDDEN, 16), HIDDEN, 2)
    torch.nn.init.normal_(head.rows.weight)
    return DecisionLayer(build("minrandom", CLASSES, bits=16), head, loss="codeword", corrections=corrections)


def test_rows_and_biases_of_tokens_stay(layer):
    layer = corrected()
    kept = layer.head.rows.weight.clone(), layer.decision.corrections.token_bias.clone()
    hidden, labels = text(500, seed=2)
    before = perplexity(layer, hidden, labels)
    found = calibrate(layer, layer.head(hidden), labels)
    assert before > perplexity(layer, hidden, labels) == pytest.approx(found.perplexity_after, rel=1e-4)
    assert torch.equal(layer.head.rows.weight, kept[0]) and torch.equal(layer.decision.corrections.token_bias, kept[1])
    assert layer.decision.corrections.token_bias.grad is None


def test_ignored_labels_do_not_count(layer):
    hidden, labels = text(300, seed=2)
    outputs = layer.head(hidden).detach().reshape(3, 100, -1)
    ignored = labels.reshape(3, 100).clone()
    ignored[2] = -100
    some = fit_scales(layer.decision, outputs[:2], ignored[:2])
    assert fit_scales(layer.decision, outputs, ignored) == some


def test_one_vs_all_has_one_temperature():
    torch.manual_seed(0)
    layer = DecisionLayer(build("one_vs_all", CLASSES), heads.build("linear", HIDDEN, CLASSES), loss="codeword")
    hidden, labels = text(300, seed=2)
    with pytest.raises(ConfigurationError, match="one temperature"):
        calibrate(layer, layer.head(hidden), labels)
    before = perplexity(layer, hidden, labels)
    found = calibrate(layer, layer.head(hidden), labels, per_bit=False)
    assert before > perplexity(layer, hidden, labels) == pytest.approx(found.perplexity_after, rel=1e-4)


def test_a_head_that_ends_in_no_linear_map_is_refused():
    layer = DecisionLayer(build("minimal", CLASSES), heads.build("chain", HIDDEN, 6, width=2))
    hidden, labels = text(20, seed=2)
    with pytest.raises(ConfigurationError, match="a ChainHead cannot be scaled"):
        calibrate(layer, layer.head(hidden), labels)
    with pytest.raises(ConfigurationError, match="has no decision layer to calibrate"):
        calibrate(torch.nn.Linear(2, 2), hidden, labels)


@pytest.mark.parametrize("name", ["linear", "mtl"])
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_scaled_by_the_scales_of_their_rows(name, bits):
    torch.manual_seed(0)
    head = ExtendedHead(heads.build(name.split()[0], HIDDEN, 9, **{**SCALABLE[name], "bias": False}), HIDDEN, 2)
    torch.nn.init.normal_(head.rows.weight)
    round_parts(head, torch.nn.Module(), bits)
    hidden, scales = torch.randn(20, HIDDEN), torch.rand(9) + 0.5
    wanted = head(hidden) * torch.cat([scales, torch.ones(2)])
    scale_outputs(head, scales)
    torch.testing.assert_close(head(hidden), wanted)
    assert rounded_weights(head) > 0


def test_what_has_no_scale_per_bit_is_refused():
    rounded, normed = (heads.build("linear", HIDDEN, 9, bias=True) for _ in range(2))
    round_parts(rounded, torch.nn.Module(), 8)
    torch.nn.utils.parametrizations.weight_norm(normed)
    for head, name in ((rounded, "bias"), (normed, "weight")):
        with pytest.raises(ConfigurationError, match=f"^{name} of this .* no scale per bit"):
            scale_outputs(head, torch.ones(9))


def test_a_decoder_that_is_fitted_comes_after(layer):
    hidden, labels = text(200, seed=2)
    outputs = layer.head(hidden).detach()
    layer.decision.decoder_name = "probabilistic"
    calibrate(layer, outputs, labels, per_bit=False)
    layer.decision.fit_decoder(outputs, labels)
    with pytest.raises(ConfigurationError, match="call fit_decoder after it"):
        calibrate(layer, outputs, labels, per_bit=False)


def test_what_cannot_be_fitted_to_is_named(layer):
    hidden, labels = text(20, seed=2)
    outputs = layer.head(hidden).detach()
    with pytest.raises(ConfigurationError, match=r"must be \(…, 120\)"):
        calibrate(layer, outputs[:, :-1], labels)
    with pytest.raises(ConfigurationError, match="do not fit"):
        calibrate(layer, outputs, labels[:-1])
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        calibrate(layer, outputs / 0, labels)
    with pytest.raises(DataError, match=r"0 … 59, found 60 … 60"):
        calibrate(layer, outputs, torch.full_like(labels, CLASSES))
    with pytest.raises(DataError, match="found none"):
        calibrate(layer, outputs, torch.full_like(labels, -100))
