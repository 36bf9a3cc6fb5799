"""Facts about the decoders of the ECOC literature that do not come from their plain definitions here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from codehead.codes import build
from codehead.codes.codebook import OneVsAllCodebook, PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, ByCodeword, Terms, decode, fit, token_scores
from codehead.decoding.hard_bits import bounds_of_size
from codehead.errors import ConfigurationError, DataError
from codehead.layer import Decision
from reference_decoders import truly_decoded

TERNARY = CodewordTable(PackedCodebook.from_array(np.array([[1, -1, 0], [0, 1, 1]], dtype=np.int8)))
Z = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)


def test_attenuated_euclidean_leaves_zeros_out():
    x = torch.tanh(Z / 2)
    expected = [(x[0] - 1) ** 2 + (x[1] + 1) ** 2, (x[1] - 1) ** 2 + (x[2] - 1) ** 2]
    torch.testing.assert_close(token_scores(Z, TERNARY, "attenuated_euclidean"), -torch.stack(expected))


def test_a_decoder_for_codes_of_one_length_decodes(monkeypatch):
    """It is never called with bit logits of another length."""
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setitem(DECODERS._parts, "mixed", lambda z: Terms(z @ mixing.to(z), None, None))
    assert int(decode(Z, TERNARY, decoder="mixed").ids) == int(token_scores(Z, TERNARY, "mixed").argmax())


def test_losses_add_up_over_margins():
    assert token_scores(Z, TERNARY, "loss_linear").tolist() == [2.5, -1.0]
    expected = [-math.log(math.exp(-0.5) + math.exp(-2) + 1), -math.log(1 + math.exp(2) + math.exp(-1))]
    torch.testing.assert_close(token_scores(Z, TERNARY, "loss_exponential"), Z.new_tensor(expected))


def test_laplacian_counts_agreements():
    assert token_scores(Z, TERNARY, "laplacian").tolist() == [(2 + 1) / 4, (1 + 1) / 4]
    assert token_scores(torch.zeros(3), TERNARY, "laplacian").tolist() == [0.5, 0.5]


@pytest.mark.parametrize("offset", [0, 25])
def test_the_exponential_loss_is_exact_in_float32_beside_a_bit_that_is_sure(offset):
    """e^25 is 10^10 times the differences that decide."""
    table = CodewordTable(build("minrandom", 30, bits=12, seed=0))
    z = torch.randn(50, 12)
    z[:, 3] = 2 * z[:, 3].sign() + offset * z[:, 3].sign()
    fast, truth = (decoded(z, table, decoder="loss_exponential", k=3) for decoded in (decode, truly_decoded))
    assert torch.equal(fast.ids, truth.ids)


def test_the_exponential_loss_of_a_whole_vocabulary_needs_no_matrix():
    z = torch.randn(3, 200_000) * 5
    scores = token_scores(z, CodewordTable(OneVsAllCodebook(200_000)), "loss_exponential")
    wide = z.double()
    for token in (int(z[0].argmax()), int(z[0].argmin()), 7):
        others = torch.cat([wide[0, :token], wide[0, token + 1 :], -wide[0, token : token + 1]])
        assert float(scores[0, token]) == pytest.approx(-float(others.logsumexp(0)), rel=1e-5)


def test_beta_bounds_hold_a_third_of_the_density():
    """The regularised incomplete beta function of integers is the tail of a binomial distribution."""

    def below(t: float, alpha: int, beta: int) -> float:
        n = alpha + beta + 1
        return sum(math.comb(n, j) * t**j * (1 - t) ** (n - j) for j in range(alpha + 1, n + 1))

    for size in (1, 2, 7, 30):
        for alpha, bound in enumerate(bounds_of_size(size)[::2].tolist()):
            to_mode = below(alpha / size, alpha, size - alpha)
            expected = max(to_mode - 1 / 3, 0)
            assert below(bound, alpha, size - alpha) == pytest.approx(expected, abs=1e-12), (size, alpha)


def test_a_bit_logit_of_zero_is_half_an_agreement_for_beta_bounds():
    """√(t(1 − t)) is a semicircle, whose areas are known."""
    u = 1 - 2 * float(bounds_of_size(1)[1])
    assert (u * math.sqrt(1 - u**2) + math.asin(u)) / math.pi == pytest.approx(1 / 3, abs=1e-9)


def test_beta_bounds_of_a_long_code_are_those_of_the_normal_distribution():
    size, alpha = 8_000, 6_000
    bound = float(bounds_of_size(size)[2 * alpha])
    spread = math.sqrt(0.75 * 0.25 / size)
    assert bound == pytest.approx(0.75 - 0.9674 * spread, abs=0.02 * spread)  # Φ(−0.9674) = ½ − ⅓


def test_inverse_hamming_weights_explain_the_bits():
    """Windeatt and Ghaderi's q reproduces the distances; with independent columns it mixes codewords into the bits."""
    table = CodewordTable(build("minrandom", 40, bits=9, seed=2))
    z = torch.randn(5, 9, dtype=torch.float64)
    q = token_scores(z, table, "inverse_hamming")
    signs = table.signs().double()
    distances = (9 - signs @ signs.T) / 2
    torch.testing.assert_close(q @ distances, -token_scores(z, table, "hamming"))
    torch.testing.assert_close(q.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(q @ signs, z.sign())


def test_inverse_hamming_serves_training_after_inference():
    table = CodewordTable(build("minrandom", 40, bits=9, seed=2))
    z = torch.randn(5, 9)
    with torch.inference_mode():
        expected = token_scores(z, table, "inverse_hamming")
    z = z.clone().requires_grad_()
    token_scores(z, table, "inverse_hamming").sum().backward()
    assert torch.equal(token_scores(z, table, "inverse_hamming"), expected) and not z.grad.any()


def test_inverse_hamming_follows_a_code_that_is_replaced():
    first, second = (CodewordTable(build("minrandom", 40, bits=9, seed=seed)) for seed in (1, 2))
    z = torch.randn(5, 9)
    token_scores(z, first, "inverse_hamming")
    first.load_state_dict(second.state_dict())
    assert torch.equal(token_scores(z, first, "inverse_hamming"), token_scores(z, second, "inverse_hamming"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: token_scores(torch.zeros(1, 5000), CodewordTable.empty(151_936, 5000), "inverse_hamming"),
            "5001 × 5001 numbers for 151936 .* 200,080,008 bytes",
        ),
        (
            lambda: Decision(CodewordTable.empty(151_936, 2048), decoder="loss_weighted_linear"),
            "151936 classes and 2048 columns, 1,244,659,712 bytes; .* length 1766",
        ),
        (
            lambda: Decision(build("one_vs_all", 151_936), decoder="loss_weighted_exponential"),
            "151936 classes and 151936 columns",
        ),
    ],
)
def test_what_would_be_too_large_is_refused_with_its_size(call, message):
    with torch.device("meta"), pytest.raises(ConfigurationError, match=message):
        call()


def test_hit_rates_are_normalised_per_class_and_uniform_for_classes_never_seen():
    table = CodewordTable(PackedCodebook.from_array(np.array([[1, 1, 1], [-1, 1, 0], [1, -1, -1]], dtype=np.int8)))
    labels = torch.tensor([0, 0, 1, 1])
    outputs = torch.tensor([[1.0, 1.0, -1.0], [2.0, -1.0, -1.0], [-1.0, 1.0, 5.0], [1.0, 3.0, 5.0]])
    weights = fit("loss_weighted_linear", outputs, labels, table)
    assert weights["hits"].tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]] and weights["seen"].tolist() == [2, 2, 0]
    scores = token_scores(torch.tensor([3.0, -6.0, 9.0]), table, "loss_weighted_linear", weights=weights)
    torch.testing.assert_close(scores, torch.tensor([(2 * 3 - 6) / 3, (-3 - 2 * 6) / 3, (3 + 6 - 9) / 3]))


def test_sigmoids_recover_the_line_that_made_the_labels():
    generator = torch.Generator().manual_seed(0)
    table = CodewordTable(build("minimal", 8))
    labels = torch.randint(8, (20_000,), generator=generator)
    # Outputs whose true log-odds are 2 z − 0.5: z is Gaussian around ±½ with variance ½, shifted by ¼.
    outputs = table.lookup(labels) / 2 + 0.5**0.5 * torch.randn(20_000, 3, generator=generator) + 0.25
    weights = fit("probabilistic", outputs, labels, table)
    a, b = weights["sigmoids"].view(torch.float32)
    torch.testing.assert_close(a, torch.full((3,), -2.0), atol=0.1, rtol=0)
    torch.testing.assert_close(b, torch.full((3,), 0.5), atol=0.1, rtol=0)


def test_sigmoids_of_columns_that_separate_or_say_nothing_are_finite():
    table = CodewordTable(build("minimal", 4))
    labels = torch.tensor([0, 3] * 4)
    for outputs in (1000 * table.lookup(labels), torch.zeros(8, 2), torch.full((8, 2), 3.0)):
        weights = fit("probabilistic", outputs, labels, table)
        assert torch.isfinite(weights["sigmoids"].view(torch.float32)).all()
        assert torch.isfinite(token_scores(outputs, table, "probabilistic", weights=weights)).all()


def test_probabilities_of_all_tokens_sum_to_one_and_rank_without_the_unclaimed_share():
    table = CodewordTable(build("minrandom", 20, bits=40, seed=0))
    labels = torch.arange(200) % 20
    weights = fit("probabilistic", table.lookup(labels) + 2 * torch.randn(200, 40), labels, table)
    z = torch.randn(30, 40)
    scores = token_scores(z, table, "probabilistic", weights=weights)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(30))
    a, b = weights["sigmoids"].view(torch.float32)
    ids = decode(z, table, decoder="probabilistic", k=20, weights=weights).ids
    assert torch.equal(ids, decode(-(a * z + b), table, k=20).ids)


def test_fit_refuses_what_it_cannot_use():
    table = CodewordTable(build("minimal", 4))
    z, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    for call, error, message in [
        (lambda: fit("hamming", z, labels, table), ConfigurationError, "nothing to fit; those that do: loss_weight"),
        (lambda: fit("probabilistic", z, labels[:2], table), ConfigurationError, r"\(tokens, 2\) and \(tokens,\)"),
        (lambda: fit("probabilistic", z, labels + 4, table), DataError, "must be in 0 … 3, found 4 … 4"),
        (lambda: fit("probabilistic", z[:0], labels[:0], table), DataError, "found none"),
        (lambda: fit("probabilistic", z / 0, labels, table), ConfigurationError, "NaN or infinity"),
        (lambda: fit("probabilistik", z, labels, table), ConfigurationError, "did you mean 'probabilistic'"),
        (lambda: decode(z, table, decoder="probabilistic"), ConfigurationError, "fit_decoder"),
        (
            lambda: decode(z, table, decoder="probabilistic", weights=fit("loss_weighted_linear", z, labels, table)),
            ConfigurationError,
            "are not those of this decoder and code",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()


@pytest.fixture
def registered():
    """Registers decoders for one test."""
    before = dict(DECODERS._parts)
    yield
    DECODERS._parts.clear()
    DECODERS._parts.update(before)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("table", [TERNARY, CodewordTable(build("one_vs_all", 3))], ids=["ternary", "implicit"])
def test_a_decoder_of_ones_own_serves_everywhere(table):
    def definition(bit_logits, codewords):
        return -(torch.tanh(bit_logits / 2) - codewords).abs().amax(-1)

    @DECODERS.register("chebyshev")
    def chebyshev(bit_logits):
        return ByCodeword(bit_logits, definition)

    @DECODERS.register("weighted_margin")
    def weighted_margin(bit_logits):
        return Terms(bit_logits * torch.arange(3).to(bit_logits), None, None)

    z = torch.randn(4, 5, 3, dtype=torch.float64)
    for decoder in ("chebyshev", "weighted_margin"):
        decision = Decision(table, decoder=decoder)
        assert decision.decode(z, k=2).ids.shape == (4, 5, 2)
        assert torch.equal(decision.decode(z).ids[..., 0], token_scores(z, table, decoder).argmax(-1))
    torch.testing.assert_close(
        token_scores(z, table, "chebyshev"), definition(z.unsqueeze(-2), table.signs().to(z)), rtol=1e-9, atol=1e-9
    )


def test_codewords_are_scored_in_pieces(monkeypatch):
    table = CodewordTable(build("sparse_random", 23, bits=19, seed=2))
    z = torch.randn(4, 19, dtype=torch.float64)
    weights = fit("loss_weighted_linear", table.lookup(torch.arange(23)), torch.arange(23), table)
    decoders = ("loss_exponential", "loss_weighted_linear", "loss_weighted_exponential")
    whole = [token_scores(z, table, decoder, weights=weights) for decoder in decoders]
    monkeypatch.setattr("codehead.decoding.decoders.CHUNK_SYMBOLS", 100)
    for decoder, expected in zip(decoders, whole, strict=True):
        torch.testing.assert_close(token_scores(z, table, decoder, weights=weights), expected)
