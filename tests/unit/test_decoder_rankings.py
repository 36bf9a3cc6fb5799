"""Which decoders order tokens alike, and the codes on which they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes.codebook import PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import decode, token_scores

BY_MARGIN = ["likelihood", "loss_linear"]
BY_SOFT_BITS = ["manhattan", "euclidean", "attenuated_euclidean"]
BY_COUNTS = ["hamming", "laplacian", "beta_density"]


def table_of(rows) -> CodewordTable:
    return CodewordTable(PackedCodebook.from_array(np.array(rows, dtype=np.int8), allow_duplicates=True))


def best_of(z, table, decoder):
    return decode(torch.tensor([z], dtype=torch.float64), table, decoder=decoder).ids.item()


@st.composite
def binary_problems(draw):
    """A binary code and some bit logits, none of them 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = draw(st.integers(2, 12)), draw(st.integers(1, 16))
    table = table_of(rng.choice(np.array([-1, 1], dtype=np.int8), size=shape))
    return table, torch.from_numpy(rng.normal(size=(4, shape[1])) * 3)


def assert_order_alike(table, z, first, second):
    """No pair of tokens is ordered one way by one decoder and the other way by the other."""
    a, b = (token_scores(z, table, decoder) for decoder in (first, second))
    a, b = (scores.unsqueeze(-1) - scores.unsqueeze(-2) for scores in (a, b))
    assert not ((a > 1e-9) & (b < -1e-9)).any(), (first, second)


@settings(max_examples=40, deadline=None)
@given(problem=binary_problems())
def test_on_binary_codes_decoders_of_a_kind_order_alike(problem):
    for kind in (BY_MARGIN, BY_SOFT_BITS, BY_COUNTS):
        for other in kind[1:]:
            assert_order_alike(*problem, kind[0], other)


@settings(max_examples=40, deadline=None)
@given(problem=binary_problems())
def test_on_binary_codes_hard_decisions_make_all_kinds_one(problem):
    table, z = problem
    for decoder in [*BY_MARGIN, *BY_SOFT_BITS, *BY_COUNTS, "loss_exponential"]:
        assert_order_alike(table, 2 * z.sign(), "hamming", decoder)


@settings(max_examples=40, deadline=None)
@given(problem=binary_problems())
def test_on_binary_codes_hamming_and_laplacian_tie_alike(problem):
    table, z = problem
    ids = [decode(z, table, decoder=decoder, k=table.num_classes).ids for decoder in ("hamming", "laplacian")]
    assert torch.equal(*ids)


def test_the_kinds_differ_on_a_binary_code():
    # One confident bit against two doubtful ones: z·c, x·c, Σe^(−z·c) and the count disagree.
    rows = [[1, -1, -1, 1], [-1, 1, 1, 1]]
    table = table_of(rows)
    assert [best_of([5.0, 2.0, 2.0, 1.0], table, decoder) for decoder in (*BY_MARGIN, *BY_SOFT_BITS, *BY_COUNTS)] == [
        *[0] * len(BY_MARGIN),
        *[1] * (len(BY_SOFT_BITS) + len(BY_COUNTS)),
    ]
    # The exponential loss looks at the worst bit: it takes two wrong bits of 3 before one of 5, whose sum is smaller.
    z = [5.0, 3.0, 3.0, 1.0]
    assert best_of(z, table, "likelihood") == 1 and best_of(z, table, "loss_exponential") == 0


@pytest.mark.parametrize(
    ("first", "second", "z", "rows"),
    [
        # Zeros cost nothing to a sum of margins, but their bits are left out of a likelihood, not guessed at.
        ("likelihood", "loss_linear", [1.0, 1.0, 1.0], [[1, 1, 1], [1, 0, 0]]),
        # A zero is far from a bit that is sure, if it is measured at all.
        ("euclidean", "attenuated_euclidean", [3.0, 2.0, 2.0], [[1, 1, 1], [1, 0, 0]]),
        ("manhattan", "attenuated_euclidean", [3.0, 2.0, 2.0], [[1, 1, 1], [1, 0, 0]]),
        # A wrong bit costs more than a zero: by 1 if distances are added, by up to 3 if their squares are.
        ("manhattan", "euclidean", [3.0, 4.0, 4.0, -3.0], [[1, 1, 1, 1], [1, 0, 0, 0]]),
        # Two of two against five of six: the fewer zeros, the more a Hamming distance favours a codeword.
        ("hamming", "laplacian", [1.0] * 6, [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, -1]]),
        ("hamming", "beta_density", [1.0] * 6, [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, -1]]),
        # One of one is less than eight of nine to Laplace, but its density is bounded by 0.82 and theirs by 0.79.
        ("laplacian", "beta_density", [1.0] * 9, [[1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, -1]]),
    ],
)
def test_on_ternary_codes_they_part(first, second, z, rows):
    table = table_of(rows)
    assert best_of(z, table, first) != best_of(z, table, second)


def test_on_any_code_hamming_is_the_sum_of_the_margins_of_hard_bits():
    table = table_of(np.random.default_rng(0).integers(-1, 2, size=(30, 9)))
    z = torch.randn(20, 9)
    hamming = decode(z, table, decoder="hamming", k=30).ids
    assert torch.equal(hamming, decode(z.sign(), table, decoder="loss_linear", k=30).ids)


def test_beta_density_ties_only_where_at_most_two_bits_agree():
    for length in (3, 10, 40, 400):
        rows = np.tril(np.ones((length + 1, length), dtype=np.int8), -1) * 2 - 1  # v agreements with z > 0
        scores = token_scores(torch.ones(length, dtype=torch.float64), table_of(rows), "beta_density")
        assert (scores.diff()[2:] > 0).all() and (scores.diff() >= 0).all()
