"""Renders `codehead/recommendation/expected.json` from the results of the protocols that measure accuracy per byte.

python benchmarks/expectations.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from codehead.codes.packing import row_bytes
from codehead.config import DecisionConfig, ModelShape
from codehead.config.budget import bears_int4
from codehead.config.first_version import run_as_of_today
from codehead.lab.baselines import FILE_KEY
from codehead.lab.reports.evidence import Evidence, read_evidence
from codehead.lab.reports.summary import Estimate, Row, backbone_steps, summarise
from codehead.lab.result import Result, write_json
from codehead.recommendation import FILE, METRICS

RESULTS = Path(__file__).resolve().parents[1] / "results"
FOLDERS = "frontier-*"
REAL = "benchmarks/frontier-real-*.json"
MIXTURE = ("dolly", "books", "wikitext")
"""The test sets of a real model that are held-out text of the mixture its heads learnt from."""
SHARES = dict(zip(METRICS, ("share", "perplexity_ratio"), strict=True))  # their names in the summary
BY_SIZE: dict[str, Any] = {
    "code": "additive", "bits": 16, "extra_bits": 0, "extra_bit_tokens": 0, "dense_rows": 0, "token_bias": True,
    "seed": 0, "weights": "int4", "packed": True, "start": "old_head",
}  # fmt: skip
"""Fields set by a budget, fields without influence, and fields distinguished elsewhere, all set alike."""
CODES = ("additive", "itq")
"""Designs that budgets give now or gave before: the older ones kept less, but have more results."""
DIGITS = 6
_OURS = DecisionConfig(loss="codeword", **BY_SIZE)


def render(results: Path) -> dict[str, Any]:
    """The set-ups of real models, and of every folder `frontier-*` in `results`: cells like those that budgets give."""
    found = [_real(path) for path in sorted(results.glob(REAL))]
    found += [entry for folder in sorted(results.glob(FOLDERS)) for entry in _set_ups(folder)]
    return {"set_ups": found}


def _real(path: Path) -> dict[str, Any]:
    """The accuracy that codes kept of a pretrained model's head, measured by `benchmarks/frontier_real.py`."""
    result = Result.read(path)
    codes = [head for name, head in result.metrics["heads"].items() if name.startswith("code")]
    hidden_size, num_classes = result.config["shape"]
    steps = " to ".join(map(str, sorted({head["distil"]["steps"] for head in codes})))
    return {
        "results": f"results/benchmarks/{path.name}",
        "setting": "",
        "hidden_size": hidden_size,
        "num_classes": num_classes,
        "learnt": f"{steps} steps of learning from the old head",
        "seeds": 1,
        "points": sorted(map(_kept, codes), key=lambda point: point["byte_share"]),
        "model": result.config["model"],
    }


def _kept(head: Mapping[str, Any]) -> dict[str, Any]:
    parts = [head["sets"][name]["all"] for name in MIXTURE]
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    ratio = math.exp((total["new_nll"] - total["old_nll"]) / total["positions"])
    values = dict(zip(METRICS, (total["new_top1"] / total["old_top1"], ratio), strict=True))
    kept = {name: {"mean": round(value, DIGITS), "half_width": None} for name, value in values.items()}
    return {"byte_share": head["byte_share"], **kept}


def _set_ups(folder: Path) -> Iterator[dict[str, Any]]:
    """One per setting and way of learning, with at least two budgets."""
    evidence = read_evidence(folder)
    rows = {(row.setting, row.cell): row for row in summarise(evidence) if {*SHARES.values()} <= row.values.keys()}
    groups: dict[tuple[str, str], dict[str, Result]] = {}
    for result in evidence.results.values():
        known = (result.config["setting"], result.config["cell"]) in rows
        way = _way(result.config)
        if known and _is_like_ours(way) and _bears_its_rows(way, _shape(evidence, result)):
            key = (result.config["setting"], _learnt(way))
            groups.setdefault(key, {}).setdefault(result.config["cell"], result)
    for (setting, learnt), cells in sorted(groups.items()):
        points = sorted((_point(rows[setting, cell]) for cell in cells), key=lambda point: point["byte_share"])
        if len(points) > 1:
            shape = _shape(evidence, next(iter(cells.values())))
            yield {
                "results": f"results/{folder.name}",
                "setting": setting,
                "hidden_size": shape.hidden_size,
                "num_classes": shape.num_classes,
                "learnt": learnt,
                "seeds": min(rows[setting, cell].seeds for cell in cells),
                "points": points,
            }


def _way(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a cell got its decision layer: by conversion without training, or by its own run."""
    converted: Mapping[str, Any] | None = (config.get(FILE_KEY) or {}).get("convert")
    return config["run"] if converted is None else converted


def _is_like_ours(run: Mapping[str, Any]) -> bool:
    """Whether a run's decision layer is one that a budget may give, learnt from the old head."""
    if not run.get("decision") or run.get("distil") is None:
        return False
    decision = _decision(run)
    return replace(decision, **BY_SIZE) == _OURS and decision.code in CODES and decision.weights != "float"


def _bears_its_rows(run: Mapping[str, Any], shape: ModelShape) -> bool:
    """Whether a budget would leave rows in int4 to a code of this length."""
    decision = _decision(run)
    return decision.weights != "int4" or bears_int4(decision, shape)


def _decision(run: Mapping[str, Any]) -> DecisionConfig:
    """The decision layer of a run, as this version or 0.1 describes it."""
    return DecisionConfig.from_dict(run_as_of_today(run)["decision"])


def _learnt(run: Mapping[str, Any]) -> str:
    """How a decision layer learnt, in words."""
    training = run.get("training") or {}
    weight = run["distil"].get("label_weight")
    words = [f"{run['distil'].get('steps', 500)} steps of learning from the old head"]
    words[0] += f" and, with weight {weight:g}, the text" if weight else ""
    if backbone_steps(run["distil"]):
        words.append(f"{backbone_steps(run['distil'])} with the backbone")
    if training.get("max_steps"):
        words.append(f"{training['max_steps']} of training ({run.get('adapt') or 'lora'})")
    if run.get("calibrate") is not None:
        words.append("calibrated")
    code = run["decision"]["code"]
    return ", then ".join(words) + ("" if code == _OURS.code else f", with {code} codes")


def _shape(evidence: Evidence, coded: Result) -> ModelShape:
    """H and V of the model, from the sizes of its heads."""
    size, bits = coded.metrics["size"], coded.metrics["decision"]["bits"]
    num_classes = size["codebook_bytes"] // row_bytes(bits)
    setting, cell = coded.config["setting"], coded.config["reference"]
    softmax = next(
        result
        for result in evidence.results.values()
        if (result.config["setting"], result.config["cell"]) == (setting, cell)
    )
    return ModelShape(softmax.metrics["size"]["head_parameters"] // num_classes, num_classes)


def _point(row: Row) -> dict[str, Any]:
    assert row.byte_share is not None
    return {"byte_share": row.byte_share, **{name: _value(row.values[source]) for name, source in SHARES.items()}}


def _value(estimate: Estimate) -> dict[str, float | None]:
    width = estimate.half_width
    return {"mean": round(estimate.mean, DIGITS), "half_width": None if width is None else round(width, DIGITS)}


if __name__ == "__main__":
    print(write_json(FILE, render(RESULTS)).read_text(encoding="utf-8"), end="")
