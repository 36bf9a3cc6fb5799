"""The figures of pages about benchmarks are those of the committed result files."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_script_finds_what_it_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for needed in ("faiss", "onnx", "onnxruntime"):
        pytest.importorskip(needed)
    importlib.import_module(script)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import screening_page

    return screening_page


def test_committed_tables_are_those_of_the_committed_results(made):
    for path in made.PAGES:
        text = path.read_text(encoding="utf-8")
        assert made.page(text) == text
    readme = made.README.read_text(encoding="utf-8")
    assert made.filled(readme, "screening", made.summary()) == readme


def test_a_typed_number_is_replaced(made):
    text = made.PAGES[1].read_text(encoding="utf-8")
    assert made.page(text.replace("| screen fast", "| 9.99 ms", 1)) == text


def test_pages_about_training_memory_show_the_committed_result(made):
    import training_memory

    result = training_memory.Result.read(training_memory.ROOT / "results" / "benchmarks" / "training-memory-cpu.json")
    for path in training_memory.PAGES:
        assert training_memory.page(path, result) == path.read_text(encoding="utf-8")
