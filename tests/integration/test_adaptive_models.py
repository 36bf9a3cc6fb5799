"""Models whose head is an adaptive softmax: order of the tokens, start from the old head, soft cap, size, refusals."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, HIDDEN, VOCAB, make, tokens
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import codehead
from codehead.errors import ConfigurationError
from codehead.evaluation.size import model_size
from codehead.heads import count_parameters
from codehead.models.hidden import Statistics

CUTOFFS = [20, 60]
ADAPTIVE = {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": CUTOFFS}, "loss": "codeword"}
BIASED = {**ADAPTIVE, "head_params": {"cutoffs": CUTOFFS, "bias": True}}


def adaptive(name="llama", tied=True, **options):
    model = codehead.attach(make(name, tied), **{**BIASED, **options})
    for parameter in model.get_output_embeddings().parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "granite"])
def test_logits_are_log_probabilities_and_the_loss_is_theirs(name, tied):
    """Also where the stock model caps its logits."""
    model, ids = adaptive(name, tied), tokens()
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    assert out.logits.exp().std() > 1e-4
    torch.testing.assert_close(out.logits.logsumexp(-1), torch.zeros(2, 7), atol=1e-5, rtol=0)
    nats = F.nll_loss(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, nats)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_the_soft_cap_comes_back_with_the_old_head(name):
    cap = make(name).config.final_logit_softcapping
    model = adaptive(name)
    assert model.config.final_logit_softcapping is None
    assert codehead.detach(model).config.final_logit_softcapping == cap


def test_greedy_generation_takes_the_likeliest_token_and_decoding_agrees():
    model, ids = adaptive("gpt2", statistics=Statistics(torch.arange(VOCAB))), tokens()
    with torch.no_grad():
        found = model.generate(ids, max_new_tokens=1, do_sample=False, eos_token_id=None)[:, -1]
        outputs = model.head_outputs(input_ids=ids)[:, -1]
    assert torch.equal(found, outputs.argmax(-1))
    assert torch.equal(found, model.decision.decode(outputs).ids.squeeze(-1))


@pytest.mark.parametrize("start", ["random", "old_head"])
def test_counts_tell_the_order_of_the_tokens(start):
    model = codehead.attach(make("llama"), **ADAPTIVE, start=start, statistics=Statistics(torch.arange(VOCAB)))
    assert torch.equal(model.lm_head.order, torch.arange(VOCAB).flip(0).int())
    plain = codehead.attach(make("llama"), **ADAPTIVE, start=start)
    assert torch.equal(plain.lm_head.order, torch.arange(VOCAB).int())


def test_size_counts_the_order():
    size = model_size(adaptive(), weight_bytes=2)
    parameters = count_parameters("adaptive", HIDDEN, VOCAB, **BIASED["head_params"])
    assert size.head_parameters == parameters
    assert size.bytes_stored == size.bytes_resident == size.bytes_read_per_token == 2 * parameters + 4 * VOCAB


# --- the start


def zipf(bias=False):
    """A trained head in small: rare tokens score low, hidden states have a mean and few directions that matter."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(3000, HIDDEN, generator=generator) * torch.logspace(0.3, -0.7, HIDDEN)
    hidden[:, 0] += 4
    model = make("llama", tied=False)
    model.lm_head = torch.nn.Linear(HIDDEN, VOCAB, bias=bias)
    torch.nn.init.normal_(model.lm_head.weight, std=0.7, generator=generator)
    if bias:
        torch.nn.init.normal_(model.lm_head.bias, generator=generator)
    with torch.no_grad():
        model.lm_head.weight[:, 0] = -0.3 * torch.arange(1, VOCAB + 1).log()
        model.lm_head.weight.copy_(model.lm_head.weight[torch.randperm(VOCAB, generator=generator)])
        counts = model.lm_head(hidden).softmax(-1).sum(0).round()
    return model, hidden, counts


def divergence(model, old, hidden):
    with torch.no_grad():
        return F.kl_div(model.lm_head(hidden), old(hidden).log_softmax(-1), reduction="batchmean", log_target=True)


def started(bias=False, div_value=4.0, **options):
    model, hidden, counts = zipf(bias)
    old, params = model.lm_head, {"cutoffs": CUTOFFS, "bias": bias, "div_value": div_value}
    options = {"start": "old_head", "statistics": Statistics.of(counts, hidden), **options}
    codehead.attach(model, **{**ADAPTIVE, "head_params": params}, **options)
    return model, old, hidden


def test_frequent_tokens_keep_their_rows():
    model, old, _ = started(bias=True)
    frequent, *_ = model.lm_head.parts()
    assert torch.equal(model.lm_head.weight[:20], old.weight[frequent])
    assert torch.equal(model.lm_head.bias[:20], old.bias[frequent])


@pytest.mark.parametrize("bias", [False, True])
def test_it_starts_near_the_old_head(bias):
    near, random = divergence(*started(bias)), divergence(*started(bias, start="random"))
    assert near < 0.3 * random
    assert near < 0.5 * divergence(*started(bias, statistics=None))


@pytest.mark.parametrize("bias", [False, True])
def test_tokens_within_a_cluster_of_full_rank_keep_their_distribution(bias):
    model, old, hidden = started(bias, div_value=1.0)
    for part in model.lm_head.parts()[1:]:
        with torch.no_grad():
            found = model.lm_head(hidden)[:, part].log_softmax(-1)
            wanted = old(hidden)[:, part].log_softmax(-1)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_row_of_a_cluster_is_near_the_sum_of_its_tokens():
    model, old, hidden = started(bias=True)
    head = model.lm_head
    with torch.no_grad():
        rows = hidden @ head.weight[20:].T + head.bias[20:]
        sums = torch.stack([old(hidden)[:, part].logsumexp(-1) for part in head.parts()[1:]], dim=-1)
    error = rows - sums
    assert error.mean(0).abs().max() < 0.5
    assert error.std(0).max() < 0.75 * sums.std(0).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = codehead.attach(make("llama").to(dtype), **BIASED, start="old_head")
    assert {p.dtype for p in model.parameters()} == {dtype} and model.lm_head.order.dtype == torch.int32
    assert model(input_ids=tokens()).logits.isfinite().all()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": "minrandom", "bits": 24}, "are not the bits of a code; choose code='one_vs_all'"),
        ({"code": "sparse_random", "bits": 44}, "choose code='one_vs_all'"),
        ({"loss": "bitwise"}, "loss='bitwise' looks at single bits, .* choose loss='codeword'"),
        ({"decoder": "hamming"}, "decoder='hamming' looks at single bits"),
        ({"dense_rows": [3]}, "omit dense_rows and token_bias"),
        ({"head_params": {}}, "needs cutoffs"),
        ({"width": 3}, "no option 'width'"),
    ],
)
def test_what_it_cannot_do_is_refused_and_changes_nothing(options, message):
    stock = make("llama")
    with pytest.raises(ConfigurationError, match=message):
        codehead.attach(stock, **{**ADAPTIVE, **options})
    assert not codehead.is_coded(stock)


def test_a_model_that_scales_its_logits_is_refused():
    with pytest.raises(ConfigurationError, match=r"multiplies its head's outputs by 0\.25"):
        codehead.attach(make("granite"), **ADAPTIVE)


def test_a_loss_or_decoder_of_bits_cannot_be_chosen_later(tmp_path):
    adaptive().save_pretrained(tmp_path)
    for model in (adaptive(), AutoModelForCausalLM.from_pretrained(tmp_path)):
        with pytest.raises(ConfigurationError, match="loss='bitwise' looks at single bits"):
            model.decision.loss_name = "bitwise"
        with pytest.raises(ConfigurationError, match="decoder='hamming' looks at single bits"):
            model.decision.decoder_name = "hamming"
        assert (model.decision.loss_name, model.decision.decoder_name) == ("codeword", "likelihood")


def test_the_best_tokens_are_those_of_the_highest_log_probability():
    model, ids = adaptive(), tokens()
    with torch.no_grad():
        outputs, logits = model.head_outputs(input_ids=ids), model(input_ids=ids).logits
    assert torch.equal(model.decision.decode(outputs, k=3).ids, logits.topk(3).indices)


@pytest.mark.parametrize(
    "layer",
    [ADAPTIVE, {"code": "minrandom", "bits": 24, "head": "mtl", "width": 3, "head_params": {"groups": 1}}],
    ids=["adaptive", "one hidden layer"],
)
def test_what_is_not_linear_is_not_folded(layer):
    model = codehead.attach(make("llama"), **layer)
    with pytest.raises(ConfigurationError, match=f"cannot fold a head '{layer['head']}'"):
        codehead.fold(model)
    assert codehead.is_coded(model)
