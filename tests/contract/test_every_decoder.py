"""What every registered decoder promises, for binary, ternary and implicit codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes import build
from codehead.codes.codebook import PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, decode, token_scores
from codehead.decoding.reference import REFERENCES
from codehead.errors import ConfigurationError

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


def up_to_a_constant(scores: torch.Tensor) -> torch.Tensor:
    return scores - scores.max(-1, keepdim=True).values


def assert_equals_reference(bit_logits: torch.Tensor, table: CodewordTable, decoder: str, **tolerance) -> None:
    fast = token_scores(bit_logits, table, decoder).double()
    truth = token_scores(bit_logits, table, decoder, impl="reference")
    if decoder == "likelihood":  # defined up to a constant of the position
        fast, truth = up_to_a_constant(fast), up_to_a_constant(truth)
    torch.testing.assert_close(fast, truth, **tolerance)


def test_has_a_plain_reference(decoder):
    assert decoder in REFERENCES.names()


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 5)])
def test_float64_equals_the_plain_definition(decoder, table, shape):
    bit_logits = torch.randn(*shape, table.length, dtype=torch.float64) * 3
    assert_equals_reference(bit_logits, table, decoder, rtol=1e-12, atol=1e-12) if bit_logits.numel() else None
    assert token_scores(bit_logits, table, decoder).shape == (*shape, table.num_classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_scored_in_float32(decoder, table, dtype):
    bit_logits = (torch.randn(9, table.length) * 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert token_scores(bit_logits, table, decoder).dtype == torch.float32
        assert_equals_reference(bit_logits, table, decoder, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_extreme_bit_logits_stay_finite(decoder, table, scale):
    assert torch.isfinite(token_scores(torch.randn(4, table.length) * scale, table, decoder)).all()


def test_a_codeword_is_nearest_to_itself(decoder, table):
    if decoder == "hamming" and table.is_ternary:
        pytest.skip("a zero costs one half whatever the bit, so a ternary codeword need not be nearest to itself")
    codewords = table.lookup(torch.arange(table.num_classes)) * 20.0
    assert torch.equal(decode(codewords, table, decoder=decoder).ids.squeeze(-1), torch.arange(table.num_classes))


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
    bit_logits = torch.from_numpy(rng.normal(size=(3, length)) * 4)
    assert_equals_reference(bit_logits, table, decoder, rtol=1e-10, atol=1e-10)


def test_equal_scores_are_ordered_by_lowest_id_or_by_seed(decoder):
    rows = np.array([[1, 1], [-1, 1], [1, 1], [-1, -1], [1, 1]], dtype=np.int8)
    table = CodewordTable(PackedCodebook.from_array(rows, allow_duplicates=True))
    z = torch.tensor([[2.0, 3.0], [2.0, 3.0]])
    assert decode(z, table, decoder=decoder, k=5).ids.tolist() == [[0, 2, 4, 1, 3]] * 2
    orders = {tuple(decode(z, table, decoder=decoder, k=3, ties=seed).ids[0].tolist()) for seed in range(20)}
    assert len(orders) > 1 and all(sorted(order) == [0, 2, 4] for order in orders)
    assert (
        decode(z, table, decoder=decoder, ties=7).ids.tolist() == decode(z, table, decoder=decoder, ties=7).ids.tolist()
    )


def test_top_k_is_sorted_and_its_scores_belong_to_its_ids(decoder, table):
    z = torch.randn(6, table.length)
    decoded = decode(z, table, decoder=decoder, k=table.num_classes)
    scores = token_scores(z, table, decoder)
    assert torch.equal(decoded.scores, scores.gather(-1, decoded.ids))
    assert (decoded.scores.diff(dim=-1) <= 0).all()
    assert torch.equal(decoded.ids.sort(-1).values, torch.arange(table.num_classes).expand(6, -1))


def test_reference_and_matmul_choose_the_same_tokens(decoder, table):
    z = torch.randn(50, table.length, dtype=torch.float64)
    if decoder == "hamming":  # integers: equal scores are equal in both
        fast, truth = (decode(z, table, decoder=decoder, k=2, impl=i) for i in ("matmul", "reference"))
        assert torch.equal(fast.ids, truth.ids)
    else:
        fast, truth = (decode(z, table, decoder=decoder, impl=i) for i in ("matmul", "reference"))
        assert (fast.ids == truth.ids).float().mean() > 0.95


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_nan_and_infinity_are_refused(decoder, table, value):
    z = torch.zeros(2, table.length)
    z[1, 0] = float(value)
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        decode(z, table, decoder=decoder)


def test_scores_on_the_meta_device_have_their_shape(decoder):
    table = CodewordTable(build("sparse_random", 23, bits=19, seed=2)).to("meta")
    assert token_scores(torch.zeros(2, 19, device="meta"), table, decoder).shape == (2, 23)


def test_bad_arguments_are_named(decoder, table):
    z = torch.zeros(1, table.length)
    for call, message in [
        (lambda: decode(z, table, decoder=decoder, k=0), "k must be between 1 and the number of classes"),
        (lambda: decode(z, table, decoder=decoder, k=table.num_classes + 1), "k must be"),
        (lambda: decode(z, table, decoder=decoder, ties="first"), "ties must be"),
        (lambda: decode(z, table, decoder=decoder + "x"), f"did you mean '{decoder}'"),
        (lambda: decode(z, table, decoder=decoder, impl="matmull"), "did you mean 'matmul'"),
        (lambda: decode(torch.zeros(1, table.length + 1), table, decoder=decoder), "code has length"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            call()
