"""Chains of bits: a distribution over tokens by construction, its losses, its exact decoding, what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from codehead import heads
from codehead.codes import build
from codehead.codes.table import CodewordTable
from codehead.decoding.extras import Corrections
from codehead.decoding.numerics import top_k
from codehead.errors import ConfigurationError
from codehead.heads import chain as chain_module
from codehead.heads.chain import Chain, best_tokens, build_trie
from codehead.layer import Decision, DecisionLayer

HIDDEN, WIDTH = 8, 6
CODES = {  # code, bits of a block
    "a full tree, bit by bit": (lambda: build("minimal", 32), 1),
    "a full tree in blocks": (lambda: build("gray", 32), 2),
    "a tree with gaps": (lambda: build("minimal", 23), 1),
    "a tree with gaps in uneven blocks": (lambda: build("minimal", 70), 4),
    "random bits, many forced": (lambda: build("minrandom", 23, bits=8, seed=1), 4),
    "one block": (lambda: build("minrandom", 23, bits=11, seed=1), 11),
}


def layer(code, block=1, seed=0, activation="tanh", **options):
    """In float64, with weights large enough to tell tokens apart."""
    torch.manual_seed(seed)
    head = heads.build("chain", HIDDEN, code.length, width=WIDTH, block=block, activation=activation)
    made = DecisionLayer(code, head, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.fixture(params=list(CODES))
def chained(request):
    code, block = CODES[request.param]
    return layer(code(), block)


def by_definition(made, hidden):
    """The log-likelihood `(V,)` of every codeword for one hidden state, bit by bit as the formula says."""
    chain, codewords = made.decision.chain, made.decision.table.signs().double()
    features = made.head(hidden).view(chain.blocks, WIDTH)
    scores = torch.zeros(len(codewords), dtype=torch.float64)
    for v, codeword in enumerate(codewords):
        for i in range(chain.num_bits):
            alike = codewords[(codewords[:, :i] == codeword[:i]).all(1)]
            if len(alike[:, i].unique()) == 1:
                continue  # the bits before it force it
            b = max(b for b, start in enumerate(chain.starts) if start <= i)
            inner = features[b]
            if chain.starts[b]:
                first = sum(chain.starts[:b])
                inner = inner + codeword[: chain.starts[b]] @ chain.context[first : first + chain.starts[b]]
            z = chain.weight[i] @ torch.tanh(inner) + chain.bias[i]
            scores[v] += F.logsigmoid(codeword[i] * z)
    return scores


def test_scores_are_those_of_the_definition(chained):
    hidden = torch.randn(2, HIDDEN, dtype=torch.float64)
    expected = torch.stack([by_definition(chained, one) for one in hidden])
    torch.testing.assert_close(chained(hidden), expected)
    assert expected.exp().std() > 1e-3  # equal probabilities everywhere would prove nothing


def test_the_likelihoods_of_all_tokens_sum_to_one(chained):
    scores = chained(torch.randn(2, 5, HIDDEN, dtype=torch.float64))
    torch.testing.assert_close(scores.logsumexp(-1), torch.zeros(2, 5, dtype=torch.float64), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 40), spare=st.integers(0, 4))
def test_so_they_do_for_any_distinct_codewords(seed, classes, spare):
    generator = np.random.default_rng(seed)
    length = (classes - 1).bit_length() + spare
    numbers = generator.choice(2**length, size=classes, replace=False)
    signs = torch.tensor((numbers[:, None] >> np.arange(length)) & 1) * 2.0 - 1
    made = layer(build("custom", classes, array=signs.numpy()), length)
    assert made(torch.randn(HIDDEN).double()).logsumexp(-1).abs() < 1e-12
    trie = build_trie(signs, [0])
    assert sum(len(level.branching) for block in trie.blocks for level in block.levels) == classes - 1


def test_the_codeword_loss_is_the_cross_entropy_of_the_scores_and_so_are_its_gradients(chained):
    chained.decision.loss_name = "codeword"
    hidden = torch.randn(20, HIDDEN, dtype=torch.float64)
    labels = torch.randint(chained.decision.table.num_classes, (20,))
    labels[3] = -100
    loss, expected = chained.loss(hidden, labels), F.cross_entropy(chained(hidden), labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    actual = torch.autograd.grad(loss, list(chained.parameters()))
    wanted = torch.autograd.grad(expected, list(chained.parameters()))
    for one, other in zip(actual, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_bitwise_loss_is_the_mean_over_free_bits(chained):
    hidden = torch.randn(9, HIDDEN, dtype=torch.float64)
    labels = torch.randint(chained.decision.table.num_classes, (9,))
    free = chained.decision.chain.trie(chained.decision.table).free[labels].sum(-1)
    nats = -chained(hidden).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(chained.loss(hidden, labels).double(), (nats / free).mean(), rtol=1e-5, atol=0)
    assert chained.decision.node_loss.shape == (chained.decision.table.length,)


def test_bits_are_forced_where_only_one_value_leads_to_a_codeword():
    trie = build_trie(CodewordTable(build("minimal", 5)).signs(), [0, 1, 2])  # 000 001 010 011 100
    assert trie.free.tolist() == [[1, 1, 1]] * 4 + [[1, 0, 0]]


def test_chunks_change_nothing(chained, monkeypatch):
    hidden = torch.randn(7, HIDDEN, dtype=torch.float64)
    whole = chained(hidden)
    monkeypatch.setattr("codehead.heads.chain.CHUNK_NUMBERS", 1)
    torch.testing.assert_close(chained(hidden), whole)


def test_bits_that_depend_on_each_other_are_learnt_where_independent_ones_cannot_be():
    """Two tokens of four, 00 and 11, half of the time each."""
    torch.manual_seed(0)
    code, hidden, labels = build("minimal", 4), torch.ones(2, 4), torch.tensor([0, 3])
    losses = {}
    for name, options in {"chain": {"width": 4}, "mtl": {"width": 4}}.items():
        made = DecisionLayer(code, heads.build(name, 4, 2, **options), "bitwise")
        optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            made.loss(hidden, labels).backward()
            optimizer.step()
        losses[name] = F.cross_entropy(made(hidden), labels).item()
    assert losses["chain"] == pytest.approx(np.log(2), abs=0.02)
    assert losses["mtl"] == pytest.approx(np.log(4), abs=0.02)


# --- decoding


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("ties", ["lowest", 7])
@pytest.mark.parametrize("k", [1, 4])
def test_decoding_finds_the_most_probable_tokens(chained, monkeypatch, k, ties, scale):
    monkeypatch.setattr(chain_module, "WIDTHS", (4, 7))
    monkeypatch.setattr(chain_module, "WORTHWHILE", 1)
    outputs = torch.randn(6, 5, chained.head.out_features, dtype=torch.float64) * scale
    if not scale:  # tokens tie, where neither the features nor the bits before have a say
        for parameter in chained.decision.chain.parameters():
            torch.nn.init.zeros_(parameter)
    scores = chained.decision.logits(outputs)
    found = chained.decision.decode(outputs, k, ties)
    assert torch.equal(found.ids, top_k(scores, k, ties))
    torch.testing.assert_close(found.scores, scores.gather(-1, found.ids))


def test_a_beam_that_dropped_nothing_likelier_needs_no_other(monkeypatch):
    """A token of more than 1 / (w + 1) is found by a beam of w; all tokens are scored only where none is so likely."""
    made, searched = layer(build("minimal", 256), block=3, activation="relu"), []
    made.decision.chain.weight.data.mul_(0.3)
    scores = made.decision.chain.token_scores
    made.decision.chain.bias.data.zero_()
    monkeypatch.setattr(chain_module, "WIDTHS", (8,))
    monkeypatch.setattr(Chain, "token_scores", lambda self, z, table: searched.append(len(z)) or scores(z, table))
    outputs = torch.randn(200, made.head.out_features, dtype=torch.float64) * torch.linspace(0, 20, 200)[:, None]
    unlikely = (scores(outputs, made.decision.table).exp().amax(-1) <= 1 / 9).sum()
    made.decision.decode(outputs)
    assert 0 < sum(searched) <= unlikely < 200


def test_half_precision_features_give_float32_scores():
    made = layer(build("minimal", 300), block=4).bfloat16()
    outputs = made.head(torch.randn(5, HIDDEN, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = made.decision.logits(outputs)
    assert scores.dtype == torch.float32 and scores.logsumexp(-1).abs().max() < 1e-5
    assert made.decision.loss(outputs, torch.arange(5)).dtype == torch.float32
    found = best_tokens(made.decision.chain, outputs, made.decision.table, k=3)
    assert torch.equal(found[0], top_k(scores, 3))


# --- as a module


def test_another_code_in_the_state_makes_another_tree():
    made, other = layer(build("minimal", 23), 5), layer(build("gray", 23), 5)
    hidden = torch.randn(4, HIDDEN, dtype=torch.float64)
    before = other(hidden)
    made(hidden)
    other.load_state_dict(made.state_dict())
    assert torch.equal(made(hidden), other(hidden)) and not torch.equal(before, made(hidden))


def test_copies_give_the_same_scores(chained):
    hidden = torch.randn(4, HIDDEN, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(chained)(hidden), chained(hidden))


def test_training_compiles_into_one_graph():
    made = layer(build("minimal", 23), 2).float()
    hidden, labels = torch.randn(6, HIDDEN), torch.arange(6)
    expected = made.loss(hidden, labels)
    compiled = torch.compile(lambda hidden: made.loss(hidden, labels), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden), expected)


def test_a_tree_that_is_not_there_yet_is_made_outside_of_the_graph():
    made = layer(build("minimal", 23), 2).float()
    hidden = torch.randn(6, HIDDEN)
    with torch.no_grad():
        expected = made(hidden)
        made.decision.chain._trie = None
        found = torch.compile(made, backend="eager")(hidden)
    torch.testing.assert_close(found, expected)
    assert made.decision.chain._trie is not None


def test_parameters_are_counted_with_those_of_the_decision_layer(chained):
    head = chained.head
    options = {"width": WIDTH, "block": head.block}
    counted = heads.count_parameters("chain", HIDDEN, head.num_bits, **options)
    assert counted == sum(parameter.numel() for parameter in chained.parameters())


# --- refusals


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (lambda: build("one_vs_all", 8), "one_vs_all code is not"),
        (lambda: build("sparse_random", 16, bits=20, seed=1), "a ternary code is not"),
        (lambda: build("minrandom", 23, bits=20, seed=1), r"only \d+ of the 20 bits .* code='minimal'"),
        (
            lambda: build("custom", 4, array=np.array([[1, 1], [1, -1], [-1, 1], [1, 1]]), allow_duplicates=True),
            "4 tokens share 3",
        ),
    ],
)
def test_codes_that_are_no_tree_are_refused(code, message):
    with pytest.raises(ConfigurationError, match=message):
        layer(code())


def test_what_reads_bits_without_a_token_is_refused():
    made = layer(build("minimal", 23))
    with pytest.raises(ConfigurationError, match="choose decoder='likelihood'"):
        made.decision.decoder_name = "hamming"
    with pytest.raises(ConfigurationError, match=r"decision\.nodes"):
        made.decision.bit_logits(torch.zeros(1, made.head.out_features))
    with pytest.raises(ConfigurationError, match="omit dense_rows and token_bias"):
        Decision(build("minimal", 5), corrections=Corrections(5, torch.tensor([1]), True), chain=Chain(3, 2))
    with pytest.raises(ConfigurationError, match="the chain has 4 bits but the code has length 3"):
        Decision(build("minimal", 5), chain=Chain(4, 2))
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        made.decision.decode(torch.full((1, made.head.out_features), torch.nan))
    with pytest.raises(ConfigurationError, match="k must be between 1 and the number of classes 23"):
        made.decode(torch.zeros(1, HIDDEN).double(), k=24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs width ≥ 1.*head='linear'"),
        ({"width": -1}, "width=-1 is not possible; give a whole number, 1 or more"),
        ({"width": 2, "block": 0}, "block=0 is not possible; give a whole number, 1 or more"),
        ({"width": 2, "activation": "rleu"}, "did you mean 'relu'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigurationError, match=message):
        heads.build("chain", 8, 4, **options)
