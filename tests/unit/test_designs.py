"""The coding designs: the printed tables, default lengths, refusals, random draws."""

from __future__ import annotations

from itertools import combinations
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codehead.codes import build
from codehead.codes.codebook import column_faults
from codehead.codes.data_free import enough_binary_columns, enough_ternary_columns
from codehead.codes.packing import PackedRows, RandomBits, all_pairs
from codehead.errors import CheckpointError, CodebookError, ConfigurationError


def test_one_vs_all_of_ten_classes() -> None:
    assert np.array_equal(build("one_vs_all", 10).to_array(), 2 * np.eye(10, dtype=int) - 1)


def test_one_vs_one_of_ten_classes() -> None:
    symbols = build("one_vs_one", 10).to_array()
    assert symbols.shape == (10, 45)
    for column, (first, second) in enumerate(combinations(range(10), 2)):
        expected = np.zeros(10)
        expected[first], expected[second] = 1, -1
        assert np.array_equal(symbols[:, column], expected)


def test_minimal_of_ten_classes() -> None:
    symbols = build("minimal", 10).to_array()
    assert symbols.shape == (10, 4)
    assert symbols[5].tolist() == [-1, 1, -1, 1]
    digits = [[int(digit) for digit in f"{number:04b}"] for number in range(10)]
    assert np.array_equal(symbols, 2 * np.array(digits) - 1)


def test_minrandom_of_ten_classes() -> None:
    symbols = build("minrandom", 10, bits=8).to_array()
    assert symbols.shape == (10, 8)
    assert np.array_equal(symbols[:, :4], build("minimal", 10).to_array())
    assert not np.array_equal(symbols[:, 4:], build("minrandom", 10, bits=8, seed=1).to_array()[:, 4:])


def test_random_of_ten_classes() -> None:
    symbols = build("dense_random", 10, bits=30).to_array()
    assert symbols.shape == (10, 30)
    assert abs(int(symbols.sum())) < 90  # 300 fair coins: five standard deviations


@pytest.mark.parametrize("num_classes", [2, 9, 16, 1000])
def test_gray_neighbours_differ_in_one_bit(num_classes: int) -> None:
    symbols = build("gray", num_classes).to_array()
    assert np.all((symbols[1:] != symbols[:-1]).sum(axis=1) == 1)
    assert symbols.shape[1] == build("minimal", num_classes).length


@pytest.mark.parametrize("num_classes", [2, 3, 10, 16, 300])
def test_default_lengths(num_classes: int) -> None:
    lengths = {
        "one_vs_all": num_classes,
        "one_vs_one": num_classes * (num_classes - 1) // 2,
        "minimal": ceil(log2(num_classes)),
        "gray": ceil(log2(num_classes)),
        "dense_random": ceil(10 * log2(num_classes)),
        "sparse_random": ceil(15 * log2(num_classes)),
        "minrandom": 50,
    }
    options: dict[str, dict[str, Any]] = {name: {"candidates": 1} for name in lengths if "random" in name}
    assert lengths == {name: build(name, num_classes, **options.get(name, {})).length for name in lengths}


@pytest.mark.parametrize(
    ("design", "num_classes", "bits", "checksum"),
    [
        ("minimal", 10, None, "a8ce0c4a783662d1"),
        ("gray", 10, None, "d51d4d1e55a378cd"),
        ("one_vs_one", 10, None, "ca5c80414fe66bf5"),
        ("one_vs_all", 10, None, "2e56072fe3853ca7"),
        ("dense_random", 10, 30, "faba60b634432cf6"),
        ("dense_random", 300, 9, "afd8d65ec32d9664"),
        ("sparse_random", 100, None, "b44b63c465bd0d2d"),
        ("dense_random", 1100, 40, "8292e7e5a3c31d9f"),  # candidates judged on a sample of pairs
        ("minrandom", 1000, 50, "26dfca51b57c8943"),
    ],
)
def test_recorded_checksums(design: str, num_classes: int, bits: int | None, checksum: str) -> None:
    """A codebook that changes with the platform or a version makes every checkpoint unreadable."""
    assert build(design, num_classes, bits=bits, seed=7).checksum[:16] == checksum


def test_random_bits_are_the_raw_words_in_little_endian() -> None:
    words = [int(word) for word in np.random.PCG64(5).random_raw(2)]
    stream = b"".join(word.to_bytes(8, "little") for word in words)
    assert RandomBits(5).plane(3, 16).tobytes() == stream[:6]
    assert RandomBits(5).plane(1, 4).tolist() == [[stream[0] & 0b1111]]


def test_random_helpers_stay_in_range() -> None:
    bits = RandomBits(1)
    assert sorted(bits.permutation(50).tolist()) == list(range(50))
    assert set(bits.below(3, 200).tolist()) == {0, 1, 2}
    left, right = bits.pairs(3, 300)
    assert set(zip(left.tolist(), right.tolist(), strict=True)) == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


@pytest.mark.parametrize("design", ["minimal", "gray"])
@pytest.mark.parametrize("bits", [3, 5])
def test_minimal_codes_have_one_length(design: str, bits: int) -> None:
    message = rf"bits={bits} is not possible: {design} has exactly 4 columns for 10 classes; .* minrandom"
    with pytest.raises(ConfigurationError, match=message):
        build(design, 10, bits=bits)


@pytest.mark.parametrize("design", ["dense_random", "sparse_random", "minrandom"])
def test_too_short_for_distinct_rows(design: str) -> None:
    with pytest.raises(ConfigurationError, match="distinct codewords need at least 17 bits"):
        build(design, 100_000, bits=16)


def test_one_vs_one_too_large_to_hold() -> None:
    with pytest.raises(CodebookError, match="needs 11,542,198,080 columns for 151,936 classes"):
        build("one_vs_one", 151_936)


def test_random_code_too_large_to_hold() -> None:
    with pytest.raises(CodebookError, match="choose a shorter code"):
        build("dense_random", 151_936, bits=10**6)


def test_misspelt_names() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'minrandom'"):
        build("minrandm", 10)
    with pytest.raises(ConfigurationError, match="did you mean 'candidates'"):
        build("minrandom", 10, candidate=3)


@pytest.mark.parametrize("candidates", [0, 1.5])
def test_impossible_candidates(candidates: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"candidates={candidates}"):
        build("dense_random", 10, candidates=candidates)


@pytest.mark.parametrize("design", ["dense_random", "sparse_random", "minrandom"])
@pytest.mark.parametrize("num_classes", [2, 5, 15, 16, 17, 33, 128, 500])
@pytest.mark.parametrize("spare", [0, 1, 2, 4])
def test_rows_are_distinct_where_hardly_any_are_to_spare(design: str, num_classes: int, spare: int) -> None:
    bits = ceil(log2(num_classes)) + spare
    codebook = build(design, num_classes, bits=bits, candidates=1)
    assert len(np.unique(codebook.to_array(), axis=0)) == num_classes


def test_colliding_rows_are_drawn_again() -> None:
    """Birthday paradox: 3000 rows of 20 bits collide without care (about four pairs)."""
    assert len(np.unique(RandomBits(0).plane(3000, 20), axis=0)) < 3000
    symbols = build("dense_random", 3000, bits=20, candidates=1).to_array()
    assert len(np.unique(symbols, axis=0)) == 3000


@pytest.mark.parametrize(
    ("design", "alphabet", "enough"),
    [("dense_random", (-1, 1), enough_binary_columns), ("sparse_random", (-1, 0, 1), enough_ternary_columns)],
)
@pytest.mark.parametrize("num_classes", [4, 5, 6])
def test_columns_are_good_up_to_half_of_all(
    design: str, alphabet: tuple[int, ...], enough: Any, num_classes: int
) -> None:
    from itertools import product

    every = [column for column in product(alphabet, repeat=num_classes) if {-1, 1} <= set(column)]
    most = len(every) // 2 // 2  # a column and its negative are one problem; then half of them
    assert enough(num_classes, most)
    assert not enough(num_classes, most + 1)
    codebook: Any = build(design, num_classes, bits=most, candidates=1)
    assert not len(column_faults(codebook.sign_plane, codebook.support_plane, most).columns)


def test_sparse_symbols_have_their_shares() -> None:
    symbols = build("sparse_random", 2000, candidates=1).to_array()
    assert np.mean(symbols == 0) == pytest.approx(0.5, abs=0.01)
    assert np.mean(symbols == 1) == pytest.approx(0.25, abs=0.01)


def test_sparse_rows_are_never_empty() -> None:
    for seed in range(20):
        assert np.all(build("sparse_random", 4, bits=2, seed=seed, candidates=1).to_array().any(axis=1))


def separation(codebook: Any) -> tuple[int, int]:
    counts = all_pairs(PackedRows.from_planes(*codebook.planes.values(), length=codebook.length))
    return int(np.flatnonzero(counts)[0]), int(counts @ np.arange(len(counts)))


@pytest.mark.parametrize("design", ["dense_random", "sparse_random", "minrandom"])
def test_more_candidates_separate_better(design: str) -> None:
    scores = [separation(build(design, 20, bits=30, candidates=number)) for number in (1, 4, 16, 64)]
    assert scores == sorted(scores)
    assert scores[-1][0] > scores[0][0]


def test_custom_sources_agree(tmp_path: Path) -> None:
    codebook = build("sparse_random", 12, bits=9, seed=4)
    symbols = codebook.to_array()
    np.save(tmp_path / "code.npy", symbols)
    np.savetxt(tmp_path / "code.csv", symbols, fmt="%d", delimiter=",")
    codebook.save(tmp_path / "code.safetensors")
    sources = [{"path": str(tmp_path / f"code.{kind}")} for kind in ("npy", "csv", "safetensors")]
    built = [build("custom", 12, **source) for source in [*sources, {"array": symbols}]]
    assert {one.checksum for one in built} == {codebook.checksum}
    assert [one.design for one in built] == ["custom", "custom", "sparse_random", "custom"]
    assert built[2].seed == 4


def test_custom_allows_duplicates_only_if_asked(tmp_path: Path) -> None:
    matrix = [[1, -1], [1, -1], [-1, 1]]
    with pytest.raises(CodebookError, match="equal codewords for the classes 0 and 1"):
        build("custom", 3, array=matrix)
    codebook = build("custom", 3, array=matrix, allow_duplicates=True)
    codebook.save(tmp_path / "code.safetensors")
    assert build("custom", 3, path=tmp_path / "code.safetensors").checksum == codebook.checksum


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigurationError, "one of array= and path=; give exactly one"),
        ({"array": [[1, -1], [-1, 1]], "path": "code.npy"}, ConfigurationError, "give exactly one"),
        ({"array": [[1, -1], [-1, 1]]}, ConfigurationError, "num_classes=3 does not fit .* has 2 rows"),
        ({"array": [[1], [0], [-1]], "bits": 2}, ConfigurationError, "bits=2 does not fit .* has 1 columns"),
        ({"array": [[1, 0], [0, 1], [1, 1]]}, CodebookError, "write −1, not 0, for a bit 0"),
        ({"path": "none.npy"}, ConfigurationError, "there is no such file"),
        ({"path": "none.csv"}, ConfigurationError, "there is no such file"),
        ({"path": "none.safetensors"}, CheckpointError, "there is no such codebook file"),
        ({"path": "code.txt"}, ConfigurationError, r"read from \.npy, \.csv and \.safetensors files"),
    ],
)
def test_custom_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build("custom", 3, **options)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_custom_files_that_are_no_matrix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"code{suffix}"
    path.write_text("one,two\nthree\n")
    with pytest.raises(CodebookError, match="is not a matrix of numbers"):
        build("custom", 3, path=path)
