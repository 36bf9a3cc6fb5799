"""The contract of every registered coding design: a new one is tested by being registered."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from codehead.codes import DESIGNS, Codebook, PackedCodebook, assign, build, load
from codehead.errors import CodebookError, ConfigurationError

CLASSES = [2, 3, 7, 10, 64, 257]
NAMES = DESIGNS.names()


def parameters(design: str, num_classes: int) -> dict[str, Any]:
    """What a design cannot do without."""
    if "prototypes" in DESIGNS.get(design).params():
        random = np.random.default_rng(num_classes)
        vectors = {"prototypes": random.standard_normal((num_classes, 16))}
        return (
            {**vectors, "confusion": random.integers(9, size=(num_classes,) * 2)} if design == "ecoc_one" else vectors
        )
    if design != "custom":
        return {}
    symbols = np.ones((num_classes, num_classes + 3), dtype=int)
    symbols[np.arange(num_classes), np.arange(num_classes)] = -1
    symbols[:, -2:] = 0
    return {"array": symbols}


def make(design: str, num_classes: int, **options: Any) -> Codebook:
    return build(design, num_classes, **options, **parameters(design, num_classes))


@cache
def example(design: str, num_classes: int) -> Codebook:
    return make(design, num_classes, seed=3)


@pytest.fixture(params=[(name, classes) for name in NAMES for classes in CLASSES], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, int, Codebook]:
    design, num_classes = request.param
    return design, num_classes, example(design, num_classes)


def test_shape_and_symbols(case: tuple[str, int, Codebook]) -> None:
    design, num_classes, codebook = case
    symbols = codebook.to_array()
    assert symbols.dtype == np.int8
    assert symbols.shape == (num_classes, codebook.length)
    assert (codebook.design, codebook.num_classes) == (design, num_classes)
    assert set(np.unique(symbols)) <= {-1, 0, 1}
    assert codebook.is_ternary == bool(np.any(symbols == 0))


def test_rows_are_distinct(case: tuple[str, int, Codebook]) -> None:
    _, num_classes, codebook = case
    assert len(np.unique(codebook.to_array(), axis=0)) == num_classes


def test_promised_columns(case: tuple[str, int, Codebook]) -> None:
    design, num_classes, codebook = case
    if not DESIGNS.get(design).good_columns(num_classes, codebook.length):
        pytest.skip("this design promises nothing about columns at this size")
    columns = codebook.to_array().T
    assert np.all(columns.max(axis=1) == 1)
    assert np.all(columns.min(axis=1) == -1)
    assert len({column.tobytes() for column in (*columns, *-columns)}) == 2 * codebook.length


def test_only_few_classes_or_custom_matrices_are_without_promise() -> None:
    silent = [
        (design, num_classes)
        for design in NAMES
        for num_classes in CLASSES
        if not DESIGNS.get(design).good_columns(num_classes, example(design, num_classes).length)
    ]
    assert {design for design, num_classes in silent if num_classes >= 10} == {"custom"}


def test_same_seed_same_bytes(case: tuple[str, int, Codebook], tmp_path: Any) -> None:
    design, num_classes, codebook = case
    again = make(design, num_classes, seed=3)
    assert again.checksum == codebook.checksum
    codebook.save(tmp_path / "one.safetensors")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_prototypes_matter_and_are_recorded(case: tuple[str, int, Codebook]) -> None:
    design, num_classes, codebook = case
    if "prototypes" not in DESIGNS.get(design).params():
        pytest.skip("this design does not look at the classes")
    vectors = np.random.default_rng(1).standard_normal((num_classes, 16))
    other = build(design, num_classes, seed=3, **{**parameters(design, num_classes), "prototypes": vectors})
    assert other.params["prototypes"]["shape"] == [num_classes, 16]
    assert other.params["prototypes"]["sha256"] != codebook.params["prototypes"]["sha256"]
    assert num_classes < 7 or other.checksum != codebook.checksum


@pytest.mark.parametrize("design", NAMES)
def test_prototypes_in_single_precision_are_the_same(design: str) -> None:
    if "prototypes" not in DESIGNS.get(design).params():
        pytest.skip("this design does not look at the classes")
    vectors = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    both = ({**parameters(design, 64), "prototypes": values} for values in (vectors, vectors.astype(np.float64)))
    one, two = (build(design, 64, **options) for options in both)
    assert (one.checksum, one.params) == (two.checksum, two.params)


def test_seed_matters_where_it_is_recorded() -> None:
    for design in NAMES:
        one, two = make(design, 64, seed=1), make(design, 64, seed=2)
        assert (one.seed is None) == (one.checksum == two.checksum), design
        assert one.seed in (None, 1)


def test_save_and_load(case: tuple[str, int, Codebook], tmp_path: Any) -> None:
    _, _, codebook = case
    codebook.save(tmp_path / "code.safetensors")
    loaded = load(tmp_path / "code.safetensors")
    for name in ("num_classes", "length", "design", "seed", "params", "is_ternary", "checksum", "nbytes"):
        assert getattr(loaded, name) == getattr(codebook, name), name
    assert np.array_equal(loaded.to_array(), codebook.to_array())


def test_codewords_are_rows_of_the_matrix(case: tuple[str, int, Codebook]) -> None:
    _, num_classes, codebook = case
    symbols = codebook.to_array()
    ids = np.random.default_rng(0).integers(num_classes, size=(3, 5))
    assert np.array_equal(codebook.codewords(ids), symbols[ids])
    assert np.array_equal(codebook.codewords(np.int64(1)), symbols[1])
    assert codebook.codewords(np.zeros((0, 2), dtype=int)).shape == (0, 2, codebook.length)


@pytest.mark.parametrize("design", NAMES)
@pytest.mark.parametrize("bad", [10, -1])
def test_an_id_that_is_no_class_is_an_error(design: str, bad: int) -> None:
    with pytest.raises(CodebookError, match=rf"id {bad} is not a class; ids go from 0 to 9"):
        make(design, 10).codewords(np.array([[3, bad]]))


def test_planes_cannot_be_written(case: tuple[str, int, Codebook]) -> None:
    _, _, codebook = case
    if not isinstance(codebook, PackedCodebook):
        assert codebook.nbytes == 0
        return
    with pytest.raises(ValueError, match="read-only"):
        codebook.sign_plane[0, 0] = 1


@pytest.mark.parametrize("design", NAMES)
@pytest.mark.parametrize("arguments", [{"num_classes": 1}, {"num_classes": 2.5}, {"num_classes": True}])
def test_impossible_number_of_classes(design: str, arguments: dict[str, Any]) -> None:
    message = f"num_classes={arguments['num_classes']} is not possible; give a whole number, 2 or more"
    with pytest.raises(ConfigurationError, match=message):
        build(design, **arguments, **parameters(design, 2))


@pytest.mark.parametrize("design", NAMES)
@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 0.5), ("bits", 0), ("bits", "many")])
def test_impossible_numbers(design: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={value!r} is not possible"):
        make(design, 10, **{name: value})


@pytest.mark.parametrize("design", NAMES)
def test_unknown_parameters(design: str) -> None:
    with pytest.raises(ConfigurationError, match=f"design '{design}' has no option 'colour'"):
        make(design, 10, colour="red")


@pytest.mark.parametrize("design", NAMES)
def test_too_few_bits(design: str) -> None:
    with pytest.raises(ConfigurationError, match="bits=3"):
        make(design, 10, bits=3)


@pytest.mark.parametrize("design", NAMES)
def test_check_bits_follow_the_bits_of_the_design(design: str) -> None:
    plain = example(design, 64)
    if plain.is_ternary or not isinstance(plain, PackedCodebook):
        with pytest.raises(CodebookError, match="parity=9 is not possible"):
            make(design, 64, seed=3, parity=9)
        return
    codebook = make(design, 64, seed=3, parity=9)
    assert np.array_equal(codebook.to_array()[:, : plain.length], plain.to_array())
    assert codebook.length == plain.length + 9
    assert isinstance(codebook, PackedCodebook)
    assert codebook.check_columns() is codebook


@pytest.mark.parametrize("design", NAMES)
def test_codewords_can_be_dealt_out_anew(design: str) -> None:
    codebook = example(design, 64)
    if not isinstance(codebook, PackedCodebook):
        pytest.skip("this code is implicit")
    dealt = assign(codebook, "random", seed=1)
    assert sorted(map(bytes, dealt.to_array())) == sorted(map(bytes, codebook.to_array()))
    assert dealt.params.items() > codebook.params.items()
