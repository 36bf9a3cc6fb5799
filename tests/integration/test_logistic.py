"""Heads that start from logistic regressions on hidden states."""

from __future__ import annotations

import pytest
import torch
from architectures import HIDDEN, VOCAB, make

import codehead
from codehead.training import logistic
from codehead.training.logistic import fit_bits


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
        {"bits": 24, "head_params": {"bias": True}},
        {"bits": 24, "head": "mtl", "width": 8},
        {"bits": 24, "loss": "codeword", "token_bias": True, "shortlist": [1, 2]},
        {"code": "minimal", "head": "chain", "width": 8, "head_params": {"block": 4}},
    ],
    ids=["linear", "mtl", "corrected", "chain"],
)
def test_the_likelihood_of_labels_rises(layer, seen, monkeypatch):
    monkeypatch.setattr(logistic, "STEPS", 60)
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
    monkeypatch.setattr(logistic, "STEPS", 2)
    model = codehead.attach(make("llama", tied=False).to(torch.bfloat16), bits=16)
    fit_bits(model.get_output_embeddings(), model.decision, *seen, torch.Generator())
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
