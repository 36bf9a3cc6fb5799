"""Codebooks: packing, validation, immutability, files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from codehead.codes import OneVsAllCodebook, PackedCodebook, build, load
from codehead.codes.codebook import header_checksum
from codehead.errors import CheckpointError, CodebookError, ConfigurationError

MATRICES = hnp.arrays(np.int8, st.tuples(st.integers(2, 12), st.integers(1, 40)), elements=st.sampled_from([-1, 0, 1]))
SMALL = np.array([[1, -1, 0], [-1, 1, 1], [1, 1, -1]])


@settings(deadline=None)
@given(MATRICES)
def test_packing_loses_nothing(matrix: np.ndarray) -> None:
    codebook = PackedCodebook.from_array(matrix, allow_duplicates=True)
    assert np.array_equal(codebook.to_array(), matrix)
    assert codebook.is_ternary == bool((matrix == 0).any())
    assert codebook.nbytes == len(matrix) * -(-matrix.shape[1] // 8) * (1 + codebook.is_ternary)


def test_bit_layout() -> None:
    row = np.array([1, -1, -1, 1, 0, -1, -1, -1, 1])
    codebook = PackedCodebook.from_array(np.stack([row, -row]))
    assert codebook.sign_plane.tolist() == [[0b00001001, 1], [0b11100110, 0]]
    assert codebook.support_plane is not None
    assert codebook.support_plane.tolist() == [[0b11101111, 1]] * 2


def test_a_code_without_zeros_has_one_form() -> None:
    binary = PackedCodebook.from_array([[1, -1], [-1, 1]])
    full = PackedCodebook(
        num_classes=2,
        length=2,
        design="custom",
        sign_plane=binary.sign_plane,
        support_plane=np.array([[3], [3]], dtype=np.uint8),
    )
    assert full.support_plane is None
    assert full.checksum == binary.checksum


def test_checksum_tells_codes_apart() -> None:
    checksums = {
        PackedCodebook.from_array(SMALL).checksum,
        PackedCodebook.from_array(-SMALL).checksum,
        PackedCodebook.from_array(SMALL[[1, 0, 2]]).checksum,
        PackedCodebook.from_array(np.where(SMALL == 0, -1, SMALL)).checksum,
        PackedCodebook.from_array(np.hstack([SMALL, SMALL])).checksum,
        build("one_vs_all", 3).checksum,
        build("one_vs_all", 4).checksum,
        build("custom", 3, array=build("one_vs_all", 3).to_array()).checksum,
    }
    assert len(checksums) == 8


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, -1], [2, 1]]), r"array has 2 in row 1, column 0 \(1 such values\)"),
        (np.array([[1, -1], [0.5, np.nan]]), r"array has 0.5 in row 1, column 0 \(2 such values\)"),
        (np.array([1, -1]), r"array is int64 \(2,\)"),
        (np.array([[True], [False]]), r"array is bool \(2, 1\)"),
        (np.array([[1, -1]]), r"1 × 2 symbols: it needs at least 2 rows and 1 column"),
        (np.zeros((2, 0)), r"2 × 0 symbols"),
        (SMALL[[0, 1, 0, 2, 1]], r"equal codewords for the classes 0 and 2, 1 and 4: "),
        (np.ones((9, 4)), r"classes 0 and 1, 0 and 2, 0 and 3, … \(8 in all\)"),
    ],
)
def test_invalid_matrices(array: np.ndarray, message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        PackedCodebook.from_array(array)


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        ({"sign_plane": np.array([[1], [2], [4]], dtype=np.uint8)}, r"bits set after symbol 1"),
        ({"sign_plane": np.array([[1], [2]], dtype=np.uint8)}, r"sign_plane is uint8 \(2, 1\); 3 codewords of 2"),
        ({"sign_plane": np.array([[1], [2], [3]])}, r"sign_plane is int64"),
        (
            {
                "sign_plane": np.array([[1], [2], [3]], dtype=np.uint8),
                "support_plane": np.array([[1], [1], [3]], dtype=np.uint8),
            },
            r"sign_plane has a 1 where support_plane has a 0",
        ),
    ],
)
def test_invalid_planes(planes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        PackedCodebook(num_classes=3, length=2, design="custom", **planes)


def test_column_faults_are_named() -> None:
    good = build("minimal", 8).to_array()
    faulty = np.column_stack([good, np.ones(8), -good[:, 1], good[:, 2]])
    with pytest.raises(CodebookError, match=r"constant columns 3; duplicate or complementary columns 1 and 4, 2 and 5"):
        PackedCodebook.from_array(faulty).check_columns()
    ternary = np.array([[1, 0, 0], [-1, 1, -1], [0, -1, 1], [0, 1, -1]])
    with pytest.raises(CodebookError, match=r"custom codebook: duplicate or complementary columns 1 and 2;"):
        PackedCodebook.from_array(ternary).check_columns()
    half = np.array([[1, 1], [-1, 0], [0, 1]])
    with pytest.raises(CodebookError, match=r"constant columns 1;"):
        PackedCodebook.from_array(half).check_columns()


def test_nothing_can_be_changed() -> None:
    matrix = SMALL.copy()
    codebook = PackedCodebook.from_array(matrix, params={"note": [1]})
    matrix[0] = 0
    assert np.array_equal(codebook.to_array(), SMALL)
    with pytest.raises(ValueError, match="read-only"):
        codebook.sign_plane[0] = 0
    with pytest.raises(AttributeError):
        codebook.length = 5  # type: ignore[misc]
    assert copy.deepcopy(codebook) is codebook
    assert copy.copy(codebook) is codebook


def test_params_are_plain_values() -> None:
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        PackedCodebook.from_array(SMALL, params={"array": SMALL})


def test_ids_are_integers() -> None:
    with pytest.raises(CodebookError, match="ids have dtype float64"):
        PackedCodebook.from_array(SMALL).codewords(np.array([0.0]))


def test_implicit_code_is_not_written_out_in_full() -> None:
    codebook = OneVsAllCodebook(262_144)
    codeword = codebook.codewords(np.array(200_000))
    assert codebook.nbytes == 0
    assert np.flatnonzero(codeword == 1).tolist() == [200_000]
    assert codeword.sum() == 2 - 262_144
    with pytest.raises(CodebookError, match="too many to write out"):
        codebook.to_array()


@pytest.fixture(params=["minrandom", "sparse_random", "one_vs_all"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "new folder" / "code.safetensors"
    build(request.param, 5, seed=1).save(path)
    return path


def test_every_flipped_byte_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"code\.safetensors: "):
            load(saved)


def test_every_truncation_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in range(len(whole)):
        saved.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            load(saved)


def rewrite(path: Path, **changes: Any) -> None:
    """Change header fields (... removes one) and sign the header again, as a careless tool would."""
    build("minrandom", 5, seed=1).save(path)
    with safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["codebook"])
    del fields["header_checksum"]
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not ...}
    text = json.dumps({**fields, "header_checksum": header_checksum(fields)})
    save_file(load_file(path), path, {"codebook": text})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_classes": 6}, r"sign_plane is uint8 \(5, 7\); 6 codewords"),
        ({"length": 49}, r"sign_plane has bits set after symbol 48"),
        ({"checksum": "0"}, "checksum is"),
        ({"kind": "ternary"}, r"the tensors are \['sign_plane'\], but kind='ternary'"),
        ({"format": 2}, "format=2 is not known"),
        ({"kind": "quaternary"}, "kind='quaternary' is not known"),
        ({"seed": ...}, "field 'seed' is missing"),
    ],
)
def test_headers_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    rewrite(tmp_path / "code.safetensors", **changes)
    with pytest.raises(CheckpointError, match=field):
        load(tmp_path / "code.safetensors")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such codebook file"):
        load(tmp_path / "none.safetensors")
    save_file({"weight": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="'codebook' is missing"):
        load(tmp_path / "other.safetensors")


def test_the_codes_need_no_torch() -> None:
    program = "import sys, codehead.codes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
