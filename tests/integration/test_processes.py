"""Passes over text that several processes share out: what a single one finds. Threads play the processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from threading import Barrier, get_ident

import pytest
import torch
from architectures import HIDDEN, VOCAB, make

import codehead
from codehead.errors import ConfigurationError
from codehead.evaluation.metrics import evaluate
from codehead.models.calibration import text_outputs
from codehead.models.hidden import labelled_states
from codehead.models.probe import softmax_head
from codehead.processes import ALONE, Processes
from codehead.training import likely_tokens
from codehead.training.likely_tokens import LikelyTokens

LENGTHS = [9, 4, 12, 1, 7, 11, 3]  # one of them without a label
COUNTS = [2, 3, 9]


@pytest.fixture
def side_by_side(monkeypatch):
    """What `work` gives in each of several processes: a function of (count, work), work being one of `Processes`."""

    def run(count, work):
        barrier, ranks, board = Barrier(count, timeout=60), {}, {}

        def gather_object(pieces):
            board[ranks[get_ident()]] = pieces
            barrier.wait()
            found = [piece for rank in range(count) for piece in board[rank]]
            barrier.wait()
            return found

        def process(rank):
            ranks[get_ident()] = rank
            barrier.wait()
            return work(Processes(rank, count))

        monkeypatch.setattr("accelerate.utils.gather_object", gather_object)
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(process, range(count)))

    return run


def model(**decision):
    """To be copied for each process, which takes its head out while it reads."""
    stock = make("llama", tied=False)
    torch.nn.init.normal_(stock.get_output_embeddings().weight, generator=torch.Generator().manual_seed(0))
    return codehead.attach(stock, **decision) if decision else stock


def examples(*, with_bytes=True):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(VOCAB, (length,), generator=generator).tolist()
        labels = [-100 if place % 4 == 1 else label for place, label in enumerate(ids)]
        rows.append({"input_ids": ids, "labels": labels} | ({"num_bytes": [2] * length} if with_bytes else {}))
    return rows


def batches():
    for row in examples():
        yield {name: torch.tensor([values]) for name, values in row.items() if name != "num_bytes"}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("decision", [{}, {"code": "minrandom", "bits": 16}])
@pytest.mark.parametrize("with_bytes", [True, False])
def test_metrics_are_those_of_the_whole_text(side_by_side, count, decision, with_bytes):
    rows, own, shown = examples(with_bytes=with_bytes), model(**decision), []

    def measured(processes, **options):
        return evaluate(deepcopy(own), None, rows, batch_size=2, processes=processes, **options).as_dict()

    expected = measured(ALONE)
    found = side_by_side(count, partial(measured, progress=lambda done, total: shown.append((done, total))))
    assert all(metrics == found[0] for metrics in found) and max(shown) == (len(rows), len(rows))
    for name, value in expected.items():
        exact = value is None or isinstance(value, str)
        assert found[0][name] == (value if exact else pytest.approx(value, rel=1e-12)), name


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("limit", [1, 12, 1000])
def test_hidden_states_and_labels_come_in_the_order_of_the_text(side_by_side, count, limit):
    own = model()

    def read(processes):
        return labelled_states(deepcopy(own), batches(), limit, processes=processes)

    expected = read(ALONE)
    for found in side_by_side(count, read):
        assert all(map(torch.equal, found, expected))


def test_outputs_of_a_head_come_in_the_order_of_the_text(side_by_side):
    own = model(code="minrandom", bits=16)

    def read(processes):
        return text_outputs(deepcopy(own), batches(), 20, processes=processes)

    expected = read(ALONE)
    for found in side_by_side(3, read):
        assert all(map(torch.equal, found, expected))


def test_the_likely_tokens_are_looked_up_once(side_by_side, monkeypatch):
    monkeypatch.setattr(likely_tokens, "CACHED", 7 * VOCAB)  # seven positions at a time
    teacher, hidden = softmax_head(model()), torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(2))

    def look_up(processes):
        return LikelyTokens.of(teacher, hidden, processes=processes)

    expected = look_up(ALONE)
    for found in side_by_side(4, look_up):
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.log_sums, expected.log_sums)
        torch.testing.assert_close(found.expected, expected.expected, rtol=1e-12, atol=0)


def test_what_is_in_memory_is_refused_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="in memory, but there are several processes"):
        codehead.convert(str(tmp_path / "model"), ["a text"], out=tmp_path / "out")


def test_tasks_are_refused_in_several_processes(codehead, place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, errors = codehead("evaluate", place / "model", "--tasks", "any")
    assert status == 2 and "accelerate launch -m lm_eval" in errors
