"""What every registered decoder promises, for binary, ternary and implicit codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes import build
from codehead.codes.codebook import PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder, decode, fit, posterior_scores, token_scores
from codehead.errors import ConfigurationError
from reference_decoders import REFERENCES, true_scores, truly_decoded

TABLES = {
    "binary": lambda: CodewordTable(build("minrandom", 37, bits=11, seed=1)),
    "ternary": lambda: CodewordTable(build("sparse_random", 23, bits=19, seed=2)),
    "one_vs_one": lambda: CodewordTable(build("one_vs_one", 7)),
    "one_vs_all": lambda: CodewordTable(build("one_vs_all", 13)),
}


@pytest.fixture(params=DECODERS.names())
def decoder(request):
    return request.param


@pytest.fixture(params=list(TABLES))
def table(request):
    return TABLES[request.param]()


def chosen(decoder: str, table: CodewordTable, noise: float = 1.0, num_seen: int | None = None) -> dict[str, Any]:
    """The decoder and, if it has weights, those fitted to noisy codewords of the first classes."""
    if not isinstance(DECODERS.get(decoder), FittedDecoder):
        return {"decoder": decoder}
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3 * table.num_classes) % (num_seen or table.num_classes)
    errors = torch.randn(len(labels), table.length, generator=generator)
    return {"decoder": decoder, "weights": fit(decoder, 2 * table.lookup(labels) + noise * errors, labels, table)}


@pytest.fixture
def options(decoder, table):
    return chosen(decoder, table)


def up_to_a_constant(scores: torch.Tensor) -> torch.Tensor:
    return scores - scores.max(-1, keepdim=True).values


def assert_equals_reference(bit_logits: torch.Tensor, table: CodewordTable, options, **tolerance) -> None:
    fast = token_scores(bit_logits, table, **options).double()
    truth = true_scores(bit_logits, table, **options)
    if options["decoder"] == "likelihood":  # defined up to a constant of the position
        fast, truth = up_to_a_constant(fast), up_to_a_constant(truth)
    if options["decoder"] == "probabilistic":  # K is what is left of 1, so that small probabilities are inexact
        fast, truth = fast.exp(), truth.exp()
    torch.testing.assert_close(fast, truth, **tolerance)


def test_has_a_plain_reference(decoder):
    assert decoder in REFERENCES


@pytest.mark.parametrize("shape", [(1,), (3, 0), (70, 2)])
def test_packed_codewords_score_like_unpacked_ones(options, table, shape):
    bit_logits = torch.randn(*shape, table.length, dtype=torch.float64) * 3
    unpacked = token_scores(bit_logits, table, **options)
    table.packed = True
    torch.testing.assert_close(token_scores(bit_logits, table, **options), unpacked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [3, 30])
@pytest.mark.parametrize("decoder", ["likelihood", "probabilistic"])
def test_large_bit_logits_are_as_exact_as_small_ones(decoder, size):
    table = TABLES["binary"]()
    bit_logits = torch.randn(200, table.length, dtype=torch.float64) * size
    assert_equals_reference(bit_logits, table, chosen(decoder, table), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 5)])
def test_float64_equals_the_plain_definition(options, table, shape):
    bit_logits = torch.randn(*shape, table.length, dtype=torch.float64) * 3
    assert_equals_reference(bit_logits, table, options, rtol=1e-12, atol=1e-12) if bit_logits.numel() else None
    assert token_scores(bit_logits, table, **options).shape == (*shape, table.num_classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_scored_in_float32(options, table, dtype):
    bit_logits = (torch.randn(9, table.length) * 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert token_scores(bit_logits, table, **options).dtype == torch.float32
        assert_equals_reference(bit_logits, table, options, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_extreme_bit_logits_stay_finite(options, table, scale):
    assert torch.isfinite(token_scores(torch.randn(4, table.length) * scale, table, **options)).all()


def test_a_codeword_is_nearest_to_itself(decoder, options, table):
    if decoder == "hamming" and table.is_ternary:
        pytest.skip("a zero costs one half whatever the bit, so a ternary codeword need not be nearest to itself")
    codewords = table.lookup(torch.arange(table.num_classes)) * 20.0
    assert torch.equal(decode(codewords, table, **options).ids.squeeze(-1), torch.arange(table.num_classes))


@pytest.mark.parametrize("decoder", DECODERS.names())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_codes_and_bits_equal_the_plain_definition(decoder, data):
    num_classes, length = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 20))
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    symbols = [-1, 1] if data.draw(st.booleans()) else [-1, 0, 1]
    array = rng.choice(np.array(symbols, dtype=np.int8), size=(num_classes, length))
    table = CodewordTable(PackedCodebook.from_array(array, allow_duplicates=True))
    options = chosen(decoder, table, noise=3.0, num_seen=(num_classes + 1) // 2)
    bit_logits = torch.from_numpy(rng.normal(size=(3, length)) * 4)
    tolerance = 1e-7 if decoder == "inverse_hamming" else 1e-10  # the inverse may be of any condition
    assert_equals_reference(bit_logits, table, options, rtol=tolerance, atol=tolerance)


def test_equal_scores_are_ordered_by_lowest_id_or_by_seed(decoder):
    rows = np.array([[1, 1], [-1, 1], [1, 1], [-1, -1], [1, 1]], dtype=np.int8)
    table = CodewordTable(PackedCodebook.from_array(rows, allow_duplicates=True))
    options = chosen(decoder, table, noise=0.0)  # equal codewords then have equal weights
    z = torch.tensor([[2.0, 3.0], [2.0, 3.0]])
    assert decode(z, table, k=5, **options).ids.tolist() == [[0, 2, 4, 1, 3]] * 2
    orders = {tuple(decode(z, table, k=3, ties=seed, **options).ids[0].tolist()) for seed in range(20)}
    assert len(orders) > 1 and all(sorted(order) == [0, 2, 4] for order in orders)
    assert decode(z, table, ties=7, **options).ids.tolist() == decode(z, table, ties=7, **options).ids.tolist()


def test_top_k_is_sorted_and_its_scores_belong_to_its_ids(options, table):
    z = torch.randn(6, table.length)
    decoded = decode(z, table, k=table.num_classes, **options)
    scores = token_scores(z, table, **options)
    assert torch.equal(decoded.scores, scores.gather(-1, decoded.ids))
    assert (decoded.scores.diff(dim=-1) <= 0).all()
    assert torch.equal(decoded.ids.sort(-1).values, torch.arange(table.num_classes).expand(6, -1))


def test_reference_and_library_choose_the_same_tokens(decoder, options, table):
    z = torch.randn(50, table.length, dtype=torch.float64)
    fast, truth = decode(z, table, k=2, impl="plain", **options), truly_decoded(z, table, k=2, **options)
    if decoder in ("hamming", "laplacian"):  # counts: equal scores are equal in both
        assert torch.equal(fast.ids, truth.ids)
    best = true_scores(z, table, **options).gather(-1, fast.ids)
    torch.testing.assert_close(best, truth.scores, rtol=1e-9, atol=1e-9)


def test_nan_and_infinity_are_refused(options, table):
    for value in ("nan", "inf", "-inf"):
        z = torch.zeros(2, table.length)
        z[1, 0] = float(value)
        for call in (decode, token_scores):
            with pytest.raises(ConfigurationError, match="NaN or infinity"):
                call(z, table, **options)


SIZES = [0.0, 1e-30, 0.3, 1.7, 40.0, 900.0, 3e4, 2e7, 1e12, 1e20, 1e37, 3.4e38]


@pytest.mark.parametrize("decoder", DECODERS.names())
@settings(max_examples=40)
@given(data=st.data())
def test_bit_logits_of_every_finite_size_are_ranked_as_defined(decoder, data):
    symbols = [-1, 1] if data.draw(st.booleans(), "binary") else [-1, 0, 1]
    num_classes, length = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    array = rng.choice(np.array(symbols, dtype=np.int8), size=(num_classes, length))
    table = CodewordTable(PackedCodebook.from_array(array, allow_duplicates=True))
    table.packed = decoder != "inverse_hamming" and data.draw(st.booleans(), "packed")
    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    noise = rng.normal(size=(3, length)).clip(-1, 1)
    z = torch.from_numpy(rng.choice(sizes, size=(3, length)) * noise).float()
    options = chosen(decoder, table, noise=3.0)
    fast, truth = decode(z, table, k=2, **options), truly_decoded(z, table, k=2, **options)
    assert torch.isfinite(fast.scores).all()
    reached = true_scores(z, table, **options).gather(-1, fast.ids)
    best = truth.scores
    if decoder == "probabilistic":  # its reference underflows
        reached, best = reached.exp(), best.exp()
    is_linear = decoder in ("loss_linear", "loss_weighted_linear")
    scale = z.double().abs().amax(-1, keepdim=True) if is_linear else best.abs()
    assert ((reached - best).abs() <= 1e-5 * scale.clamp(min=1)).all()


@pytest.mark.parametrize("size", [1e3, 1e10, 1e20, 1e37])
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_one_diverged_bit_does_not_drown_the_others(name, size):
    table = TABLES[name]()
    z = torch.randn(20, table.length)
    z[:, 3] = -size
    truth = true_scores(z, table)
    scores = token_scores(z, table)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.softmax(-1), truth.softmax(-1).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(posterior_scores(z, table), scores)


def test_bit_logits_that_are_no_real_numbers_are_refused(options, table):
    for dtype in (torch.complex64, torch.bool, torch.int64, torch.uint8):
        for call in (decode, token_scores):
            with pytest.raises(ConfigurationError, match=f"bit logits must be floating-point numbers, got {dtype}"):
                call(torch.ones(2, table.length).to(dtype), table, **options)


def test_bit_logits_that_overflow_float64_are_refused(options, table):
    z = torch.full((1, table.length), 1e301, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="as large as 1e\\+301 overflow"):
        decode(z, table, **options)


def test_scores_on_the_meta_device_have_their_shape(decoder):
    table = TABLES["ternary"]()
    options = chosen(decoder, table)
    if "weights" in options:
        options["weights"] = {name: values.to("meta") for name, values in options["weights"].items()}
    assert token_scores(torch.zeros(2, 19, device="meta"), table.to("meta"), **options).shape == (2, 23)


def test_bad_arguments_are_named(decoder, options, table):
    z = torch.zeros(1, table.length)
    for call, message in [
        (lambda: decode(z, table, k=0, **options), "k must be between 1 and the number of classes"),
        (lambda: decode(z, table, k=table.num_classes + 1, **options), "k must be"),
        *[
            (lambda ties=ties: decode(z, table, ties=ties, **options), "ties must be")
            for ties in ("first", -1, 2**64, 2**70, True, 1.0, None)
        ],
        (lambda: decode(z, table, decoder=decoder + "x"), f"did you mean '{decoder}'"),
        (lambda: decode(z, table, impl="reference", **options), "unknown impl 'reference'; choose one of auto, plain"),
        (lambda: decode(torch.zeros(1, table.length + 1), table, **options), "code has length"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            call()
