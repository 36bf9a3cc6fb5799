"""Results of single runs → one row per head and setting, named, with means and intervals over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, TypeVar

from codehead.codes import DESIGNS
from codehead.config.decision import design_name
from codehead.lab.reports.evidence import Evidence
from codehead.lab.result import Result

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

# The names of results in tables and pictures, and which of them share a colour.


LEARNT = ("converted", "labelled", "joint", "trained")
"""Families of codes with the codeword loss, distilled from a Softmax head and rounded, by method: see `_way`."""
OVER_TOKENS = ("softmax", "codeword", "refined", *LEARNT, "peer")
"""Families whose training loss is one over V tokens, not over bits."""


def label_of(result: Result) -> str:
    """The configuration as the paper writes it, `MinRandom MTL-ECOC (50, 512)`, plus parts that the paper lacks."""
    decision, peer = result.metrics["decision"], result.metrics.get("peer")
    if peer is not None and not peer.get("convert"):
        return _label_of_peer(peer)
    if decision is None:
        return "Softmax"
    weights = [f"int{decision.get('rounded_bits', 8)}"] if decision.get("rounded") else []
    return ", ".join([_label_of_code(decision, _asked(result, "decision")), *weights, *_told(result)])


def _asked(result: Result, key: str) -> Mapping[str, Any]:
    """The block `decision` or `distil` of the conversion or the run that made a decision layer; empty if it has none.

    `distil` are the options for learning from a Softmax head, in a conversion or before training.
    """
    peer, run = result.metrics.get("peer"), result.config.get("run")
    return ((run if peer is None else peer.get("convert")) or {}).get(key) or {}


def _told(result: Result) -> list[str]:
    """A word or two on how a decision layer learnt from a Softmax head; empty for a plain conversion."""
    distil = _asked(result, "distil")
    weight = distil.get("label_weight", 0)
    words = {
        "backbone too": backbone_steps(distil),
        f"labels {weight:g}": weight,
        "trained on": _way(result) == "trained",
    }
    return [word for word, applies in words.items() if applies]


def _way(result: Result) -> str:
    """How a decision layer learnt from a Softmax head; nothing if it did not.

    "converted" with a frozen backbone, "labelled" with the text's own tokens, "joint" with the backbone, to replace a
    trained head; "trained" if followed by training.
    """
    distil = _asked(result, "distil")
    if not distil:
        return ""
    if result.metrics.get("peer") is None:
        return "trained"
    return "joint" if backbone_steps(distil) else "labelled" if distil.get("label_weight") else "converted"


def backbone_steps(distil: Mapping[str, Any]) -> int:
    """Steps that also trained the backbone, also under the name of version 0.1."""
    return int(distil.get("backbone_steps") or distil.get("trunk_steps") or 0)


def _label_of_code(decision: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The name of a decision layer; `asked` gives its number of check bits and its assignment."""
    if decision["head"] == "low_rank" and decision["design"] == "one_vs_all":
        return f"Low rank {decision['rank']}"
    if decision["head"] == "adaptive":
        return f"Adaptive softmax {decision['head_options'].get('cutoffs') or ''}".strip()
    design = design_name(decision["design"])
    if decision["design"] == "learned" and asked.get("code") in DESIGNS.names():
        design += f" {design_name(asked['code'])}"
    kind = {"mtl": "MTL-ECOC", "chain": "chain"}.get(decision["head"], "ECOC")
    parity = (asked.get("code_params") or {}).get("parity", 0)
    bits = f"{decision['bits'] - parity} + {parity}" if parity else str(decision["bits"])
    named = design if "ECOC" in design and kind == "ECOC" else f"{design} {kind}"
    label = f"{named} ({bits}, {decision['width']})"
    if asked.get("assignment"):
        label += f", {asked['assignment'].replace('_', ' ')}"
    if decision.get("refined"):
        label += f" + {decision['refined_bits']:,} extra bits for {decision['refined']:,} tokens"
    if decision.get("shortlist") or decision.get("token_bias"):  # these imply the codeword loss
        return f"{label} + {decision['shortlist']:,} dense rows" if decision["shortlist"] else f"{label} + bias"
    return label if decision["loss"] == "bitwise" else f"{label} + {decision['loss']} loss"


def _label_of_peer(peer: Mapping[str, Any]) -> str:
    if peer["keep"] is not None:
        return f"Trimmed to {peer['keep']:,} tokens" + (f", int{peer['bits']}" if peer["bits"] else "")
    return f"int{peer['bits']}, {'error-corrected' if peer['corrected'] else 'rounded'}"


def family_of(result: Result) -> str:
    """The colour group of a result."""
    decision = result.metrics["decision"]
    if decision is None:
        return "softmax" if result.metrics.get("peer") is None else "peer"
    if decision["design"] == "one_vs_all":
        return "peer"
    if decision.get("rounded") and decision["loss"] == "codeword" and _way(result):
        return _way(result)
    if decision.get("refined"):
        return "refined"
    return "codeword" if decision["loss"] == "codeword" else decision["head"]


# Short names for tables and pictures: `code 5%`, if a cell is named after its share of the bytes.


NUMBER = re.compile(r"-(\d+(?:\.\d+)?)(?=-|$)")
NEAR = 2.0
"""The factor by which the number in a cell's name may differ from its head's per cent and still mean it."""


def short_name(result: Result, label: str, byte_share: float | None) -> str:
    """`low rank 5%` for the cell `low-rank-5`, with the share that the head really takes; else its `label`."""
    cell = str(result.config["cell"])
    numbers = list(NUMBER.finditer(cell))
    if len(numbers) == 1 and float(numbers[0][1]) == (result.metrics["decision"] or {}).get("bits"):
        return label  # `minrandom-50` has 50 bits, however many bytes these take
    if len(numbers) != 1 or not byte_share or not 1 / NEAR < float(numbers[0][1]) / (100 * byte_share) < NEAR:
        return label
    (found,) = numbers
    named = f"{cell[: found.start()]} {100 * byte_share:{'.0f' if byte_share > 0.1 else '.1f'}}%{cell[found.end() :]}"
    return named.replace(".0%", "%").replace("-", " ")


# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, its expansion in 1/df.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
DIGITS = 12  # digits to which a number in a setting's name is padded for sorting
FINAL_SHARE = 0.1  # share of the logged steps that "final training loss" is averaged over
TEST_METRICS = ("top1", "top5", "perplexity", "bits_per_byte", "node_loss", "bit_accuracy")
ANSWER_METRICS = ("precision", "recall", "f1")  # BERTScore
SHARES = {
    "share": "top1",
    "top5_share": "top5",
    "perplexity_ratio": "perplexity",
    "bits_per_byte_ratio": "bits_per_byte",
    "f1_share": "f1",
}  # each a metric divided by that of the reference with the same seed and setting
TIMED = ("answer_seconds", "tokens_per_second")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95% t-interval (None for a single seed)."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per seed."""
        count = len(values)
        if count < 2:
            return cls(fmean(values), None)
        return cls(fmean(values), t_quantile(count - 1) * stdev(values) / math.sqrt(count))


@dataclass(frozen=True)
class Row:
    """One head at one setting. A metric that its results lack is missing from `values`."""

    name: str  # a short one
    label: str  # the full description
    cell: str
    family: str  # heads of one colour: softmax, linear, mtl, codeword, refined, one of LEARNT, or peer (no code)
    setting: str
    seeds: int
    parameters: int  # of the head
    parameter_share: float | None  # of the reference head's
    values: dict[str, Estimate]
    """TEST_METRICS on the test split, ANSWER_METRICS, SHARES of the reference's, `train_loss`."""
    is_reference: bool
    decision: Mapping[str, Any] | None = None  # design, bits, head, width, loss, decoder; None for Softmax
    bytes_resident: int | None = None  # weights and codebook
    byte_share: float | None = None  # of the reference's bytes, both stored with weights in bf16
    times: dict[str, float] = field(default_factory=dict)
    """TIMED, all of one seed: medians of interleaved repeats, robust to a slow moment of the machine."""
    decoders: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Name of a decoder → `top1`, and `share` of the reference's: the same outputs with other decoders."""
    unmatched: tuple[int, ...] = ()  # seeds missing from the reference: then there are no SHARES


def summarise(results: Iterable[Result] | Evidence) -> list[Row]:
    """Rows in order of setting and of size, the reference first; with times if there is evidence of them."""
    evidence = results if isinstance(results, Evidence) else Evidence(dict(enumerate(results)))
    groups = grouped(evidence.results.values(), lambda result: (result.config["setting"], result.config["cell"]))
    rows = []
    for (setting, cell), group in groups.items():
        references = groups.get((setting, group[0].config["reference"]), [])
        rows.append(_row(group, references, evidence.timing(setting).get(cell, {})))
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[Any, ...]:
    """By bytes where they are known, otherwise by parameters."""
    return setting_size(row.setting), not row.is_reference, row.byte_share or 0.0, row.parameters, row.label


def by_setting(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of every setting, in their order."""
    return grouped(rows, lambda row: row.setting)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of every key, in their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t."""
    z = 1.95996
    return T_975[degrees - 1] if degrees <= len(T_975) else z + (z**3 + z) / (4 * degrees)


def setting_size(setting: str) -> tuple[float, str]:
    """Sorts `2.4M` before `10M`, and names without a size last, `V2000` before `V16000`."""
    number, unit = setting.rstrip("kMB"), setting[-1:]
    in_order = re.sub(r"\d+", lambda digits: digits[0].zfill(DIGITS), setting)
    try:
        return float(number) * {"k": 1e3, "M": 1e6, "B": 1e9}.get(unit, 1.0), in_order
    except ValueError:
        return math.inf, in_order


def setting_title(setting: str) -> str:
    """`10M` is a number of tokens; other names are shown as they are."""
    return f"{setting} tokens" if math.isfinite(setting_size(setting)[0]) else setting


def _row(group: list[Result], references: list[Result], timed: Mapping[str, Any]) -> Row:
    first = group[0]
    whole = {result.config["seed"]: _measured(result) for result in references}
    columns: dict[str, list[Any]] = {}
    for result in group:
        measured = _measured(result)
        reference = whole.get(result.config["seed"], {})
        measured |= {share: _ratio(measured[name], reference.get(name)) for share, name in SHARES.items()}
        for name, value in measured.items():
            columns.setdefault(name, []).append(value)
    size, whole_size = first.metrics["size"], references[0].metrics["size"] if references else {}
    label, byte_share = label_of(first), _ratio(size.get("bytes_in_bf16"), whole_size.get("bytes_in_bf16"))
    return Row(
        name=short_name(first, label, byte_share),
        label=label,
        cell=first.config["cell"],
        family=family_of(first),
        setting=first.config["setting"],
        seeds=len(group),
        parameters=size["head_parameters"],
        parameter_share=_ratio(size["head_parameters"], whole_size.get("head_parameters")),
        values={name: Estimate.of(column) for name, column in columns.items() if None not in column},
        is_reference=first.config["cell"] == first.config["reference"],
        decision=first.metrics["decision"],
        bytes_resident=size.get("bytes_resident"),
        byte_share=byte_share,
        times={name: timed[name] for name in TIMED if name in timed},
        decoders=_by_decoder(group, whole),
        unmatched=tuple(sorted({result.config["seed"] for result in group} - whole.keys())),
    )


def _measured(result: Result) -> dict[str, Any]:
    """All measurements of one run, by name; None for missing ones."""
    bertscore = (result.metrics.get("answers") or {}).get("bertscore") or {}
    return {
        **{name: result.metrics["test"].get(name) for name in TEST_METRICS},
        **{name: bertscore.get(name) for name in ANSWER_METRICS},
        "train_loss": final_loss(result.metrics["history"]),
    }


def _by_decoder(group: Sequence[Result], whole: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """The results of every decoder over all runs of a group; without decoders that some run lacks."""
    read = [result.metrics.get("decoders") or {} for result in group]
    found = {}
    for name in read[0]:
        if all(name in one for one in read):
            top1 = [one[name]["top1"] for one in read]
            shares = [
                _ratio(value, whole.get(result.config["seed"], {}).get("top1"))
                for value, result in zip(top1, group, strict=True)
            ]
            columns = {"top1": top1, "share": shares}
            found[name] = {key: Estimate.of(column) for key, column in columns.items() if None not in column}
    return found


def final_loss(history: Sequence[dict[str, Any]]) -> float | None:
    """Mean training loss over the last tenth of the logged steps; None without a log."""
    losses = [entry["loss"] for entry in history]
    return fmean(losses[-max(1, round(len(losses) * FINAL_SHARE)) :]) if losses else None


def _ratio(value: float | None, whole: float | None) -> Any:
    return value / whole if whole and value is not None else None
