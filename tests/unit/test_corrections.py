"""Dense rows and a bias per token: what they add to scores, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from codehead import heads
from codehead.codes import build
from codehead.codes.table import CodewordTable
from codehead.decoding import decode, token_scores
from codehead.decoding.extras import Corrections, ExtendedHead, choose_tokens
from codehead.errors import ConfigurationError
from codehead.layer import Decision, DecisionLayer

V, BITS = 23, 9


def corrected(dense_rows=(4, 17, 0), token_bias=True, loss="codeword", design="minrandom"):
    corrections = Corrections(V, torch.tensor(dense_rows, dtype=torch.int32), token_bias)
    bits = {"sparse_random": 30}.get(design, BITS)
    decision = Decision(build(design, V, bits=bits, seed=1), loss, corrections=corrections)
    if token_bias:
        torch.nn.init.normal_(corrections.token_bias, generator=torch.Generator().manual_seed(5))
    return decision


@pytest.mark.parametrize("design", ["minrandom", "sparse_random"])
@settings(deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 4))
def test_dense_rows_are_ternary_columns_read_by_their_margin(design, seed, tokens):
    decision = corrected(design=design)
    outputs = torch.randn(tokens, decision.num_outputs, generator=torch.Generator().manual_seed(seed)).double() * 3
    n, listed = decision.table.length, decision.corrections.shortlist
    columns = torch.zeros(V, len(listed), dtype=torch.float64)
    columns[listed.long(), torch.arange(len(listed))] = 1
    codewords = decision.table.signs().double()
    code = (codewords.abs() * F.logsigmoid(codewords * outputs[:, None, :n])).sum(-1)
    expected = code + outputs[:, n:] @ columns.T + decision.corrections.token_bias.double()
    torch.testing.assert_close(decision.logits(outputs).softmax(-1), expected.softmax(-1).double())


def test_decoding_ranks_by_the_corrected_scores_and_ties_go_to_the_lowest_id():
    decision = corrected()
    outputs = torch.randn(6, decision.num_outputs)
    found = decision.decode(outputs, k=V)
    scores = decision.logits(outputs)
    assert torch.equal(found.scores, scores.gather(-1, found.ids))
    assert (found.scores.diff(dim=-1) <= 0).all()
    assert not torch.equal(found.ids, decode(decision.bit_logits(outputs), decision.table, k=V).ids)
    with torch.no_grad():
        decision.corrections.token_bias.zero_()
    assert decision.decode(torch.zeros(1, decision.num_outputs), k=3).ids.tolist() == [[0, 1, 2]]


def test_the_loss_is_the_cross_entropy_of_the_corrected_scores_and_trains_them():
    decision = corrected()
    outputs, labels = torch.randn(8, decision.num_outputs, requires_grad=True), torch.randint(V, (8,))
    labels[3] = -100
    loss = decision.loss(outputs, labels)
    torch.testing.assert_close(loss, F.cross_entropy(decision.logits(outputs), labels))
    loss.backward()
    assert decision.corrections.token_bias.grad.abs().sum() > 0
    assert (outputs.grad[:, BITS:].abs().sum(0) > 0).all() and outputs.grad[3].abs().sum() == 0


def test_chunks_of_the_loss_change_neither_value_nor_gradient(monkeypatch):
    decision = corrected()
    outputs, labels = torch.randn(8, decision.num_outputs, requires_grad=True), torch.randint(V, (8,))

    def gradients():
        inputs = (outputs, decision.corrections.token_bias)
        loss = decision.loss(outputs, labels)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    whole = gradients()
    monkeypatch.setattr("codehead.losses.CHUNK_SCORES", 3 * V)
    torch.testing.assert_close(gradients(), whole)


def test_new_dense_rows_change_nothing_yet():
    codebook = build("minrandom", V, bits=BITS)
    head = heads.build("linear", 8, BITS)
    layer = DecisionLayer(
        codebook, ExtendedHead(head, 8, 2), "codeword", corrections=Corrections(V, torch.tensor([3, 1]), True)
    )
    hidden = torch.randn(5, 8)
    assert torch.equal(layer(hidden), token_scores(head(hidden), CodewordTable(codebook)))


def test_dense_rows_learn_what_the_code_cannot():
    """Two columns cannot tell 16 tokens that depend on 8 directions apart; rows of their own can."""
    torch.manual_seed(0)
    codebook = build("minimal", 16)
    layer = DecisionLayer(
        codebook, ExtendedHead(heads.build("linear", 16, 4), 16, 16), "codeword",
        corrections=Corrections(16, torch.arange(16), False),
    )  # fmt: skip
    hidden, labels = torch.eye(16), torch.arange(16).flip(0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        layer.loss(hidden, labels).backward()
        optimizer.step()
    assert torch.equal(layer.decode(hidden).ids.squeeze(-1), labels)


def test_the_most_frequent_tokens_get_dense_rows_and_equal_counts_go_by_id():
    assert choose_tokens("dense_rows", 3, torch.tensor([5, 9, 0, 5, 7]), 5).tolist() == [1, 4, 0]
    assert choose_tokens("dense_rows", [2, 0], None, 5).tolist() == [2, 0]
    assert choose_tokens("dense_rows", np.array([2, 0]), None, 5).tolist() == [2, 0]
    assert choose_tokens("dense_rows", 0, None, 5).tolist() == choose_tokens("dense_rows", [], None, 5).tolist() == []


@pytest.mark.parametrize(
    ("dense_rows", "counts", "message"),
    [
        (2, None, "give statistics"),
        (6, None, "dense_rows=6 is not between 0 and the number of tokens 5"),
        (-1, None, "dense_rows=-1"),
        ([1, 5], None, "from 1 to 5"),
        ([1, 1], None, "twice"),
    ],
)
def test_impossible_dense_rows_are_refused(dense_rows, counts, message):
    with pytest.raises(ConfigurationError, match=message):
        choose_tokens("dense_rows", dense_rows, counts, 5)


def test_what_cannot_train_or_rank_corrections_is_refused():
    with pytest.raises(ConfigurationError, match="choose loss='codeword'"):
        corrected(loss="bitwise")
    decision = corrected()
    with pytest.raises(ConfigurationError, match="choose decoder='likelihood'"):
        decision.decoder_name = "hamming"
    with pytest.raises(ConfigurationError, match="choose loss='codeword'"):
        decision.loss_name = "bitwise"
    with pytest.raises(ConfigurationError, match="omit dense_rows and token_bias"):
        Decision(build("one_vs_all", 5), "codeword", corrections=Corrections(5, torch.tensor([1]), False))
    with pytest.raises(ConfigurationError, match="for 23 tokens but the code has 5 classes"):
        Decision(build("minimal", 5), "codeword", corrections=Corrections(V, torch.tensor([1]), False))
    with pytest.raises(ConfigurationError, match="the head gives 9 outputs but the decision layer reads 12"):
        DecisionLayer(build("minrandom", V, bits=BITS), heads.build("linear", 8, BITS), "codeword",
                      corrections=Corrections(V, torch.arange(3), False))  # fmt: skip


def test_nan_is_refused():
    decision = corrected()
    outputs = torch.zeros(1, decision.num_outputs)
    outputs[0, -1] = float("nan")
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        decision.decode(outputs)
