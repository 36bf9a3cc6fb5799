"""Results of single runs → one row per head and setting, with means and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from codehead.errors import DataError
from codehead.evaluation.result import Result

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, its expansion in 1/df.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
FINAL_SHARE = 0.1  # of the logged steps: what "final training loss" is averaged over
TEST_METRICS = ("top1", "top5", "perplexity", "bits_per_byte", "node_loss", "bit_accuracy")
DESIGN_NAMES = {"minrandom": "MinRandom", "one_vs_all": "One-vs-All", "one_vs_one": "One-vs-One"}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95% t-interval (None for a single seed)."""

    mean: float
    half_width: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate of one value per seed."""
        count = len(values)
        if count < 2:
            return cls(fmean(values), None, count)
        return cls(fmean(values), t_quantile(count - 1) * stdev(values) / math.sqrt(count), count)


@dataclass(frozen=True)
class Row:
    """One head at one setting. A metric that its results do not have is missing from `values`."""

    label: str
    family: str  # softmax, linear, mtl or codeword: what shares a colour in pictures
    setting: str
    seeds: int
    parameters: int  # of the head
    parameter_share: float | None  # of the reference head's
    values: dict[str, Estimate]
    """TEST_METRICS on the test split, `share` of the reference's top-1, `train_loss`."""
    is_reference: bool


def read_results(folder: str | Path) -> list[Result]:
    """Every result file of a protocol's `results` folder; DataError if there is none."""
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise DataError(f"no result files in {str(folder)!r}; run the protocol first")
    return [Result.read(path) for path in paths]


def summarise(results: Iterable[Result]) -> list[Row]:
    """Rows in order of setting and of head parameters, the reference first."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.config["setting"], result.config["cell"]), []).append(result)
    rows = [
        _row(group, groups.get((setting, group[0].config["reference"]), [])) for (setting, _), group in groups.items()
    ]
    return sorted(rows, key=lambda row: (setting_size(row.setting), not row.is_reference, row.parameters, row.label))


def label_of(result: Result) -> str:
    """The configuration as the paper writes it: `MinRandom MTL-ECOC (50, 512)`."""
    decision = result.metrics["decision"]
    if decision is None:
        return "Softmax"
    design = DESIGN_NAMES.get(decision["design"], decision["design"].replace("_", " ").capitalize())
    kind = "MTL-ECOC" if decision["head"] == "mtl" else "ECOC"
    loss = "" if decision["loss"] == "bitwise" else f" + {decision['loss']} loss"
    return f"{design} {kind} ({decision['bits']}, {decision['width']}){loss}"


def family_of(result: Result) -> str:
    """The colour group of a result."""
    decision = result.metrics["decision"]
    if decision is None:
        return "softmax"
    return "codeword" if decision["loss"] == "codeword" else decision["head"]


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t."""
    z = 1.95996
    return T_975[degrees - 1] if degrees <= len(T_975) else z + (z**3 + z) / (4 * degrees)


def setting_size(setting: str) -> tuple[float, str]:
    """Sorts `2.4M` before `10M`, and names without a number last."""
    number, unit = setting.rstrip("kMB"), setting[-1:]
    try:
        return float(number) * {"k": 1e3, "M": 1e6, "B": 1e9}.get(unit, 1.0), setting
    except ValueError:
        return math.inf, setting


def setting_title(setting: str) -> str:
    """`10M` is a number of tokens; other names stand for themselves."""
    return f"{setting} tokens" if math.isfinite(setting_size(setting)[0]) else setting


def _row(group: list[Result], references: list[Result]) -> Row:
    first = group[0]
    values: dict[str, list[Any]] = {name: [] for name in (*TEST_METRICS, "share", "train_loss")}
    top1 = {result.config["seed"]: result.metrics["test"]["top1"] for result in references}
    for result in group:
        for name in TEST_METRICS:
            values[name].append(result.metrics["test"][name])
        values["share"].append(_ratio(result.metrics["test"]["top1"], top1.get(result.config["seed"])))
        values["train_loss"].append(final_loss(result.metrics["history"]))
    parameters = first.metrics["size"]["head_parameters"]
    whole = references[0].metrics["size"]["head_parameters"] if references else None
    return Row(
        label=label_of(first),
        family=family_of(first),
        setting=first.config["setting"],
        seeds=len(group),
        parameters=parameters,
        parameter_share=_ratio(parameters, whole),
        values={name: Estimate.of(column) for name, column in values.items() if None not in column},
        is_reference=first.config["cell"] == first.config["reference"],
    )


def final_loss(history: Sequence[dict[str, Any]]) -> float | None:
    """Mean training loss over the last tenth of the logged steps; None without a log."""
    losses = [entry["loss"] for entry in history]
    return fmean(losses[-max(1, round(len(losses) * FINAL_SHARE)) :]) if losses else None


def _ratio(value: float, whole: float | None) -> Any:
    return value / whole if whole else None
