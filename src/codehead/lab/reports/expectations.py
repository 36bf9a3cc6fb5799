"""Renders `codehead/evaluation/expected.json` from the results of the protocols that measure accuracy per byte.

python -m codehead.lab.reports.expectations results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codehead.codes.packing import row_bytes
from codehead.evaluation.budget import Allocation
from codehead.evaluation.expectations import FILE, METRICS
from codehead.evaluation.size import ModelShape
from codehead.lab.baselines.config import FILE_KEY
from codehead.lab.reports.evidence import Evidence, read_evidence
from codehead.lab.reports.summary import Estimate, Row, summarise
from codehead.lab.result import Result, write_json
from codehead.training.config import WEIGHTS

FOLDERS = "frontier-*"
SHARES = dict(zip(METRICS, ("share", "perplexity_ratio"), strict=True))  # what the summary calls them
BY_SIZE = ("bits", "refined", "refined_bits", "shortlist", "token_bias", "seed", "code")
"""Keys of a decision that a budget decides, that make no difference, or that are told."""
CODES = ("additive", "itq")
"""Those that budgets come to, and have come to before: what they kept is less, and there is more of it."""
DIGITS = 6
_OURS = Allocation(ModelShape(1, 2), 1).decision()


def render(results: Path) -> dict[str, Any]:
    """The set-ups of every folder `frontier-*` in `results`: cells like those that `allocate` gives."""
    found = [entry for folder in sorted(results.glob(FOLDERS)) for entry in _set_ups(folder)]
    return {"set_ups": found}


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
    """What a cell did to come to its decision layer: it was converted without training, or a run of its own."""
    converted: Mapping[str, Any] | None = (config.get(FILE_KEY) or {}).get("convert")
    return config["run"] if converted is None else converted


def _is_like_ours(run: Mapping[str, Any]) -> bool:
    """Whether a run's decision layer is one that `allocate` may give, learnt from the old head."""
    decision, like = run.get("decision") or {}, _OURS
    fixed = [{key: value for key, value in keys.items() if key not in BY_SIZE} for keys in (decision, like)]
    same = fixed[0] == fixed[1] and decision.get("code") in CODES
    return run.get("distil") is not None and any(run.get(name) for name in WEIGHTS) and same


def _bears_its_rows(run: Mapping[str, Any], shape: ModelShape) -> bool:
    """Whether `allocate` would leave rows in int4 to a code of this length."""
    decision = run["decision"]
    code = Allocation(shape, decision["bits"], refined_bits=decision.get("refined_bits", 0))
    return code.bears_int4 or not run.get("int4")


def _learnt(run: Mapping[str, Any]) -> str:
    """How a decision layer learnt, in words."""
    training = run.get("training") or {}
    weight = run["distil"].get("label_weight")
    words = [f"{run['distil'].get('steps', 500)} steps of learning from the old head"]
    words[0] += f" and, with weight {weight:g}, the text" if weight else ""
    if run["distil"].get("trunk_steps"):
        words.append(f"{run['distil']['trunk_steps']} with the trunk")
    if training.get("max_steps"):
        words.append(f"{training['max_steps']} of training ({run.get('adapt') or 'lora'})")
    if run.get("calibrate") is not None:
        words.append("calibrated")
    code = run["decision"]["code"]
    return ", then ".join(words) + ("" if code == _OURS["code"] else f", with {code} codes")


def _shape(evidence: Evidence, coded: Result) -> ModelShape:
    """H and V of the model, from what its heads weigh."""
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


def main(results: str) -> None:
    """Write the packaged file anew, and print it."""
    print(json.dumps(json.loads(write_json(FILE, render(Path(results))).read_text(encoding="utf-8")), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
