"""Facts about particular decoders: worked examples, which of them rank alike, closed forms for one_vs_all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codehead.codes import build
from codehead.codes.codebook import PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import decode, token_scores
from codehead.decoding.numerics import top_k

TERNARY = CodewordTable(PackedCodebook.from_array(np.array([[1, -1, 0], [0, 1, 1]], dtype=np.int8)))


def test_hamming_counts_disagreements_and_half_a_zero():
    scores = token_scores(torch.tensor([5.0, 0.1, -2.0]), TERNARY, "hamming")
    assert scores.tolist() == [-1.5, -1.5]


def test_manhattan_and_euclidean_measure_soft_bits():
    z = 2 * torch.atanh(torch.tensor([0.5, -0.25, 0.0], dtype=torch.float64))  # soft bits 0.5, −0.25, 0
    torch.testing.assert_close(token_scores(z, TERNARY, "manhattan"), torch.tensor([-1.25, -2.75], dtype=torch.float64))
    torch.testing.assert_close(
        token_scores(z, TERNARY, "euclidean"),
        -torch.tensor([0.25 + 0.5625, 0.25 + 1.5625 + 1], dtype=torch.float64),
    )


def test_posterior_is_the_product_of_bit_probabilities_normalised():
    table = CodewordTable(build("minimal", 4))
    z = torch.tensor([0.3, -1.2], dtype=torch.float64)
    p = torch.sigmoid(z)
    expected = torch.stack([(1 - p[0]) * (1 - p[1]), (1 - p[0]) * p[1], p[0] * (1 - p[1]), p[0] * p[1]])
    torch.testing.assert_close(torch.softmax(token_scores(z, table), -1), expected)


def test_binary_score_is_half_the_inner_product():
    table = CodewordTable(build("dense_random", 20, bits=12, seed=0))
    z = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(token_scores(z, table), 0.5 * z @ table.signs().double().T)


def test_binary_soft_decoders_rank_alike_on_bit_vectors_of_their_own_scale():
    """On binary codes Manhattan and Euclidean both rank by x·c; likelihood ranks by z·c."""
    table = CodewordTable(build("minrandom", 50, bits=16, seed=3))
    z = torch.randn(40, 16, dtype=torch.float64) * 3
    manhattan = decode(z, table, decoder="manhattan", k=5).ids
    assert torch.equal(manhattan, decode(z, table, decoder="euclidean", k=5).ids)
    by_inner_product = top_k(torch.tanh(z / 2) @ table.signs().double().T, 5)
    assert torch.equal(manhattan, by_inner_product)


def test_one_vs_all_posterior_is_softmax_untouched():
    table = CodewordTable(build("one_vs_all", 11))
    z = torch.randn(4, 11)
    assert torch.equal(token_scores(z, table), z)


def test_one_vs_all_needs_no_matrix_at_full_vocabulary():
    table = CodewordTable(build("one_vs_all", 262_144))
    z = torch.randn(2, 262_144)
    for decoder in ("hamming", "manhattan", "euclidean", "likelihood"):
        if decoder != "hamming":  # several positive bits tie under hard decisions
            assert torch.equal(decode(z, table, decoder=decoder).ids.squeeze(-1), z.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_top_k_equals_a_stable_sort(dtype):
    scores = torch.tensor([[0.0, -0.0, 3.0, -5.0, 3.0, float("-inf"), 1e-40, float("inf"), -1e-40]], dtype=dtype)
    scores = torch.cat([scores, torch.randint(-3, 3, (20, 9)).to(dtype)])
    expected = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    for k in range(1, 10):  # equal scores on both sides of the k-th place too
        assert torch.equal(top_k(scores, k), expected[:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_at_the_last_place_go_to_the_lowest_ids_or_by_the_seed(dtype):
    scores = torch.zeros(3, 1000, dtype=dtype)
    scores[:, 500] = 1
    scores[2] = torch.arange(1000)  # without ties
    assert top_k(scores, 4).tolist() == [[500, 0, 1, 2], [500, 0, 1, 2], [999, 998, 997, 996]]
    assert top_k(scores, 4, ties=0)[0, 0] == 500  # the least seed
    seeded = top_k(scores, 4, ties=5)
    order = top_k(torch.zeros(1, 1000, dtype=dtype), 1000, ties=5)[0]
    assert torch.equal(seeded[0, 1:], order[order != 500][:3]) and seeded[2].tolist() == [999, 998, 997, 996]
