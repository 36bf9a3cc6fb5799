"""A new head that starts near the Softmax head it replaces."""

from __future__ import annotations

import pytest
import torch
from architectures import HIDDEN, MODERN, VOCAB, make, tokens
from transformers import AutoModelForCausalLM, PhiConfig

import codehead
from codehead.errors import ConfigurationError
from codehead.models.hidden import Statistics

CORRECTED = {"loss": "codeword", "token_bias": True}


def logits(model):
    with torch.no_grad():
        scores = model.eval()(input_ids=tokens()).logits.double()
    return scores - scores.mean(-1, keepdim=True)


def untied(name="llama", std=0.3):
    model = make(name, tied=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=std, generator=torch.Generator().manual_seed(2))
    return model


def attached(**options):
    return codehead.attach(untied(), "itq", start="old_head", **options)


def error(model, wanted):
    return ((logits(model) - wanted).norm() / wanted.norm()).item()


def test_more_bits_come_nearer_and_enough_bits_are_exact():
    wanted = logits(untied())
    errors = [error(attached(bits=bits), wanted) for bits in (16, 48, VOCAB + 20)]
    assert 1 > errors[0] > errors[1] + 0.05 and errors[2] < 1e-3
    assert error(codehead.attach(untied(), "itq", bits=48), wanted) > 2 * errors[1]


@pytest.mark.parametrize(("code", "bits"), [("minrandom", 20), ("itq", 20), ("merged_decoc", None)])
def test_it_is_the_least_squares_solution(code, bits):
    stock = untied()
    rows = stock.get_output_embeddings().weight.detach().double()
    model = codehead.attach(stock, code, bits=bits, start="old_head")
    codewords = model.decision.table.signs().double() / 2
    inputs = torch.cat([codewords, torch.ones(VOCAB, 1).double()], 1)
    expected = torch.linalg.lstsq(inputs, rows).solution[:-1]
    torch.testing.assert_close(model.lm_head.weight.double(), expected, rtol=1e-3, atol=1e-3)


def test_frequent_tokens_count_more():
    counts = torch.ones(VOCAB)
    counts[:10] = 1e6
    rows = untied().get_output_embeddings().weight

    def misfit(model):
        fitted = model.decision.table.signs() / 2 @ model.lm_head.weight
        difference = fitted - rows
        return (difference - difference.mean(0))[:10].norm()

    assert misfit(attached(bits=24, statistics=Statistics(counts))) < 0.5 * misfit(attached(bits=24))


def test_tokens_of_the_shortlist_keep_their_scores():
    wanted = logits(untied())
    model = attached(bits=16, dense_rows=[3, 50, 7], **CORRECTED)
    plain = attached(bits=16)
    found = logits(model)[..., [3, 50, 7]]
    assert (found - wanted[..., [3, 50, 7]]).norm() < 0.3 * (logits(plain) - wanted)[..., [3, 50, 7]].norm()
    whole = attached(bits=16, dense_rows=list(range(VOCAB)), **CORRECTED)
    assert error(whole, wanted) < 1e-5


def test_the_bias_of_the_old_head_becomes_that_of_the_tokens():
    model = untied()
    model.lm_head = torch.nn.Linear(HIDDEN, VOCAB)
    torch.nn.init.normal_(model.lm_head.bias)
    bias, wanted = model.lm_head.bias.detach().clone(), logits(model)
    codehead.attach(model, "itq", bits=VOCAB + 20, start="old_head", **CORRECTED)
    torch.testing.assert_close(model.decision.corrections.token_bias.detach(), bias)
    assert error(model, wanted) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = codehead.attach(untied().to(dtype), "itq", bits=48, start="old_head", dense_rows=[1], **CORRECTED)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert error(model.float(), logits(untied())) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mtl", "width": 2, "code": "itq"}, "choose those"),
        ({"code": "sparse_random", "bits": 60}, "a binary code"),
        ({"code": "one_vs_all", "head": "mtl", "width": 4}, "a low_rank head and one_vs_all"),
        ({"start": "old-head"}, "did you mean 'old_head'"),
        ({"statistics": 3}, "statistics is int"),
        ({"statistics": Statistics(torch.ones(2))}, "counts of 2 tokens"),
        ({"statistics": Statistics(torch.ones(VOCAB), torch.ones(3), torch.eye(3))}, "hidden states of size 3"),
    ],
)
def test_what_cannot_start_there_is_refused_and_changes_nothing(options, message):
    model = untied()
    before = logits(model)
    with pytest.raises(ConfigurationError, match=message):
        codehead.attach(model, **{"start": "old_head", **options})
    assert not codehead.is_coded(model) and torch.equal(logits(model), before)


def test_a_corrected_model_folds_into_the_stock_head_with_its_posterior():
    model = attached(bits=16, dense_rows=[3, 50, 7], **CORRECTED)
    torch.nn.init.normal_(model.decision.corrections.token_bias)
    wanted = logits(model)
    torch.testing.assert_close(logits(codehead.fold(model)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [4, HIDDEN + 3])
def test_a_low_rank_head_starts_from_the_singular_value_decomposition(rank):
    stock = untied()
    rows = stock.get_output_embeddings().weight.detach().double()
    centred = rows - rows.mean(0)
    codehead.attach(stock, "one_vs_all", head="low_rank", head_params={"rank": rank}, loss="codeword", start="old_head")
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    head = stock.get_output_embeddings()
    torch.testing.assert_close((head.output_weight @ head.weight).double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("params", [{}, {"bias": True}])
def test_a_linear_head_with_one_vs_all_is_the_old_one(params):
    wanted = logits(untied())
    model = codehead.attach(untied(), "one_vs_all", loss="codeword", start="old_head", head_params=params)
    assert torch.equal(logits(model), wanted)


def test_a_bias_of_the_old_head_needs_a_place():
    model = untied()
    model.lm_head = torch.nn.Linear(HIDDEN, VOCAB)
    wanted = logits(model)
    with pytest.raises(ConfigurationError, match=r"has a bias, .*; give head_params=\{'bias': True\}"):
        codehead.attach(model, "one_vs_all", loss="codeword", start="old_head")
    codehead.attach(model, "one_vs_all", loss="codeword", start="old_head", head_params={"bias": True})
    assert torch.equal(logits(model), wanted)


def test_frequencies_are_where_a_bias_begins_and_leave_the_random_start():
    counts = torch.arange(VOCAB)
    model = codehead.attach(untied(), "minrandom", bits=24, statistics=Statistics(counts), **CORRECTED)
    expected = ((counts + 1) / (counts + 1).sum()).log()
    torch.testing.assert_close(model.decision.corrections.token_bias.detach(), expected.float())


LAYERS = {
    "code": {"code": "itq", "bits": 24, **CORRECTED},
    "low rank": {
        "code": "one_vs_all",
        "head": "low_rank",
        "head_params": {"rank": 4, "bias": True},
        "loss": "codeword",
    },
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_hidden_states_say_which_directions_matter(layer):
    """Their covariance shapes code or factors, their mean the bias: the scores come nearer than without."""
    generator = torch.Generator().manual_seed(7)
    spread = torch.logspace(0.5, -2, HIDDEN)
    hidden = torch.randn(3000, HIDDEN, generator=generator) * spread + 2 * spread
    old = untied().get_output_embeddings()

    def distance(**options):
        model = codehead.attach(untied(), **layer, **options, start="old_head")
        scores = model.decision.logits(model.get_output_embeddings()(hidden)).detach()
        return torch.nn.functional.kl_div(
            scores.log_softmax(-1), old(hidden).log_softmax(-1), reduction="batchmean", log_target=True
        ).item()

    assert distance(statistics=Statistics.of(torch.ones(VOCAB), hidden)) < 0.5 * distance()


def phi():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(PhiConfig(**MODERN, tie_word_embeddings=False)).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    torch.nn.init.normal_(model.lm_head.bias, std=2.0)
    return model


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        ({"code": "itq", "bits": 16}, "token_bias=True"),
        ({"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 4}}, "'bias': True"),
        (
            {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [20]}, "loss": "codeword"},
            "'bias': True",
        ),
        ({"code": "one_vs_all"}, "'bias': True"),
    ],
    ids=["code", "low rank", "adaptive", "one_vs_all"],
)
def test_a_bias_of_the_old_head_is_not_lost(layer, remedy):
    with pytest.raises(ConfigurationError, match=remedy):
        codehead.attach(phi(), **layer, start="old_head")
