"""Heads that start from logistic regressions on hidden states."""

from __future__ import annotations

import pytest
import torch
from architectures import HIDDEN, VOCAB, make

import codehead
from codehead.training import ecoc_one
from codehead.training.ecoc_one import fit_bits


@pytest.fixture
def seen():
    """Hidden states that tell their label: noisy prototypes."""
    generator = torch.Generator().manual_seed(0)
    prototypes = 2 * torch.randn(VOCAB, HIDDEN, generator=generator)
    labels = torch.randint(VOCAB, (3000,), generator=generator)
    return prototypes[labels] + 0.3 * torch.randn(3000, HIDDEN, generator=generator), labels


@pytest.mark.parametrize(
    "layer",
    [
        {"code": "minrandom", "bits": 24, "head_params": {"bias": True}},
        {"code": "minrandom", "bits": 24, "head": "mtl", "width": 8},
        {"code": "minrandom", "bits": 24, "loss": "codeword", "token_bias": True, "dense_rows": [1, 2]},
        {"code": "minimal", "head": "chain", "width": 8, "head_params": {"block": 4}},
    ],
    ids=["linear", "mtl", "corrected", "chain"],
)
def test_the_likelihood_of_labels_rises(layer, seen, monkeypatch):
    monkeypatch.setattr(ecoc_one, "STEPS", 60)
    model = codehead.attach(make("llama", tied=False), **layer)
    head, decision, done = model.get_output_embeddings(), model.decision, []

    def nats():
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(decision.logits(head(seen[0])), seen[1]))

    before = nats()
    fit_bits(head, decision, *seen, torch.Generator().manual_seed(0), lambda step, steps: done.append((step, steps)))
    assert nats() < 0.9 * before
    assert done[-1] == (60, 60)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_head_keeps_its_dtype(seen, monkeypatch):
    """And learns what a float32 one does: steps of a bias are smaller than bfloat16 tells apart."""
    monkeypatch.setattr(ecoc_one, "STEPS", 20)
    biases = []
    for dtype in (torch.float32, torch.bfloat16):
        model = codehead.attach(
            make("llama", tied=False).to(dtype), "minrandom", bits=16, loss="codeword", token_bias=True
        )
        with torch.no_grad():
            model.decision.corrections.token_bias.fill_(-12.0)
        fit_bits(model.get_output_embeddings(), model.decision, *seen, torch.Generator())
        assert {values.dtype for values in model.parameters()} == {dtype}
        biases.append(model.decision.corrections.token_bias.detach().float())
    torch.testing.assert_close(biases[1], biases[0], rtol=0, atol=0.1)
    assert float((biases[0] + 12).abs().mean()) > 0.05
