"""Designs that look at the classes: against slow versions of their definitions, and where data are awkward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from codehead.codes import Codebook, build
from codehead.codes.additive import fit_rotation
from codehead.codes.packing import RandomBits, pack_bits, unpack_bits
from codehead.codes.prototypes import Prototypes, make_distinct, principal_directions, random_rotation
from codehead.codes.trees import bisect
from codehead.errors import CodebookError, ConfigurationError

LOOKING = ["additive", "itq", "merged_decoc", "merged_forest"]


def clusters(num_classes: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Vectors in clusters off the origin, as embeddings are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(num_classes // 8, 1), dimensions))
    return (
        centres[random.integers(len(centres), size=num_classes)]
        + 0.3 * random.standard_normal((num_classes, dimensions))
        + 2.0
    )


def distances(rows: np.ndarray) -> np.ndarray:
    """Euclidean distances of all pairs."""
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1)


# Prototypes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "give prototypes=, an array .10, d. with a vector per class"),
        (np.zeros(10), r"prototypes is float64 \(10,\); give numbers \(rows, dimensions\)"),
        (np.zeros((10, 0)), r"prototypes is float64 \(10, 0\)"),
        (np.array([["a"] * 3] * 10), r"prototypes is <U1 \(10, 3\)"),
        (np.ones((10, 3)), "all rows of prototypes are equal"),
        (np.eye(9), "prototypes has 9 rows for num_classes=10"),
        (np.where(np.eye(10) > 0, np.inf, 0), "not finite in row 0"),
        (1e-170 * np.eye(10), "by less than float64 can square"),
        (1e151 * np.eye(10), "values beyond ±1e.150"),
        (1e308 * np.eye(10), "values beyond ±1e.150"),
        ("none.npy", "prototypes='none.npy': there is no such file"),
        ("none.safetensors", "there is no such file"),
        ("none.txt", r"vectors are read from \.npy and \.safetensors files"),
    ],
)
@pytest.mark.parametrize("design", LOOKING)
def test_refused_prototypes(design: str, source: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(design, 10, prototypes=source)


def test_prototypes_from_files(tmp_path: Path) -> None:
    rows = clusters(20, 5).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    save_file({"head.weight": rows}, tmp_path / "one.safetensors")
    save_file({"prototypes": rows, "other": rows[:2]}, tmp_path / "two.safetensors")
    expected = build("itq", 20, bits=8, prototypes=rows)
    for name in ("rows.npy", "one.safetensors", "two.safetensors"):
        built = build("itq", 20, bits=8, prototypes=str(tmp_path / name))
        assert (built.checksum, built.params) == (expected.checksum, expected.params)


def test_prototype_files_that_cannot_be_read(tmp_path: Path) -> None:
    save_file({"a": np.eye(3), "b": np.eye(3)}, tmp_path / "two.safetensors")
    with pytest.raises(ConfigurationError, match="holds the tensors a, b; save a file with one tensor, or call it"):
        build("itq", 3, prototypes=tmp_path / "two.safetensors")
    for name in ("damaged.npy", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"no array")
        with pytest.raises(ConfigurationError, match="is not an array of numbers that NumPy can read"):
            build("itq", 3, prototypes=tmp_path / name)


def test_origin_is_that_of_the_values() -> None:
    rows = clusters(6, 3)
    origin = Prototypes(rows).origin()
    assert origin["shape"] == [6, 3]
    assert Prototypes(np.asfortranarray(rows)).origin() == origin
    assert Prototypes(rows.astype(">f8")).origin() == origin
    assert Prototypes(rows + 1e-9).origin() != origin


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clusters(50, 6)
    whole = [build(design, 50, prototypes=rows) for design in LOOKING]
    monkeypatch.setattr("codehead.codes.prototypes.CHUNK_VALUES", 40)
    monkeypatch.setattr("codehead.codes.trees.CHUNK_VALUES", 40)
    for one in whole:
        assert build(one.design, 50, prototypes=rows).checksum == one.checksum


# Principal directions and random numbers


def test_principal_directions_against_a_singular_value_decomposition() -> None:
    rows = clusters(40, 6)
    rows[:, 5] = rows[:, 0] - rows[:, 1]  # rank 5
    own = Prototypes(rows)
    found = principal_directions(own, own.mean())
    expected = np.linalg.svd(rows - rows.mean(axis=0))[2].T[:, :5]
    assert found.shape == (6, 5)
    assert np.allclose(np.abs(found.T @ expected), np.eye(5), atol=1e-8)
    assert np.all(found[np.abs(found).argmax(axis=0), np.arange(5)] > 0)


def test_normal_numbers_are_normal_and_reproducible() -> None:
    values = RandomBits(0).normal(200, 100).ravel()
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.02
    assert np.mean(np.abs(values) < 1) == pytest.approx(0.6827, abs=0.015)
    assert np.array_equal(values, RandomBits(0).normal(200, 100).ravel())
    assert not np.array_equal(values[:50], RandomBits(0, stream=1).normal(1, 50)[0])


def test_random_rotation_is_orthogonal() -> None:
    rotation = random_rotation(RandomBits(1).normal(7, 7))
    assert np.allclose(rotation.T @ rotation, np.eye(7))


# ITQ


def slow_itq(components: np.ndarray, rotation: np.ndarray, iterations: int) -> np.ndarray:
    """Gong and Lazebnik's two steps in their own notation: C = Bᵀ V = S Ω Ŝᵀ, R = Ŝ Sᵀ."""
    for _ in range(iterations):
        bits = np.array([[1.0 if value >= 0 else -1.0 for value in row] for row in components @ rotation])
        s, _, s_hat = np.linalg.svd(bits.T @ components)
        rotation = s_hat.T @ s.T
    return rotation


def quantisation_error(components: np.ndarray, rotation: np.ndarray) -> float:
    turned = components @ rotation
    return float(np.sum((np.where(turned >= 0, 1.0, -1.0) - turned) ** 2))


def test_rotation_against_the_paper() -> None:
    components = clusters(60, 5) - 2.0
    start = random_rotation(RandomBits(3).normal(5, 5))
    assert np.allclose(fit_rotation(components, start, iterations=7), slow_itq(components, start, 7))
    errors = [
        quantisation_error(components, fit_rotation(components, start, iterations=rounds)) for rounds in range(12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_itq_is_the_signs_except_where_rows_collide() -> None:
    rows = clusters(40, 12)
    codebook = build("itq", 40, bits=12, prototypes=rows, seed=5)
    own, source = Prototypes(rows), RandomBits(5)
    source.permutation(40)  # the rows that the rotation is fitted to: here all of them
    centred = (rows - rows.mean(axis=0)) @ principal_directions(own, own.mean())
    rotation = slow_itq(centred, random_rotation(source.normal(12, 12)), 50)
    differ = codebook.to_array() != np.where(centred @ rotation >= 0, 1, -1)
    assert differ.any(axis=1).sum() == codebook.params["collisions"]


def test_itq_puts_like_classes_near() -> None:
    rows = clusters(200, 16)
    near = np.argsort(distances(rows), axis=1)[:, 1:4]
    for bits in (12, 16, 40):  # 40: more bits than dimensions
        symbols = build("itq", 200, bits=bits, prototypes=rows).to_array()
        apart = np.abs(symbols[:, None] - symbols[None]).sum(axis=-1) / 2
        assert np.take_along_axis(apart, near, axis=1).mean() < 0.5 * apart.mean()


def test_groups_of_columns_differ() -> None:
    symbols = build("itq", 300, bits=48, prototypes=clusters(300, 16)).to_array()
    agreement = np.abs(symbols.T @ symbols) / 300
    assert (agreement - np.eye(48)).max() < 1


def test_too_many_bits_for_the_prototypes() -> None:
    """Seven points on a line can be split by their mean in one way only."""
    with pytest.raises(CodebookError, match="bits=20 is too many for these 7 prototypes of rank 1"):
        build("itq", 7, bits=20, prototypes=np.arange(7.0)[:, None])


# Distinct rows


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rows_are_made_distinct(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 70))
    num_classes = data.draw(st.integers(1, min(2**length, 40)))
    bits = np.array(data.draw(st.lists(st.integers(0, 3), min_size=num_classes, max_size=num_classes)))
    truths = (bits[:, None] >> np.arange(length)[None] % 2) & 1
    margins = np.random.default_rng(len(bits)).random((num_classes, length))
    plane, changed = make_distinct(pack_bits(truths), length, lambda ids: margins[ids])
    found = unpack_bits(plane, length)
    assert len(np.unique(found, axis=0)) == num_classes
    assert changed == num_classes - len(np.unique(truths, axis=0))
    assert (found != truths).any(axis=1).sum() == changed


def test_the_least_certain_bits_are_flipped() -> None:
    truths = np.zeros((4, 8), dtype=int)
    truths[3, 7] = 1
    margins = np.full((4, 8), 5.0)
    margins[0, 2], margins[1, 4], margins[1, 5] = 3.0, 1.0, 2.0
    plane, changed = make_distinct(pack_bits(truths), 8, lambda ids: margins[ids])
    found = unpack_bits(plane, 8)
    assert changed == 2
    assert np.flatnonzero(found[2]).tolist() == []  # its least certain bit is the most certain: it stays
    assert np.flatnonzero(found[0]).tolist() == [2]
    assert np.flatnonzero(found[1]).tolist() == [5]  # second of the others: its second pattern
    assert np.flatnonzero(found[3]).tolist() == [7]


@pytest.mark.parametrize(("num_classes", "bits"), [(256, 8), (255, 8), (1000, 10), (1024, 64)])
def test_identical_prototypes_get_distinct_codewords(num_classes: int, bits: int) -> None:
    """Vocabularies have hundreds of unused tokens with one and the same vector."""
    rows = clusters(num_classes, 6)
    rows[num_classes // 4 :] = rows[0]
    codebook = build("itq", num_classes, bits=bits, prototypes=rows)
    assert len(np.unique(codebook.to_array(), axis=0)) == num_classes
    assert codebook.params["collisions"] >= num_classes * 3 // 4 - 1


# Merged trees


def slow_tree(rows: np.ndarray, levels: int, starts: np.ndarray, steps: int) -> np.ndarray:
    """The definition, node by node."""
    symbols = np.zeros((len(rows), levels), dtype=int)
    single = [0] * levels

    def split(members: list[int], level: int) -> None:
        if level == levels:
            return
        if len(members) == 1:
            symbols[members[0], level] = -1 if single[level] % 2 == 0 else 1
            single[level] += 1
            return
        node = rows[members] - rows[members].mean(axis=0)
        direction = starts[level]
        for _ in range(steps if len(members) > 2 else min(steps, 1)):
            direction = node.T @ (node @ direction)
            direction = direction / np.linalg.norm(direction)
        ordered = [members[place] for place in np.argsort(node @ direction, kind="stable")]
        middle = (len(members) + 1) // 2
        symbols[ordered[:middle], level], symbols[ordered[middle:], level] = -1, 1
        split(ordered[:middle], level + 1)
        split(ordered[middle:], level + 1)

    split(list(range(len(rows))), 0)
    return symbols


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 70), st.integers(1, 9), st.integers(0, 5), st.sampled_from([0, 1, 16]))
def test_bisection_against_its_definition(num_classes: int, dimensions: int, seed: int, steps: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((num_classes, dimensions))
    levels = (num_classes - 1).bit_length()
    starts = np.random.default_rng(seed + 1).standard_normal((levels, dimensions))
    own = Prototypes(rows)
    upper, order = bisect(own, own.mean(), starts, steps)
    assert np.array_equal(2 * upper - 1, slow_tree(rows, levels, starts, steps))
    assert sorted(order.tolist()) == list(range(num_classes))


@pytest.mark.parametrize("num_classes", [2, 3, 5, 17, 64, 100, 129])
def test_a_node_has_halves_that_differ_by_at_most_one(num_classes: int) -> None:
    symbols = build("merged_decoc", num_classes, prototypes=clusters(num_classes, 6)).to_array()
    assert symbols.shape[1] == (num_classes - 1).bit_length()
    for level in range(symbols.shape[1]):
        _, node = np.unique(symbols[:, :level], axis=0, return_inverse=True)
        node = node.ravel()
        sizes = np.bincount(node)
        ups = np.bincount(node, symbols[:, level] > 0)
        assert np.all(sizes[sizes > 1] // 2 == ups[sizes > 1])
        assert sizes.max() - sizes.min() <= 1


def test_first_split_is_along_the_principal_direction() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 4)) * [1, 1, 6, 1]
    first = build("merged_decoc", 50, prototypes=rows).to_array()[:, 0]
    along = rows[:, 2] - np.median(rows[:, 2])
    assert abs(np.mean(first * np.sign(along))) > 0.9


def test_nodes_of_one_depth_have_the_same_side_up() -> None:
    """Four clusters at the corners of a rectangle: both halves are split along the short side."""
    corners = np.array([[9.0, 1], [9, -1], [-9, 1], [-9, -1]])
    rows = np.repeat(corners, 8, axis=0) + 0.01 * np.random.default_rng(0).standard_normal((32, 2))
    second = build("merged_decoc", 32, prototypes=rows).to_array()[:, 1]
    assert abs(np.sum(second * np.sign(rows[:, 1]))) == 32


def test_equal_prototypes_are_split_by_number() -> None:
    rows = np.zeros((8, 2))
    rows[7] = 1
    assert len(np.unique(build("merged_decoc", 8, prototypes=rows).to_array(), axis=0)) == 8


@pytest.mark.parametrize("bits", [6, 7, 11, 12, 13, 40])
def test_forest_is_whole_trees_and_a_part(bits: int) -> None:
    rows = clusters(50, 10)
    longest = build("merged_forest", 50, bits=48, prototypes=rows, seed=2).to_array()
    symbols = build("merged_forest", 50, bits=bits, prototypes=rows, seed=2).to_array()
    assert symbols.shape == (50, bits)
    assert np.array_equal(symbols[:, :6], build("merged_decoc", 50, prototypes=rows).to_array())
    for tree in range(bits // 6):
        assert len(np.unique(symbols[:, 6 * tree : 6 * tree + 6], axis=0)) == 50
    whole = bits // 6 * 6
    assert np.array_equal(symbols[:, :whole], longest[:, :whole])


def test_forest_that_would_repeat_itself() -> None:
    with pytest.raises(CodebookError, match="no tree without a repeated column was found after 4 bits"):
        build("merged_forest", 10, prototypes=np.arange(10.0)[:, None])


def test_one_tree_has_one_length() -> None:
    with pytest.raises(ConfigurationError, match=r"bits=8 is not possible: merged_decoc has exactly 4 .*merged_forest"):
        build("merged_decoc", 10, bits=8, prototypes=np.eye(10))


def test_more_steps_split_nodes_where_they_are_wider() -> None:
    """The variance that the first two bits explain grows with the steps."""
    rows = clusters(300, 12)

    def explained(steps: int) -> float:
        symbols = build("merged_decoc", 300, prototypes=rows, steps=steps).to_array()[:, :2]
        _, node = np.unique(symbols, axis=0, return_inverse=True)
        means = np.array([rows[node.ravel() == number].mean(axis=0) for number in range(4)])
        return float(np.square(means[node.ravel()] - rows.mean(axis=0)).sum())

    assert explained(16) > explained(0)


@pytest.mark.parametrize("design", ["merged_decoc", "merged_forest"])
def test_impossible_steps(design: str) -> None:
    with pytest.raises(ConfigurationError, match="steps=-1 is not possible"):
        build(design, 10, prototypes=np.eye(10), steps=-1)


@pytest.mark.slow
@pytest.mark.parametrize(("design", "bits"), [("itq", 64), ("itq", 18), ("merged_decoc", None), ("merged_forest", 40)])
def test_a_vocabulary_of_today(design: str, bits: int | None) -> None:
    """151,936 classes, a thousand of them with one vector; 18 bits leave few codewords to spare."""
    rows = np.random.default_rng(0).standard_normal((151_936, 16)).astype(np.float32)
    rows[-1000:] = rows[0]
    codebook = build(design, len(rows), bits=bits, prototypes=rows)  # equal rows would be an error
    assert codebook.length == (bits or 18)


def test_weighted_classes_are_classes_that_occur_more_often() -> None:
    """Doubling a class's weight is listing it twice, for mean, components and rotation."""
    rows = clusters(30, 6)
    counts = np.random.default_rng(1).integers(1, 4, 30)
    listed, own = Prototypes.read(np.repeat(rows, counts, axis=0)), Prototypes.read(rows)
    weights = counts.astype(np.float64)
    assert np.allclose(own.mean(weights), listed.mean())
    found = principal_directions(own, own.mean(weights), weights)
    assert np.allclose(found, principal_directions(listed, listed.mean()))
    start = random_rotation(np.random.default_rng(2).normal(size=(6, 6)))
    centred = (rows - own.mean(weights)) @ found
    expected = fit_rotation(np.repeat(centred, counts, axis=0), start)
    assert np.allclose(fit_rotation(centred, start, weights), expected)


def test_itq_spends_its_bits_on_the_classes_that_count() -> None:
    """Rare classes differ a lot along six directions, frequent ones a little along six others."""
    random = np.random.default_rng(0)
    rows = np.zeros((200, 12))
    rows[20:, :6], rows[:20, 6:] = 10 * random.standard_normal((180, 6)), random.standard_normal((20, 6))
    weights = np.where(np.arange(200) < 20, 1e6, 1.0)

    def misfit(code: Codebook) -> float:
        """How far the frequent classes are from the nearest combination of their codewords' columns."""
        columns = np.column_stack([code.to_array()[:20], np.ones(20)]).astype(np.float64)
        return float(np.linalg.norm(columns @ np.linalg.lstsq(columns, rows[:20], rcond=None)[0] - rows[:20]))

    weighted = build("itq", 200, bits=9, prototypes=rows, weights=weights)
    assert misfit(weighted) < 0.8 * misfit(build("itq", 200, bits=9, prototypes=rows))
    assert len(weighted.params["weights"]["sha256"]) == 64
    same = build("itq", 200, bits=9, prototypes=rows, weights=3 * weights)
    assert same.checksum == weighted.checksum


@pytest.mark.parametrize(
    "weights", [[1.0] * 4, [1.0, -1, 1, 1, 1], [0.0, 0, 0, 0, 1], [1, 2, 3, 4, float("nan")], "ab"]
)
def test_impossible_weights_are_refused(weights: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"weights is .* give 5 numbers of 0 or more"):
        build("itq", 5, bits=8, prototypes=clusters(5, 3), weights=weights)
