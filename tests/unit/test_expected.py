"""What a recommendation lets expect: rendered from committed results, never beyond what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from codehead.evaluation.expected import FILE, SetUp, Value, set_ups
from codehead.evaluation.result import Result
from codehead.reports.expected import render

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def results():
    if not RESULTS.is_dir():
        pytest.skip("there are no result files beside an installed package")
    return RESULTS


def test_the_packaged_file_is_what_the_results_say(results):
    told = "python -m codehead.reports.expected results"
    assert json.loads(FILE.read_text(encoding="utf-8")) == render(results), f"the results are newer: {told}"


def test_every_set_up_has_numbers_at_what_was_measured_and_none_beyond():
    assert set_ups()
    for set_up in set_ups():
        for share, values in set_up.points:
            assert {name: value.mean for name, value in set_up.at(share).items()} == {
                name: pytest.approx(value.mean) for name, value in values.items()
            }
        low, high = set_up.measured
        assert set_up.at(low * 0.999) is None and set_up.at(high * 1.001) is None


def points(*shares):
    return tuple(
        (share, {"top1_share": Value(10 * share, 0.1 * share), "perplexity_ratio": Value(1.0, None)})
        for share in shares
    )


def test_between_two_budgets_it_is_linear_in_log_bytes():
    set_up = SetUp("results/x", "", 10, 100, "somehow", 3, points(0.01, 0.02, 0.08))
    found = set_up.at(0.04)["top1_share"]
    assert found.mean == pytest.approx((0.2 + 0.8) / 2)  # 4% is half the way from 2% to 8%
    assert found.half_width == pytest.approx(0.008)
    assert set_up.at(0.02)["top1_share"].mean == pytest.approx(0.2)
    assert set_up.at(0.04)["perplexity_ratio"] == Value(1.0, None)
    assert set_up.at(math.nextafter(0.08, 1)) is not None and set_up.at(0.081) is None


def copied(results, folder, change=lambda config: config, cells=("softmax", "code-2", "code-15")):
    """Result files of frontier-1 with another configuration."""
    for cell in cells:
        for path in (results / "frontier-1").glob(f"{cell}--*.json"):
            result = Result.read(path)
            replace(result, config=change(json.loads(json.dumps(result.config)))).write(folder / path.name)


def test_all_folders_of_accuracy_per_byte_are_told_each_by_itself(results, tmp_path):
    def longer(config):
        config["run"]["training"]["max_steps"] = 900
        return config

    copied(results, tmp_path / "frontier-1")
    copied(results, tmp_path / "frontier-2", longer)
    copied(results, tmp_path / "other-1")
    first, second = render(tmp_path)["set_ups"]
    assert (first["results"], second["results"]) == ("results/frontier-1", "results/frontier-2")
    assert "900 of training" in second["learnt"] and "200 of training" in first["learnt"]
    assert first["points"] == second["points"] and len(first["points"]) == 2
    assert (first["hidden_size"], first["num_classes"], first["seeds"]) == (160, 8192, 3)


@pytest.mark.parametrize(
    "changes", [{"int8": True}, {"distil": None}, {"decision": {"code": "minrandom", "bits": 64, "loss": "codeword"}}]
)
def test_what_recommend_would_not_build_is_not_taken_for_it(results, tmp_path, changes):
    def changed(config):
        return config if config["cell"] == "softmax" else {**config, "run": {**config["run"], **changes}}

    copied(results, tmp_path / "frontier-1", changed)
    assert render(tmp_path) == {"set_ups": []}


def test_other_heads_and_peers_are_left_out(results, tmp_path):
    copied(results, tmp_path / "frontier-1", cells=("softmax", "code-2", "low-rank-*", "int*", "trimmed-*"))
    assert render(tmp_path) == {"set_ups": []}  # one budget alone is no curve
