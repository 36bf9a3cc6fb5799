"""Check bits against their definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codehead.codes import build, load, quality
from codehead.codes.packing import RandomBits, unpack_bits
from codehead.errors import CodebookError, ConfigurationError


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
    with pytest.raises(CodebookError, match=r"parity=12: .* repeat columns .* ask for fewer"):
        build("minimal", 16, parity=12)


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
        ("minimal", {"parit": 3}, ConfigurationError, "no option 'parit'; did you mean 'parity'"),
    ],
)
def test_refusals(design: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(design, 600, **options)
