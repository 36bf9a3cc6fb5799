"""A shortlist that splits the probability with the code, and a scale per token: definitions, start, checkpoints."""

from __future__ import annotations

import pytest
import torch
from architectures import HIDDEN, VOCAB, make, tokens
from transformers import AutoModelForCausalLM

import codehead
from codehead.errors import ConfigurationError
from codehead.evaluation.size import model_size
from codehead.models.hidden import Statistics
from codehead.training.config import Distillation
from codehead.training.distil import distil

LISTED = [7, 2, 100]
SPLIT = {"bits": 16, "loss": "codeword", "dense_rows": LISTED, "shortlist_split": True, "token_bias": True}
SCALED = {"bits": 16, "loss": "codeword", "token_scale": True}


def coded(**layer):
    model = codehead.attach(make("llama", tied=False), **layer)
    for parameter in model.decision.parameters():
        torch.nn.init.normal_(parameter)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def test_a_split_shares_the_probability_between_the_listed_tokens_and_the_code():
    decision = coded(**SPLIT).decision
    outputs = torch.randn(5, 16 + 3 + 1, dtype=torch.float64)
    found = decision.logits(outputs)
    corrections = decision.corrections
    bias = torch.cat([corrections.token_bias[LISTED], corrections.other_bias]).double()
    shares = (outputs[:, 16:] + bias).softmax(-1)
    torch.testing.assert_close(found[:, LISTED].exp(), shares[:, :3])
    rest = [token for token in range(VOCAB) if token not in LISTED]
    code = 0.5 * outputs[:, :16] @ decision.table.signs().double().T + decision.corrections.token_bias.double()
    torch.testing.assert_close(found[:, rest].exp(), shares[:, 3:] * code[:, rest].softmax(-1))
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_gradients_of_a_split_are_finite():
    model = coded(**SPLIT)
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    parts = [*model.get_output_embeddings().parameters(), *model.decision.parameters()]
    assert all(torch.isfinite(part.grad).all() for part in parts)


def test_a_scale_multiplies_what_a_codeword_scores():
    decision = coded(**SCALED).decision
    z = torch.randn(5, 16, dtype=torch.float64)
    expected = 0.5 * z @ decision.table.signs().double().T * decision.corrections.token_scale.double()
    torch.testing.assert_close(decision.logits(z), expected)


@pytest.mark.parametrize("layer", [SPLIT, SCALED, {**SPLIT, "token_scale": True}], ids=["split", "scaled", "both"])
def test_checkpoints_and_int8(layer, tmp_path):
    model = coded(**layer)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model)) and model_size(loaded) == model_size(model)
    codehead.to_int8(loaded).save_pretrained(tmp_path / "int8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert torch.equal(logits(again), logits(loaded))


def test_a_scale_folds_and_a_split_does_not():
    model = coded(**SCALED, token_bias=True, dense_rows=LISTED)
    expected = logits(model)
    torch.testing.assert_close(logits(codehead.fold(model)), expected, atol=2e-4, rtol=1e-4)
    with pytest.raises(ConfigurationError, match="cannot fold a shortlist that splits"):
        codehead.fold(coded(**SPLIT))


def test_a_split_starts_near_the_old_head_and_learns_from_it():
    model = make("llama", tied=False)
    old, hidden = model.get_output_embeddings(), torch.randn(500, HIDDEN, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(old.weight, std=0.3)
    counts = torch.zeros(VOCAB)
    counts[LISTED] = 100.0
    layer = {**SPLIT, "code": "itq", "start": "old_head", "statistics": Statistics.of(counts, hidden)}
    codehead.attach(model, **layer)

    def far(tokens_):
        with torch.no_grad():
            found = model.decision.logits(model.get_output_embeddings()(hidden)).softmax(-1)
            return float(
                (found - old(hidden).softmax(-1))[:, tokens_].abs().mean() / old(hidden).softmax(-1)[:, tokens_].mean()
            )

    assert far(LISTED) < 0.25
    before = far(slice(None))
    distil(model, old, hidden, Distillation(steps=60, batch_tokens=64, learning_rate=1e-2))
    assert far(slice(None)) < before


@pytest.mark.parametrize("shortlist", [0, list(range(VOCAB))])
def test_a_split_needs_tokens_on_both_sides(shortlist):
    with pytest.raises(ConfigurationError, match=r"parts the .* tokens in two, but the shortlist has"):
        codehead.attach(make("llama"), **{**SPLIT, "dense_rows": shortlist})
