"""Longer codewords for frequent tokens: what they add, where they start, what they learn, and that checkpoints hold."""

from __future__ import annotations

import pytest
import torch
from architectures import HIDDEN, VOCAB, make, tokens
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import codehead
from codehead.decoding.extras import Refinement
from codehead.errors import CheckpointError, ConfigurationError
from codehead.evaluation.size import model_size
from codehead.models.hidden import Statistics
from codehead.training.config import Distillation
from codehead.training.distil import distil

COUNTS = torch.arange(VOCAB).double().square()
LAYER = {"code": "itq", "bits": 16, "loss": "codeword", "extra_bit_tokens": 20, "extra_bits": 12, "dense_rows": 5}


def statistics(model):
    return Statistics.of(COUNTS, model.get_input_embeddings()(tokens()).flatten(0, 1).detach())


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def coded(**changes):
    model = make("llama", tied=False)
    return codehead.attach(model, **{**LAYER, **changes}, statistics=statistics(model))


def test_scores_are_those_of_the_definition():
    """½ Σ c z over the code, ½ Σ d y over the further symbols of the most frequent tokens, and the shortlist's rows."""
    model = coded(token_bias=True)
    decision = model.decision
    torch.nn.init.normal_(decision.corrections.token_bias)
    outputs = torch.randn(3, 16 + 12 + 5, dtype=torch.float64)
    z, y, rows = outputs.split([16, 12, 5], dim=-1)
    expected = 0.5 * z @ decision.table.signs().double().T + decision.corrections.token_bias.double()
    further = decision.corrections.refinement
    frequent = range(VOCAB - 20, VOCAB)
    assert further.ids().tolist() == list(frequent)
    for row, token in enumerate(frequent):
        expected[:, token] += 0.5 * y @ further.table.signs()[row].double()
    for row, token in enumerate(range(VOCAB - 1, VOCAB - 6, -1)):
        expected[:, token] += rows[:, row]
    torch.testing.assert_close(decision.logits(outputs), expected)


@pytest.mark.parametrize("num_classes", [9, 16, 300])
def test_tokens_are_marked_by_one_bit_each(num_classes):
    ids = torch.tensor([1, 4, num_classes - 1])
    own = Refinement.of(num_classes, ids, torch.tensor([[1], [0], [3]], dtype=torch.uint8), 2)
    assert own.ids().tolist() == ids.tolist() and own.num_marked == 3
    assert own.members.nbytes == -(-num_classes // 8)
    assert own.table.signs().tolist() == [[1, -1], [-1, -1], [1, 1]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_checkpoint_reloads_bit_for_bit(name, tmp_path):
    model = make(name, tied=False)
    codehead.attach(model, **LAYER, start="old_head", statistics=Statistics(COUNTS))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert model_size(loaded) == model_size(model)
    assert loaded.generate(tokens(), max_new_tokens=2, do_sample=False).shape[1] == tokens().shape[1] + 2


def test_longer_codewords_start_nearer_to_the_old_head():
    def error(**changes):
        """Of the scores of the 40 most frequent tokens, up to what is the same for all tokens."""
        model = make("llama", tied=False)
        old = logits(model)
        codehead.attach(
            model, "itq", bits=16, loss="codeword", start="old_head", statistics=Statistics(COUNTS), **changes
        )
        wrong = logits(model) - old
        return float((wrong - wrong.mean(-1, keepdim=True))[..., -40:].square().mean())

    assert error(extra_bit_tokens=40, extra_bits=24) < 0.8 * error(extra_bit_tokens=40, extra_bits=8) < 0.8 * error()


def test_tokens_with_rows_of_their_own_take_no_bits():
    """What the rows of listed tokens are makes no difference to the codewords of all others."""

    def codewords(factor):
        model = make("llama", tied=False)
        with torch.no_grad():
            model.get_output_embeddings().weight[-5:] *= factor  # the most frequent ones, which are listed
        codehead.attach(model, **{**LAYER, "code": "additive"}, start="old_head", statistics=Statistics(COUNTS))
        further = model.decision.corrections.refinement
        return model.decision.table.signs()[:-5], further.table.signs()[:-5]

    for ours, theirs in zip(codewords(1.0), codewords(3.0), strict=True):
        assert torch.equal(ours, theirs)


def test_distillation_learns_the_further_symbols_too():
    hidden = torch.randn(400, HIDDEN, generator=torch.Generator().manual_seed(0))

    def learnt(rate):
        """Mean divergence from the old head before and after, and whether the further symbols have changed."""
        model = make("llama", tied=False)
        old = model.get_output_embeddings()
        codehead.attach(model, **LAYER, start="old_head", statistics=Statistics.of(COUNTS, hidden))
        further = model.decision.corrections.refinement
        symbols = further.table.signs().clone()
        before = divergence(model, old)
        distil(model, old, hidden, Distillation(100, 64, learning_rate=1e-2, code_learning_rate=rate))
        return before, divergence(model, old), not torch.equal(further.table.signs(), symbols)

    def divergence(model, old):
        with torch.no_grad():
            wanted, found = old(hidden).log_softmax(-1), model.decision.logits(model.get_output_embeddings()(hidden))
        return float(F.kl_div(found.log_softmax(-1), wanted, reduction="batchmean", log_target=True))

    for rate in (0.0, 6e-2):
        before, after, moved = learnt(rate)
        assert after < 0.95 * before
        assert moved == (rate > 0)


def test_folding_keeps_every_score():
    model = coded(token_bias=True, start="old_head")
    expected = logits(model)
    torch.testing.assert_close(logits(codehead.fold(model)), expected, atol=2e-4, rtol=1e-4)


def test_the_size_counts_marks_symbols_rows_and_the_unpacked_matrix():
    plain, longer = (
        model_size(coded(extra_bit_tokens=0, extra_bits=0), weight_bytes=2),
        model_size(coded(), weight_bytes=2),
    )
    stored = 2 * 12 * HIDDEN + 20 * 2 + -(-VOCAB // 8)
    assert longer.bytes_stored - plain.bytes_stored == stored
    assert longer.bytes_resident - plain.bytes_resident == stored + 4 * 20 * 12
    assert longer.head_parameters - plain.head_parameters == 12 * HIDDEN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra_bit_tokens": VOCAB + 1}, "extra_bit_tokens=.* is not between 0 and the number of tokens"),
        ({"extra_bit_tokens": [1, 1]}, "extra_bit_tokens is .* give every token id once"),
        ({"extra_bit_tokens": [7]}, "is one token, for which a dense row is smaller; use dense_rows"),
        ({"extra_bits": 3}, "extra_bits=3 is not possible; give a whole number, 5 or more"),
        ({"extra_bits": None}, "extra_bits is None; give a whole number"),
        ({"extra_bits": 2**26}, "extra_bits=67108864 of 20 tokens: .* choose a shorter code"),
        (
            {"code": "one_vs_all", "bits": None, "dense_rows": 0},
            "extra_bits makes the codewords of a binary code longer",
        ),
        ({"loss": "bitwise"}, "loss='bitwise' cannot train dense rows"),
    ],
)
def test_impossible_refinements_are_named(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        coded(**changes)


def test_marks_that_do_not_fit_the_rows_are_told(tmp_path):
    model = coded()
    model.decision.corrections.refinement.members.fill_(0)
    model.decision.reseal()
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="0 tokens are marked as having extra bits, but 20 rows"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
