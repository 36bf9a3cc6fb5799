"""Tokens found by scanning against the float64 definition, on random and on adversarial input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes.codebook import PackedCodebook
from codehead.codes.packing import pack_bits
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, decode, fast_scan, scan
from codehead.decoding.extras import Corrections, Refinement
from codehead.decoding.fast_scan import FastScan, Numbers, bit_tables
from codehead.errors import ConfigurationError
from codehead.head_outputs import CorrectedBits

BILINEAR = ("likelihood", "hamming", "euclidean", "manhattan", "attenuated_euclidean", "loss_linear")
FAST = pytest.mark.parametrize("fast", [True, False], ids=["faiss", "torch"])


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """So that small vocabularies take every path: few tokens at first, then more, then all in several chunks."""
    monkeypatch.setattr(scan, "FIRST", 2)
    monkeypatch.setattr(scan, "MORE", 4)
    monkeypatch.setattr(scan, "CHUNK", 50)


def code(classes: int, length: int, ternary: bool = False, seed: int = 0) -> CodewordTable:
    rng = np.random.default_rng(seed)
    symbols = rng.choice([-1, 0, 1] if ternary else [-1, 1], (classes, length))
    return CodewordTable(PackedCodebook.from_array(symbols, allow_duplicates=True))


def expected(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of `(positions, V)`, equal ones by id; scores that differ by rounding alone are equal."""
    rounded = (scores * 1e9).round() / 1e9
    values, ids = rounded.sort(dim=-1, descending=True, stable=True)
    return ids[:, :k], values[:, :k]


def check(bit_logits, table, k, fast, decoder="likelihood"):
    ids, scores = scan.best_tokens(bit_logits, table, decoder, k, fast=fast)
    form = DECODERS.get(decoder)(bit_logits.double())
    scored = form.scores(table)
    wanted = expected(scored.finished(scored.values), k)
    torch.testing.assert_close(scores.double(), wanted[1], rtol=1e-5, atol=1e-5)
    rounded = (scored.finished(scored.values) * 1e9).round() / 1e9
    assert torch.equal(rounded.gather(1, ids), wanted[1])  # what ties but for rounding may come in another order
    assert all(len(set(row)) == k for row in ids.tolist())


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 300), st.integers(1, 90), st.integers(1, 3), st.booleans(), st.sampled_from(BILINEAR),
    st.booleans(), st.integers(0, 2**16), st.data(),
)  # fmt: skip
def test_any_code_gives_what_the_definition_gives(classes, length, positions, ternary, decoder, fast, seed, data):
    table = code(classes, length, ternary, seed)
    k = data.draw(st.integers(1, classes))
    generator = torch.Generator().manual_seed(seed)
    check(torch.randn(positions, length, generator=generator), table, k, fast, decoder)


@FAST
@pytest.mark.parametrize("classes", [64, 1000, 1001])
@pytest.mark.parametrize("k", [1, 7, 64])
@pytest.mark.parametrize("kind", ["equal", "giant", "tiny", "integers", "denormal"])
def test_hard_bit_logits(kind, classes, k, fast):
    bit_logits = {
        "equal": torch.zeros(2, 37),
        "giant": torch.randn(2, 37).index_fill(1, torch.tensor([5]), 1e6),
        "tiny": 1e-20 * torch.randn(2, 37),
        "integers": torch.randint(-1, 2, (2, 37)).float(),  # most scores tie
        "denormal": torch.full((2, 37), 1e-44),
    }[kind]
    table = code(classes, 37)
    ids, _ = scan.best_tokens(bit_logits, table, "likelihood", k, fast=fast)
    exact = bit_logits.double() / 2 @ table.signs().double().T
    chosen = exact.gather(1, ids)
    assert torch.equal(chosen, exact.sort(dim=1, descending=True).values[:, :k]) or kind in ("giant", "tiny")
    torch.testing.assert_close(chosen, exact.sort(dim=1, descending=True).values[:, :k], rtol=1e-12, atol=0)
    if kind in ("equal", "integers"):  # sums that float64 holds exactly tie exactly
        assert torch.equal(ids, exact.sort(dim=1, descending=True, stable=True).indices[:, :k])


@FAST
def test_equal_codewords_are_ordered_by_id(fast):
    table = CodewordTable(
        PackedCodebook.from_array(np.tile(code(20, 24).signs().numpy(), (30, 1)), allow_duplicates=True)
    )
    check(torch.randn(3, 24), table, 45, fast)


@FAST
def test_codewords_longer_than_sixteen_bit_sums_hold(fast):
    check(torch.randn(2, 2000), code(300, 2000), 5, fast)


@FAST
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value, fast, monkeypatch):
    monkeypatch.setattr(fast_scan, "available", lambda: fast)
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        decode(torch.tensor([[value, 1.0, 2.0]]), code(9, 3), impl="scan")


def corrections(classes: int) -> Corrections:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randperm(classes, generator=generator)[: classes // 4].sort().values
    plane = torch.from_numpy(pack_bits(np.random.default_rng(1).integers(0, 2, (len(ids), 11))))
    shortlist = torch.randperm(classes, generator=generator)[:9]
    found = Corrections(classes, shortlist, True, Refinement.of(classes, ids, plane, 11))
    with torch.no_grad():
        found.token_bias.normal_(std=2, generator=generator)
    return found


@FAST
@pytest.mark.parametrize("k", [1, 20, 400])
@pytest.mark.parametrize("classes", [400, 1003])
def test_what_corrections_add_is_scored_in_the_same_call(classes, k, fast):
    table, added = code(classes, 21), corrections(classes)
    outputs = torch.randn(3, 21 + added.num_outputs, dtype=torch.float64)
    found = scan.best_tokens(outputs, table, "likelihood", k, added, fast=fast)
    wanted = expected(CorrectedBits(table, added).scores(outputs), k)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-8, atol=1e-8)
    assert torch.equal(found[0], wanted[0])


def test_a_changed_bias_or_code_is_seen():
    table, added = code(400, 21), corrections(400)
    outputs = torch.randn(2, 21 + added.num_outputs, dtype=torch.float64)
    first = scan.best_tokens(outputs, table, "likelihood", 1, added, fast=True)[0]
    with torch.no_grad():
        added.token_bias[int(first[0]) - 1] += 1000
    assert int(scan.best_tokens(outputs, table, "likelihood", 1, added, fast=True)[0][0]) == int(first[0]) - 1
    table.sign_plane.copy_(code(400, 21, seed=5).sign_plane)
    scores = CorrectedBits(table, added).scores(outputs)
    assert torch.equal(scan.best_tokens(outputs, table, "likelihood", 3, added, fast=True)[0], expected(scores, 3)[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 1200), st.integers(0, 2**16), st.sampled_from([1e-30, 1.0, 1e30]))
def test_the_error_of_a_fast_scan_bounds_every_sum(rows, length, seed, size):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (rows, length))
    weights = size * rng.standard_normal((2, length)) * rng.choice([1, 100], (2, length), p=[0.9, 0.1])
    found = FastScan(pack_bits(bits)).search(bit_tables(weights), rows)
    assert np.array_equal(np.sort(found.ids), np.tile(np.arange(rows), (2, 1)))
    sums = np.take_along_axis(weights @ bits.T, found.ids, 1)
    assert (np.abs(sums - found.scores) <= found.errors[:, None]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 2**16), st.sampled_from([3, 40]))
def test_the_error_bounds_sums_of_tables_in_parts(rows, bytes_each, seed, most):
    rng = np.random.default_rng(seed)
    nibbles = rng.integers(0, 16, (rows, 2 * bytes_each), dtype=np.uint8)
    tables = rng.standard_normal((2, 2 * bytes_each, 16))
    parts = rng.integers(1, most + 1, 2 * bytes_each)  # many need a byte more, and few do not
    found = FastScan(nibbles[:, ::2] | nibbles[:, 1::2] << 4, parts).search(tables, rows)
    every = tables[:, np.arange(2 * bytes_each), nibbles].sum(axis=2)
    sums = np.take_along_axis(every, found.ids, 1)
    assert (np.abs(sums - found.scores) <= found.errors[:, None]).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_numbers_as_nibbles_err_by_no_more_than_they_say(values):
    numbers = Numbers.of(np.array(values))
    nibbles = np.stack([numbers.plane & 15, numbers.plane >> 4], axis=2).reshape(len(values), 4)
    sums = sum(numbers.tables[part][nibbles[:, part]] for part in range(4))
    assert (np.abs(sums - values) <= numbers.error).all()


def test_the_choice_says_why(monkeypatch):
    table = code(20_000, 16)
    assert scan.choose("auto", table, "likelihood").impl == "scan"
    assert "scanned faster" in scan.choose("auto", table, "likelihood").why
    assert "asked for" in scan.choose("plain", table, "likelihood").why
    assert "as fast" in scan.choose("auto", code(50, 16), "likelihood").why
    assert "as fast" in scan.choose("auto", table, "likelihood", k=4000).why
    assert "not sums over bits" in scan.choose("auto", table, "laplacian").why
    monkeypatch.setattr(fast_scan, "available", lambda: False)
    assert scan.choose("auto", table, "likelihood")[:2] == (
        "plain",
        "FAISS is not installed (pip install 'codehead[fast]')",
    )
    assert not scan.choose("scan", table, "likelihood").fast
    with pytest.raises(ConfigurationError, match=r"codehead\[fast\]"):
        FastScan(np.zeros((1, 1), dtype=np.uint8))


def test_scanning_is_chosen_for_as_many_positions_as_it_pays_for():
    table = code(20_000, 64)
    shortlist = Corrections(20_000, torch.arange(10_000), token_bias=False)

    def chosen(size, added=None):
        return scan.choose("auto", table, "likelihood", added, size=size).impl

    assert [chosen(size) for size in (1, 8, 64)] == ["scan", "scan", "scan"]
    assert [chosen(size, shortlist) for size in (1, 64)] == ["plain", "plain"]  # every listed token is ranked
    assert [chosen(size, Corrections(20_000, torch.arange(1000), token_bias=False)) for size in (1, 64)] == [
        "scan",
        "plain",
    ]
    table.packed = True
    assert [chosen(size, shortlist) for size in (1, 64, 2000)] == ["scan", "scan", "plain"]


@pytest.mark.parametrize("impl", ["plain", "scan"])
@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.ones(1, 24, dtype=torch.int64), "floating-point"),
        (torch.full((1, 24), 1e305, dtype=torch.float64), "overflow"),
    ],
    ids=["integers", "huge"],
)
def test_outputs_that_cannot_be_added_up_are_refused_alike(outputs, message, impl):
    with pytest.raises(ConfigurationError, match=message):
        decode(outputs, code(300, 24), impl=impl)


def test_a_scan_that_is_impossible_is_refused():
    with pytest.raises(ConfigurationError, match="not sums over bits"):
        decode(torch.randn(1, 16), code(50, 16), decoder="laplacian", impl="scan")
    with pytest.raises(ConfigurationError, match="by token id"):
        decode(torch.randn(1, 16), code(50, 16), ties=3, impl="scan")
    with pytest.raises(ConfigurationError, match="unknown"):
        decode(torch.randn(1, 16), code(50, 16), impl="fast")


def test_the_one_door_scans_large_codes_and_agrees_with_scoring_all():
    table = code(5000, 40)
    bit_logits = torch.randn(2, 3, 40)
    auto, plain = decode(bit_logits, table, k=5), decode(bit_logits, table, k=5, impl="plain")
    assert auto.ids.shape == (2, 3, 5)
    assert torch.equal(auto.ids, plain.ids)
    torch.testing.assert_close(auto.scores, plain.scores)
    assert auto.scores.dtype == torch.float32


class FindsNothingAtFirst:
    """An index of FAISS whose first search finds no rows, which has been seen to happen."""

    def __init__(self, index):
        self.index, self.M, self.asked = index, index.M, 0

    def search(self, query, count):
        self.asked += 1
        scores, ids = self.index.search(query, count)
        return (scores, ids) if self.asked > 1 else (np.zeros_like(scores), np.full_like(ids, -1))


def test_rows_that_faiss_does_not_find_are_searched_again():
    rng = np.random.default_rng(0)
    scan, tables = FastScan(rng.integers(0, 256, (64, 5), dtype=np.uint8)), bit_tables(rng.normal(size=(2, 40)))
    wanted = scan.search(tables, 3)
    scan._index = FindsNothingAtFirst(scan._index)
    found = scan.search(tables, 3)
    assert found.ids.tolist() == wanted.ids.tolist()
    assert scan._index.asked == 2


def test_a_gpu_is_refused_with_what_is_as_fast_there():
    assert "'cuda', where multiplying all rows should be as fast" in fast_scan.obstacle("cuda")
    assert fast_scan.obstacle("cpu") is None
