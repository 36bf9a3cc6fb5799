"""The page about the paper says what the committed result files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from codehead.lab.reports.summary import Estimate

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def made(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import paper_page

    return paper_page


def test_committed_figures_are_those_of_the_committed_results(made):
    text = made.PAGE.read_text(encoding="utf-8")
    assert made.page(text) == text


def test_a_typed_verdict_is_replaced(made):
    text = made.PAGE.read_text(encoding="utf-8")
    changed = text.replace("**no**: [", "**yes**: [", 1)
    assert changed != text
    assert made.page(changed) == text


@pytest.mark.parametrize(
    ("mean", "half_width", "said"),
    [
        (0.9, 0.02, "**yes**"),
        (0.9, None, "**yes**, one seed"),
        (0.8, 0.02, "**no**"),
        (0.84, 0.02, "open"),
        (0.82, 0.02, "open"),
    ],
)
def test_a_share_counts_as_reached_only_beyond_its_interval(made, mean, half_width, said):
    assert made.verdict(Estimate(mean, half_width), 0.83) == said


def test_an_order_is_open_where_intervals_overlap(made):
    low, high = Estimate(0.5, 0.1), Estimate(0.65, 0.1)
    assert made.order(high, low) == made.order(low, high) == "open"
    assert made.order(Estimate(0.9, 0.1), low) == "yes"
    assert made.order(low, Estimate(0.9, 0.1)) == "**no**"
