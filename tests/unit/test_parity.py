"""Check bits: the BCH codes against published ones, random checks against their definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codehead.codes import build, load, quality
from codehead.codes.packing import RandomBits, unpack_bits
from codehead.codes.parity import check_matrix, choices, choose, multiply, powers, remainder
from codehead.errors import CodebookError, ConfigurationError


def polynomial(text: str) -> int:
    """The int of "x^4 + x + 1"."""
    exponents = {"1": 0, "x": 1}
    return sum(1 << exponents.get(term, int(term.partition("^")[2] or 0)) for term in text.split(" + "))


def test_generators_and_matrices_of_length_15(data_dir: Callable[[str], Path]) -> None:
    codes = json.loads(data_dir("codes/bch_binary.json").read_text())
    known = {choice.generator: choice for choice in choices(4, 14)}
    compared = set()
    for code in codes:
        if not code["is_narrow_sense"] or code["alpha"] != 2 or code["n"] == code["k"]:
            continue
        choice = known[polynomial(code["generator_poly"])]
        assert choice.checks == code["n"] - code["k"]
        assert choice.distance == code["true_min_distance_bruteforced_by_helper"]
        if code["is_systematic"]:
            assert np.array_equal(check_matrix(code["k"], choice), np.array(code["G"])[:, code["k"] :])
            compared.add(code["k"])
    assert compared == {1, 5, 7, 11}


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (3, [(3, 3), (6, 7)]),
        (5, [(5, 3), (10, 5), (15, 7), (20, 11), (25, 15), (30, 31)]),
        (6, [(6, 3), (12, 5), (18, 7), (24, 9), (27, 11), (33, 13), (39, 15), (45, 21), (47, 23), (53, 27)]),
    ],
)
def test_check_bits_and_distances_of_the_printed_tables(m: int, expected: list[tuple[int, int]]) -> None:
    """Lin, Costello, Error Control Coding, table 6.1: n, k, t of the primitive binary BCH codes."""
    assert [(choice.checks, choice.distance) for choice in choices(m, 2**m)][: len(expected)] == expected


@pytest.mark.parametrize("m", range(2, 11))
def test_powers_are_all_of_the_field(m: int) -> None:
    assert sorted(powers(m)) == list(range(1, 2**m))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 2**12))
def test_division_is_undone_by_multiplication(dividend: int, divisor: int) -> None:
    rest = remainder(dividend, divisor)
    assert rest.bit_length() < divisor.bit_length()
    quotient_times_divisor = dividend ^ rest
    assert remainder(quotient_times_divisor, divisor) == 0
    assert remainder(multiply(dividend, divisor) ^ rest, divisor) == rest


@pytest.mark.parametrize(("bits", "parity"), [(4, 3), (5, 4), (6, 8), (7, 8), (9, 10), (10, 15), (8, 20)])
def test_shortened_codes_keep_their_distance(bits: int, parity: int) -> None:
    """All 2^bits rows, by brute force."""
    choice = choose(bits, parity)
    rows = np.array(list(product([0, 1], repeat=bits)))
    codewords = np.concatenate([rows, rows @ check_matrix(bits, choice) % 2], axis=1)
    weights = codewords[1:].sum(axis=1)
    assert weights.min() >= choice.distance
    for word in codewords[1:200]:
        assert remainder(int("".join(map(str, word)), 2), choice.generator) == 0


@pytest.mark.parametrize(("parity", "distance"), [(6, 3), (12, 5), (18, 7), (28, 9)])
def test_bch_parity_guarantees_a_distance(parity: int, distance: int) -> None:
    plain = build("minrandom", 600, bits=40, candidates=1)
    codebook = build("minrandom", 600, bits=40, candidates=1, parity=parity, parity_kind="bch")
    assert codebook.length == 40 + parity
    assert np.array_equal(codebook.to_array()[:, :40], plain.to_array())
    assert quality(codebook).row_distance_min >= max(distance, quality(plain).row_distance_min)


def test_minimal_code_with_bch_parity_corrects() -> None:
    """Distinct rows suffice: the minimal code has distance 1, with 15 BCH check bits at least 7."""
    codebook = build("minimal", 1000, parity=15, parity_kind="bch")
    assert quality(codebook).row_distance_min >= 7
    assert quality(build("minimal", 1000)).row_distance_min == 1
    assert codebook.seed is None
    assert codebook.params == {"parity": 15, "parity_kind": "bch"}


@pytest.mark.parametrize("design", ["minimal", "minrandom", "merged_decoc", "itq"])
def test_random_parity_is_linear_and_separates(design: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prototypes": np.random.default_rng(0).standard_normal((500, 20))}
    options = options if design in ("merged_decoc", "itq") else {}
    plain = build(design, 500, **options)
    codebook = build(design, 500, parity=24, seed=4, **options)
    again = build(design, 500, parity=24, seed=4, **options)
    assert codebook.checksum == again.checksum != build(design, 500, parity=24, seed=5, **options).checksum
    assert quality(codebook).row_distance_min > quality(plain).row_distance_min
    assert (codebook.design, codebook.seed, codebook.length) == (design, 4, plain.length + 24)
    codebook.save(tmp_path / "code.safetensors")
    assert load(tmp_path / "code.safetensors").checksum == codebook.checksum


def test_random_parity_against_its_definition() -> None:
    symbols = build("minimal", 300, parity=12, seed=8).to_array()
    masks = unpack_bits(RandomBits(8, stream=1).plane(12, 9), 9)
    for row in symbols:
        for check, mask in zip(row[9:], masks, strict=True):
            assert check == (1 if sum(bit == 1 and use for bit, use in zip(row, mask, strict=False)) % 2 else -1)


def test_columns_stay_good() -> None:
    """Sixteen classes in four bits have eleven further sums of bits, no more."""
    symbols = build("minimal", 16, parity=11).to_array().T
    assert len({column.tobytes() for column in (*symbols, *-symbols)}) == 30
    for kind, parity in (("random", 12), ("bch", 25)):
        with pytest.raises(CodebookError, match=f"parity={parity}: .* repeat columns .* ask for fewer"):
            build("minimal", 16, parity=parity, parity_kind=kind)


@pytest.mark.parametrize(
    ("design", "options", "error", "message"),
    [
        (
            "sparse_random",
            {"parity": 4},
            CodebookError,
            "sparse_random is a ternary code, and the parity of bits is not",
        ),
        ("one_vs_all", {"parity": 4}, CodebookError, "one_vs_all is never written out"),
        ("minimal", {"parity": -1}, ConfigurationError, "parity=-1 is not possible"),
        (
            "minimal",
            {"parity": 3, "parity_kind": "bhc"},
            ConfigurationError,
            "unknown parity_kind 'bhc'; did you mean 'bch'",
        ),
        ("minimal", {"parity": 11, "parity_kind": "bch"}, ConfigurationError, r"possible are .*10 \(distance 5\)"),
        ("minimal", {"parit": 3}, ConfigurationError, "no parameter 'parit'; did you mean 'parity'"),
    ],
)
def test_refusals(design: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(design, 600, **options)
