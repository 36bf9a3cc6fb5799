"""ECOC-ONE: sub-partitions against their definition, growth by counts and by a callback, weights, large codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codehead.codes import Codebook, Confusion, Evaluation, build, column_weights
from codehead.codes.ecoc_one import Floating, Poles, error_weights
from codehead.codes.prototypes import Prototypes
from codehead.codes.table import CodewordTable
from codehead.decoding import decode
from codehead.errors import ConfigurationError

V = 12


def vectors(num_classes: int = V, dimensions: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_classes, dimensions))


def counts(num_classes: int = V, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(8, size=(num_classes, num_classes)) + np.diag(random.integers(50, 99, num_classes))


def make(**options: Any) -> Codebook:
    num_classes = options.pop("num_classes", V)
    defaults: dict[str, Any] = {"prototypes": vectors(num_classes)}
    if "evaluate" not in options:
        defaults["confusion"] = counts(num_classes)
    return build("ecoc_one", num_classes, **{**defaults, **options})


# Sub-partitions


def value(
    rows: np.ndarray, confused: np.ndarray, pair: tuple[int, int], up: frozenset[int], down: frozenset[int]
) -> float:
    """Confusions between the sides per class, less the more the sides spread for the distance of the pair."""
    variances = sum(rows[sorted(side)].var(axis=0).sum() for side in (up, down))
    apart = np.square(rows[pair[0]] - rows[pair[1]]).sum()
    between = confused[np.ix_(sorted(up), sorted(down))].sum() / (len(up) + len(down))
    return float(between * apart / (apart + variances))


def slow_search(rows: np.ndarray, confused: np.ndarray, pair: tuple[int, int]) -> dict[int, float]:
    """Floating search on sets, each judged on its own; the best value of every number of classes."""
    sides = frozenset([pair[0]]), frozenset([pair[1]])
    best = {2: value(rows, confused, pair, *sides)}

    def changed(c: int, side: int) -> tuple[frozenset[int], frozenset[int]]:
        own = sides[side] ^ {c}
        return (own, sides[1]) if side == 0 else (sides[0], own)

    def take(moves: list[tuple[int, int]]) -> tuple[float, tuple[frozenset[int], frozenset[int]]]:
        scored = [(value(rows, confused, pair, *changed(c, side)), -side, -c) for side, c in moves]
        top, side, c = max(scored)
        return top, changed(-c, -side)

    size = 2
    while size < len(rows):
        size += 1
        top, sides = take([(side, c) for side in (0, 1) for c in range(len(rows)) if c not in sides[0] | sides[1]])
        best[size] = max(top, best.get(size, -1.0))
        while size > 3:
            top, fewer = take([(side, c) for side in (0, 1) for c in sides[side] - set(pair)])
            if top <= best[size - 1] + 1e-12:
                break
            size, sides = size - 1, fewer
            best[size] = top
    return best


@pytest.mark.parametrize("seed", range(12))
def test_floating_search_against_its_definition(seed: int) -> None:
    rows = vectors(9, 3, seed)
    pairs, mass = Confusion.of(counts(9, seed), 9).pairs()
    confused = np.zeros((9, 9))
    confused[pairs[:, 0], pairs[:, 1]] = confused[pairs[:, 1], pairs[:, 0]] = mass / mass.sum()
    pair = pairs[mass.argmax()]
    both = int(pair[0]), int(pair[1])
    found = list(Floating(Prototypes(rows)).columns(pair, pairs, mass))
    values = []
    for column in found:
        up, down = (frozenset(np.flatnonzero(column == s).tolist()) for s in (1, -1))
        assert pair[0] in up and pair[1] in down
        values.append(value(rows, confused, both, up, down))
    assert values == sorted(values, reverse=True)
    expected = slow_search(rows, confused, both)
    assert {np.count_nonzero(c): v for c, v in zip(found, values, strict=True)} == pytest.approx(expected)


def test_classes_that_are_confused_alike_join_and_others_stay_out() -> None:
    rows = np.array([[0.0, 0], [1, 0], [0, 0.1], [1, 0.1], [0, 9], [1, 9]])
    matrix = np.zeros((6, 6))
    matrix[0, 1], matrix[2, 3], matrix[0, 3], matrix[2, 1], matrix[4, 5] = 10, 9, 8, 8, 3
    pairs, mass = Confusion.of(matrix, 6).pairs()
    column = next(Floating(Prototypes(rows)).columns(pairs[0], pairs, mass))
    assert column.tolist() == [1, -1, 1, -1, 0, 0]


def test_poles_split_all_classes_by_the_nearer_prototype() -> None:
    rows = vectors(50, 5)
    pair = np.array([3, 17])
    (column,) = Poles(Prototypes(rows)).columns(pair, pair[None], np.ones(1))
    apart = np.linalg.norm(rows[:, None] - rows[pair], axis=-1)
    assert np.array_equal(column, np.where(apart[:, 0] < apart[:, 1], 1, -1))


def test_poles_at_one_place_part_nothing() -> None:
    rows = np.repeat(vectors(3, 2), 2, axis=0)
    assert not list(Poles(Prototypes(rows)).columns(np.array([0, 1]), np.array([[0, 1]]), np.ones(1)))


# Growth by counts


def test_the_start_comes_first_and_each_column_parts_its_pair() -> None:
    start = build("decoc", V, prototypes=vectors())
    codebook = make(bits=18, stop_error=0)
    symbols = codebook.to_array()
    assert np.array_equal(symbols[:, : V - 1], start.to_array())
    assert codebook.params["start"] == {"design": "decoc", "length": V - 1, "checksum": start.checksum}
    assert codebook.length == 18
    for (first, second), column in zip(codebook.params["pairs"], symbols.T[V - 1 :], strict=True):
        assert (column[first], column[second]) == (1, -1)


def test_the_most_confused_pair_is_next_and_what_a_column_parts_is_resolved() -> None:
    codebook = make(bits=18, stop_error=0)
    both = counts() + counts().T - 2 * np.diag(np.diag(counts()))
    total = counts().sum()
    errors = [both.sum() / 2 / total]
    for (first, second), column in zip(codebook.params["pairs"], codebook.to_array().T[V - 1 :], strict=True):
        assert both[first, second] == both.max()
        both[np.outer(column, column) < 0] = 0
        errors.append(both.sum() / 2 / total)
    assert codebook.params["errors"] == pytest.approx(errors)
    assert len(errors) > 3


def test_with_poles_only_the_pair_is_resolved() -> None:
    codebook = make(bits=20, partition="poles")
    both = np.triu(counts() + counts().T, 1)
    before = both.sum() / counts().sum()
    mass = [both[tuple(pair)] for pair in codebook.params["pairs"]]
    assert mass == sorted(mass, reverse=True) and mass[0] == both.max()
    lost = -np.diff([before * counts().sum(), *(error * counts().sum() for error in codebook.params["errors"][1:])])
    assert lost == pytest.approx(mass)


def test_few_wrong_answers_need_no_column() -> None:
    assert make(confusion=counts() + 9999 * np.eye(V, dtype=int)).length == V - 1
    wide = make(bits=30)
    tight = make(bits=30, stop_error=0.3)
    assert V - 1 < tight.length < wide.length
    assert tight.params["errors"][-1] < 0.3 <= tight.params["errors"][-2]
    assert np.array_equal(wide.to_array()[:, : tight.length], tight.to_array())


def test_bits_are_the_most_there_may_be() -> None:
    assert make().length <= V - 1 + 4
    assert make(num_classes=2, bits=40).length == 1
    few = make(num_classes=3, bits=40, confusion=1 + np.eye(3), stop_error=0).length
    assert 2 < few <= 6  # {−1, 0, +1}³ has no more columns with both signs, up to the sign


@pytest.mark.parametrize("start", ["minimal", "dense_random", "one_vs_one", "merged_decoc", "one_vs_all"])
def test_any_start(start: str) -> None:
    begun = build(start, V, seed=5, **({"prototypes": vectors()} if start == "merged_decoc" else {}))
    grown = make(start=start, seed=5, bits=begun.length + 3)
    assert grown.length == begun.length + 3
    assert grown.seed == begun.seed
    assert np.array_equal(grown.to_array()[:, :-3], begun.to_array())


def test_rounds_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    first = make(bits=14)
    first.save(tmp_path / "first.safetensors")
    second = make(start=str(tmp_path / "first.safetensors"), bits=17, confusion=counts(seed=1))
    assert np.array_equal(second.to_array()[:, :14], first.to_array())
    assert second.checksum == make(start=first, bits=17, confusion=counts(seed=1)).checksum
    assert second.params["start"]["design"] == "ecoc_one"


# Growth by a callback


def blobs(seed: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % V
    rows = 2 * vectors()[labels] + random.standard_normal((samples, 4))
    return np.column_stack([rows, np.ones(samples)]), labels


class LeastSquares:
    """Linear dichotomizers: the callback of the tests."""

    def __init__(self) -> None:
        self.seen: list[Codebook] = []
        self.rates: list[float] = []

    def __call__(self, codebook: Codebook) -> Evaluation:
        symbols = codebook.to_array()
        (rows, labels), held_out = blobs(1, 480), blobs(2, 240)
        targets, used = symbols[labels], symbols[labels] != 0
        weights = [np.linalg.lstsq(rows[u], t[u], rcond=None)[0] for t, u in zip(targets.T, used.T, strict=True)]
        self.seen.append(codebook)
        training, _ = self._confusion(rows, labels, np.array(weights), symbols)
        validation, errors = self._confusion(*held_out, np.array(weights), symbols)
        self.rates.append(0.5 * sum(1 - np.trace(c) / c.sum() for c in (training, validation)))
        return Evaluation(validation, training, errors)

    def _confusion(self, rows: Any, labels: Any, weights: Any, symbols: Any) -> tuple[np.ndarray, np.ndarray]:
        answers = rows @ weights.T
        scores = -(np.abs(symbols) * np.square(answers.clip(-1, 1)[:, None] - symbols)).sum(axis=-1)
        confusion = np.zeros((V, V))
        np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
        agreement = symbols[labels] * answers
        return confusion, (agreement < 0).sum(axis=0) / (agreement != 0).sum(axis=0)


def test_a_callback_is_asked_before_every_column() -> None:
    evaluate = LeastSquares()
    codebook = make(evaluate=evaluate, bits=16)
    assert [seen.length for seen in evaluate.seen] == [11, 12, 13, 14, 15, 16]
    assert codebook.params["errors"] == pytest.approx(evaluate.rates)
    assert codebook.checksum == evaluate.seen[-1].checksum
    last = evaluate(codebook)
    assert column_weights(codebook) == pytest.approx(error_weights(last.column_errors))
    for seen, pair in zip(evaluate.seen, codebook.params["pairs"], strict=False):
        found = evaluate(seen)
        mixed = 0.5 * found.validation / found.validation.sum() + 0.5 * found.training / found.training.sum()
        both = np.triu(mixed + mixed.T, 1)
        assert both[tuple(pair)] == pytest.approx(both.max())


def test_columns_for_what_is_confused_mend_a_short_code() -> None:
    codebook = make(evaluate=LeastSquares(), start="minimal", bits=14)
    errors = codebook.params["errors"]
    assert errors[-1] < 0.75 * errors[0]


def test_a_callback_may_know_the_validation_only() -> None:
    answers = iter([counts(), np.diag(np.ones(V))])
    codebook = make(evaluate=lambda codebook: next(answers))
    assert codebook.length == V
    assert codebook.params["errors"][-1] == 0


# Weights


def test_weights_of_errors() -> None:
    expected = [0.5 * np.log(0.999 / 0.001), 0.5 * np.log(9), 0, 0]
    assert error_weights([0, 0.1, 0.5, 0.9]) == pytest.approx(expected)


def test_weights_are_recorded_and_change_decisions() -> None:
    codebook = make(bits=16, stop_error=0)
    assert column_weights(codebook).tolist() == codebook.params["column_weights"]
    errors = Confusion.of(counts(), V).column_errors(codebook.to_array())
    assert column_weights(codebook) == pytest.approx(0.5 * np.log((1 - errors) / errors))
    bit_logits = torch.randn(200, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table, weights = CodewordTable(codebook), torch.from_numpy(column_weights(codebook))
    plain, weighted = (decode(z, table, decoder="loss_linear") for z in (bit_logits, bit_logits * weights))
    assert not torch.equal(plain.ids, weighted.ids)
    by_hand = (bit_logits * weights) @ table.signs().double().T
    assert torch.equal(weighted.ids[:, 0], by_hand.argmax(dim=1))


def test_a_code_without_recorded_weights_counts_all_columns_alike() -> None:
    assert column_weights(build("minimal", 10)).tolist() == [1, 1, 1, 1]
    codebook = make(start="minimal", partition="poles", bits=8, parity=5)
    assert column_weights(codebook).tolist() == [*codebook.params["column_weights"], 1, 1, 1, 1, 1]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confusion": None}, "give it either confusion=.* or evaluate="),
        ({"evaluate": lambda codebook: counts(), "confusion": counts()}, "give it either"),
        ({"evaluate": 3}, "evaluate=3 cannot be called"),
        ({"prototypes": None}, "'ecoc_one' needs prototypes"),
        ({"partition": "flaoting"}, "did you mean 'floating'"),
        ({"partition": "floating", "num_classes": 1025, "start": "minimal"}, "at most 1,024 classes, not 1,025"),
        ({"start": "decok"}, "unknown design 'decok'; did you mean 'decoc'"),
        ({"start": build("minimal", 9)}, "start is a code of 9 classes for num_classes=12"),
        ({"bits": 10}, "bits=10 is too short for ecoc_one: its start, decoc, has 11 columns; give bits=11 or more"),
        ({"stop_error": 2}, "stop_error=2 is not possible"),
        ({"validation_weight": "half"}, "validation_weight='half' is not possible"),
        ({"evaluate": lambda codebook: np.ones((3, 3))}, r"the validation of evaluate\(\) is of 3 classes"),
        ({"evaluate": lambda codebook: Evaluation(counts(), None, [0.1])}, r"column_errors \(1,\) for .* 11 columns"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**options)


# Many classes


def test_many_classes_with_sparse_counts() -> None:
    num_classes, random = 1500, np.random.default_rng(0)
    labels, choices = random.integers(num_classes, size=(2, 20_000))
    entries = labels, choices, random.integers(1, 5, size=20_000)
    codebook = build("ecoc_one", num_classes, bits=20, prototypes=vectors(num_classes, 8), confusion=entries)
    assert codebook.params["start"]["design"] == "merged_decoc"
    assert codebook.params["partition"] == "poles"
    assert codebook.length == 20 and not codebook.is_ternary
    symbols = codebook.to_array()
    assert len(np.unique(symbols, axis=0)) == num_classes
    pairs, mass = Confusion.of(entries, num_classes).pairs()
    place = {tuple(pair): count for pair, count in zip(pairs.tolist(), mass, strict=True)}
    assert [place[tuple(pair)] for pair in codebook.params["pairs"]] == sorted(mass, reverse=True)[:9]


@pytest.mark.slow
def test_a_vocabulary_of_today() -> None:
    num_classes, random = 151_936, np.random.default_rng(0)
    labels = (num_classes * random.random(500_000) ** 4).astype(int)
    choices = np.where(random.random(500_000) < 0.4, labels, np.roll(labels, 1))
    rows = random.standard_normal((num_classes, 16)).astype(np.float32)
    counts = labels, choices, np.ones(500_000)
    codebook = build("ecoc_one", num_classes, bits=38, prototypes=rows, confusion=counts)
    assert codebook.length == 38
    for (first, second), column in zip(codebook.params["pairs"], codebook.to_array().T[18:], strict=True):
        assert (column[first], column[second]) == (1, -1)
