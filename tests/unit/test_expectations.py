"""What a recommendation lets expect: rendered from committed results, never beyond what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from codehead.lab.result import Result
from codehead.recommendation import FILE, SetUp, Value, set_ups

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def render(folder):
    import expectations

    return expectations.render(folder)


@pytest.fixture
def results():
    if not RESULTS.is_dir():
        pytest.skip("there are no result files beside an installed package")
    return RESULTS


def test_the_packaged_file_is_what_the_results_say(results):
    told = "python benchmarks/expectations.py"
    assert json.loads(FILE.read_text(encoding="utf-8")) == render(results), f"the results are newer: {told}"


def test_every_set_up_has_numbers_at_what_was_measured_and_none_beyond():
    for set_up in set_ups():
        for share, values in set_up.points:
            assert {name: value.mean for name, value in set_up.at(share).items()} == {
                name: pytest.approx(value.mean) for name, value in values.items()
            }
        low, high = set_up.measured
        assert set_up.at(low * 0.98) is None and set_up.at(high * 1.02) is None
        for share, nearly in ((low, low * 0.995), (high, high * 1.005)):
            assert set_up.at(nearly) == set_up.at(share)


def points(*shares):
    return tuple(
        (share, {"top1_share": Value(10 * share, 0.1 * share), "perplexity_ratio": Value(1.0, None)})
        for share in shares
    )


def test_between_two_budgets_it_is_linear_in_log_bytes():
    set_up = SetUp("results/x", "", 10, 100, "somehow", 3, points(0.01, 0.02, 0.08))
    found = set_up.at(0.04)["top1_share"]
    assert found.mean == pytest.approx((0.2 + 0.8) / 2)  # 4% is half the way from 2% to 8%
    assert found.half_width == pytest.approx((0.002 + 0.008) / 2)
    assert set_up.at(0.02)["top1_share"].half_width == pytest.approx(0.002)  # a measured one has its own
    assert set_up.at(0.02)["top1_share"].mean == pytest.approx(0.2)
    assert set_up.at(0.04)["perplexity_ratio"] == Value(1.0, None)
    assert set_up.at(math.nextafter(0.08, 1)) is not None and set_up.at(0.081) is None


HIDDEN, VOCABULARY = 32, 1000
WHOLE = 2 * HIDDEN * VOCABULARY
OURS = {"code": "additive", "loss": "codeword", "token_bias": True}


def cell(bits=None, share=1.0, top1=0.4, **run):
    """What is made up of a cell: its bits (None: Softmax), share of bytes, accuracy and configuration."""
    if bits is not None:
        run = {
            "decision": {**OURS, "bits": bits, "dense_rows": bits, "seed": 3},
            "distil": {"steps": 70},
            "int4": True,
            **run,
        }
    return {"bits": bits, "share": share, "top1": top1, "run": {"training": {"max_steps": 20}, **run}}


CELLS = {"softmax": cell(), "small": cell(16, 0.02, 0.3), "large": cell(40, 0.08, 0.36)}


def write(folder, cells, setting="", seeds=3):
    """The result files of a protocol that nobody ran."""
    for name, made in cells.items():
        bits, seed_free = (
            made["bits"],
            {"protocol": folder.name, "cell": name, "setting": setting, "reference": "softmax"},
        )
        size = {
            "head_parameters": HIDDEN * (bits or VOCABULARY),
            "codebook_bytes": VOCABULARY * -(-(bits or 0) // 8),
            "bytes_in_bf16": round(made["share"] * WHOLE),
        }
        for seed in range(seeds):
            config = {**seed_free, "seed": seed, "run": made["run"], "peer": made.get("peer")}
            decision = bits and {"design": "learned", "bits": bits, "head": "linear", "width": 0, "loss": "codeword"}
            test = {"top1": made["top1"] + 0.001 * seed, "top5": 0.5, "perplexity": 4 / made["top1"]}
            metrics = {"test": test, "size": size, "decision": decision, "history": [{"loss": 1.0}]}
            Result(name, config, metrics, {}).write(folder / f"{setting}{name}--seed-{seed}.json")


def test_what_is_rendered_is_what_was_measured(tmp_path):
    write(tmp_path / "frontier-1", CELLS)
    (found,) = render(tmp_path)["set_ups"]
    assert (found["results"], found["hidden_size"], found["num_classes"]) == ("results/frontier-1", 32, 1000)
    assert found["learnt"] == "70 steps of learning from the old head, then 20 of training (lora)"
    assert [point["byte_share"] for point in found["points"]] == [0.02, 0.08]
    small = found["points"][0]
    assert small["top1_share"]["mean"] == pytest.approx(0.75, abs=0.002) and small["top1_share"]["half_width"] > 0
    assert small["perplexity_ratio"]["mean"] == pytest.approx(4 / 3)


def test_a_real_model_is_told_first(tmp_path):
    sums = {"positions": 100, "old_top1": 40.0, "new_top1": 36.0, "old_nll": 300.0, "new_nll": 320.0}
    other = {**sums, "new_top1": 0.0}
    sets = {name: {"all": other if name == "german" else sums} for name in ("dolly", "books", "wikitext", "german")}
    code = {"decision": {}, "distil": {"steps": 90}, "sets": sets}
    heads = {
        "code-b": {**code, "byte_share": 0.05},
        "code-a": {**code, "byte_share": 0.02},
        "int4": {"byte_share": 0.3},
    }
    heads["adaptive"] = {**code, "byte_share": 0.03, "distil": {"steps": 9}}  # a baseline that was trained is no code
    config = {"shape": [32, 1000], "model": "Some-135M"}
    Result("x", config, {"heads": heads}, {}).write(tmp_path / "benchmarks/frontier-real-1.json")
    write(tmp_path / "frontier-1", CELLS)
    found, _ = render(tmp_path)["set_ups"]
    assert (found["model"], found["hidden_size"], found["seeds"]) == ("Some-135M", 32, 1)
    assert [point["byte_share"] for point in found["points"]] == [0.02, 0.05] and "90 steps" in found["learnt"]
    assert found["points"][0]["top1_share"]["mean"] == pytest.approx(0.9)
    assert found["points"][0]["perplexity_ratio"]["mean"] == pytest.approx(math.exp(0.2), abs=1e-6)


def test_heads_that_were_converted_without_training(tmp_path):
    def converted(bits, share, top1):
        made = cell(bits, share, top1)
        return {**made, "peer": {"convert": {key: made["run"][key] for key in ("decision", "distil", "int4")}}}

    cells = {"softmax": cell(), "small": converted(16, 0.02, 0.3), "large": converted(40, 0.08, 0.36)}
    write(tmp_path / "frontier-1", cells)
    (found,) = render(tmp_path)["set_ups"]
    assert found["learnt"] == "70 steps of learning from the old head"
    assert len(found["points"]) == 2


def test_codes_that_budgets_came_to_before_are_told(tmp_path):
    before = {**OURS, "code": "itq"}
    cells = {
        **CELLS,
        "small-itq": cell(16, 0.02, 0.25, decision={**before, "bits": 16}),
        "large-itq": cell(40, 0.08, 0.35, decision={**before, "bits": 40}),
        "small-other": cell(16, 0.02, 0.25, decision={**OURS, "code": "minrandom", "bits": 16}),
        "large-other": cell(40, 0.08, 0.35, decision={**OURS, "code": "minrandom", "bits": 40}),
    }
    write(tmp_path / "frontier-1", cells)
    found = {one["learnt"]: one["points"][1]["top1_share"]["mean"] for one in render(tmp_path)["set_ups"]}
    learnt = "70 steps of learning from the old head, then 20 of training (lora)"
    assert found == {
        learnt: pytest.approx(0.9, abs=0.002),
        f"{learnt}, with itq codes": pytest.approx(0.875, abs=0.002),
    }


def test_codes_too_long_for_rows_in_int4_are_not_expected(tmp_path):
    cells = {**CELLS, "too long": cell(72, 0.12, 0.2)}
    write(tmp_path / "frontier-1", cells)
    (found,) = render(tmp_path)["set_ups"]
    assert [point["byte_share"] for point in found["points"]] == [0.02, 0.08]


def test_all_folders_and_settings_are_told_each_by_itself(tmp_path):
    write(tmp_path / "frontier-1", CELLS)
    write(tmp_path / "frontier-2", CELLS, setting="wide")
    write(tmp_path / "frontier-2", CELLS, setting="narrow", seeds=1)
    write(tmp_path / "other-1", CELLS)
    found = [(entry["results"], entry["setting"], entry["seeds"]) for entry in render(tmp_path)["set_ups"]]
    second = "results/frontier-2"
    assert found == [("results/frontier-1", "", 3), (second, "narrow", 1), (second, "wide", 3)]


def test_ways_of_learning_are_not_mixed(tmp_path):
    longer = {
        "small, longer": cell(16, 0.02, 0.35, distil={"steps": 700}, calibrate={}),
        "large, longer": cell(40, 0.08, 0.38, distil={"steps": 700}, calibrate={}),
    }
    write(tmp_path / "frontier-1", {**CELLS, **longer})
    learnt = [entry["learnt"] for entry in render(tmp_path)["set_ups"]]
    assert len(learnt) == 2 and learnt[1].startswith("700 steps") and learnt[1].endswith("then calibrated")


@pytest.mark.parametrize(
    "changes",
    [
        {"int4": False},
        {"distil": None},
        {"decision": {**OURS, "code": "minrandom", "bits": 40}},
        {"decision": {**OURS, "bits": 40, "head": "mtl", "width": 8}},
    ],
)
def test_what_recommend_would_not_build_is_not_taken_for_it(tmp_path, changes):
    write(tmp_path / "frontier-1", {**CELLS, "large": cell(40, 0.08, 0.36, **changes)})
    assert render(tmp_path) == {"set_ups": []}  # one budget alone is no curve
