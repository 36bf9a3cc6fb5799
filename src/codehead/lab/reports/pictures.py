"""Pictures of a protocol: accuracy against parameters, codeword length and hidden width; training curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from codehead.lab.baselines import FILE_KEY
from codehead.lab.reports.drawing import (
    DASHES,
    INK,
    LABEL,
    PALETTE,
    PAPER,
    SOFTMAX_DASH,
    Key,
    Panel,
    Picture,
    place_labels,
)
from codehead.lab.reports.families import NOTE, as_percent, draw_family, families_of, look
from codehead.lab.reports.frontier import frontier
from codehead.lab.reports.summary import (
    OVER_TOKENS,
    Row,
    by_setting,
    family_of,
    label_of,
    setting_size,
    setting_title,
)
from codehead.lab.result import Result

METRICS = {"top1": "top-1 next-token accuracy", "f1": "BERTScore F1"}
TITLES = {"top1": "Top-1 accuracy", "f1": "BERTScore F1"}
PARAMETERS = "parameters of the head"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PAPER_DESIGNS = ("minimal", "minrandom")  # MinRandom without random bits is Minimal, so they make one curve


def pictures(rows: Sequence[Row], results: Sequence[Result]) -> list[Picture]:
    """Top-1 against parameters and the curves always, the rest where there is something to show."""
    tradeoffs = [tradeoff(rows, metric) for metric in METRICS if any(metric in row.values for row in rows)]
    return [*frontier(rows), *tradeoffs, *all_curves(results), *analyses(rows)]


def tradeoff(rows: Sequence[Row], metric: str = "top1") -> Picture:
    """A metric against the parameters of the head on a log axis; rows that lack one of them are left out."""
    shown = [row for row in rows if metric in row.values and row.parameters]
    top = 1.12 * max(row.values[metric].mean + (row.values[metric].half_width or 0.0) for row in shown) or 0.01
    panels = [
        Panel(
            setting_title(setting),
            f"{METRICS[metric]} of {len(group)} heads against {PARAMETERS}{_of(setting)}, with a line at Softmax; "
            "the values are in the table",
            partial(_draw_tradeoff, rows=group, metric=metric, top=top),
        )
        for setting, group in by_setting(shown).items()
    ]
    name = "tradeoff" if metric == "top1" else f"tradeoff-{metric}"
    title = f"{TITLES[metric]} against head parameters"
    return Picture(name, title, NOTE, tuple(panels), tuple(_key(family) for family in families_of(shown)))


def curves(results: Sequence[Result]) -> Picture:
    """The training loss of every head of one setting."""
    setting = results[0].config["setting"]
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: (result.metrics["decision"] is not None, _parameters(result))):
        if result.metrics.get(FILE_KEY) is None:  # those were not trained
            groups.setdefault(label_of(result), []).append(result)
    looks = _curve_looks(list(groups))
    kinds = {
        "Mean training loss per node": ("nats per node and token", [g for g in groups.values() if _is_bitwise(g[0])]),
        "Training loss over tokens": ("nats per token", [g for g in groups.values() if not _is_bitwise(g[0])]),
    }
    panels = [
        Panel(
            title,
            f"{title} of {len(lines)} heads during training{_of(setting)}",
            partial(_draw_curves, lines=lines, looks=looks, unit=unit),
        )
        for title, (unit, lines) in kinds.items()
        if lines
    ]
    note = "Lines are means over seeds, bands reach from the lowest to the highest seed."
    title = f"Training loss{_of(setting)}"
    return Picture(f"curves-{setting}" if setting else "curves", title, note, tuple(panels), tuple(looks.values()))


def all_curves(results: Iterable[Result]) -> list[Picture]:
    """The curves of every setting."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.config["setting"], []).append(result)
    return [curves(groups[setting]) for setting in sorted(groups, key=setting_size)]


def short(row: Row) -> str:
    """`Minimal (13, 0)`: the kind of head is told by the colour."""
    return row.name.replace(" MTL-ECOC", "").replace(" ECOC", "")


def name_sizes(axis: Any) -> None:
    """Ticks of a log axis as `20k` and `1M`; within two decades also between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if high > 500 * low else (1.0, 3.0)))
    axis.xaxis.set_major_formatter(_compact)
    axis.xaxis.set_minor_formatter(NullFormatter())


def _compact(value: float, _: Any = None) -> str:
    """`300`, `20k`, `1M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _key(family: str) -> Key:
    name, colour, marker = look(family)
    return Key(name, colour, marker, SOFTMAX_DASH if family == "softmax" else "")


def _draw_tradeoff(axis: Any, rows: Sequence[Row], metric: str, top: float) -> None:
    for family in families_of(rows):
        chosen = [row for row in rows if row.family == family]
        draw_family(axis, family, [row.parameters for row in chosen], [row.values[metric] for row in chosen])
    references = [row.values[metric].mean for row in rows if row.is_reference]
    for mean in references:
        axis.axhline(mean, color=INK, linestyle=SOFTMAX_DASH, linewidth=1)
    axis.set(xscale="log", xlabel=PARAMETERS, ylabel=METRICS[metric], ylim=(0, top))
    axis.margins(x=0.2)
    name_sizes(axis)
    if metric == "top1":
        axis.yaxis.set_major_formatter(as_percent)
    points = [(row.parameters, row.values[metric].mean, "" if row.is_reference else short(row), LABEL) for row in rows]
    place_labels(axis, points, [row.values[metric].half_width or 0.0 for row in rows], avoid_y=references)


def _curve_looks(labels: Sequence[str]) -> dict[str, Key]:
    """One colour and dash per label, Softmax in ink."""
    coloured = [label for label in labels if label != "Softmax"]
    looks = {"Softmax": Key("Softmax", INK, line="-")} if "Softmax" in labels else {}
    for number, label in enumerate(coloured):
        turn = number // len(PALETTE)
        looks[label] = Key(label, PALETTE[number % len(PALETTE)], line=DASHES[turn % len(DASHES)])
    return looks


def _draw_curves(axis: Any, lines: Sequence[Sequence[Result]], looks: dict[str, Key], unit: str) -> None:
    for group in lines:
        _draw_curve(axis, group, looks[label_of(group[0])])
    axis.set(ylabel=unit, xlabel="optimizer steps")


def _draw_curve(axis: Any, group: Sequence[Result], key: Key) -> None:
    """The mean over seeds, and the range between them as a band."""
    runs = [{entry["step"]: entry["loss"] for entry in result.metrics["history"]} for result in group]
    steps = _logged(group)
    losses = np.array([[run[step] for step in steps] for run in runs])  # (seeds, logged steps)
    axis.plot(steps, losses.mean(0), color=key.colour, linestyle=key.line, linewidth=1.6)
    if len(losses) > 1:
        axis.fill_between(steps, losses.min(0), losses.max(0), color=key.colour, alpha=0.18, linewidth=0)


def _logged(group: Sequence[Result]) -> list[int]:
    """The steps that all seeds logged."""
    return sorted(set.intersection(*({entry["step"] for entry in result.metrics["history"]} for result in group)))


def _is_bitwise(result: Result) -> bool:
    return family_of(result) not in OVER_TOKENS


def _parameters(result: Result) -> int:
    return int(result.metrics["size"]["head_parameters"])


def _of(setting: str) -> str:
    return f", {setting_title(setting)}" if setting else ""


# What drives accuracy: codeword length and hidden width, everything else being equal.


def analyses(rows: Sequence[Row]) -> list[Picture]:
    """Those of the pictures that the rows have something to show in."""
    found = [
        _along(rows, "length", "Codeword length", "codeword length n (bits)", "bits", _length_series),
        _along(rows, "width", "Hidden width", "hidden width d", "width", _width_series),
    ]
    return [picture for picture in found if picture is not None]


Series = Mapping[str, Sequence[Row]]


def _length_series(row: Row) -> str | None:
    """What must be equal along a curve over n: kind of head, d, loss and family of design."""
    assert row.decision is not None
    design, width = row.decision["design"], row.decision["width"]
    kind = f"MTL-ECOC, d = {width}" if row.decision["head"] == "mtl" else f"{row.decision['head']} head"
    kind = "ECOC head" if row.decision["head"] == "linear" else kind
    return (kind if design in PAPER_DESIGNS else f"{design}, {kind}") + _loss(row)


def _width_series(row: Row) -> str | None:
    """What must be equal along a curve over d: design, n and loss of an MTL head; None for other heads."""
    assert row.decision is not None
    if row.decision["head"] != "mtl":
        return None
    return row.label.split(" MTL")[0] + f", n = {row.decision['bits']}" + _loss(row)


def _loss(row: Row) -> str:
    assert row.decision is not None
    return "" if row.decision["loss"] == "bitwise" else f", {row.decision['loss']} loss"


def _along(
    rows: Sequence[Row], name: str, title: str, unit: str, axis_key: str, series_of: Callable[[Row], str | None]
) -> Picture | None:
    """Metrics along a property of the head, everything else being equal; None without two points of a series."""
    series = {setting: _series(group, axis_key, series_of) for setting, group in by_setting(rows).items()}
    names = list(dict.fromkeys(one for found in series.values() for one in found))
    keys = {
        one: Key(one, PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)], "-")
        for number, one in enumerate(names)
    }
    panels = []
    for setting, found in series.items():
        for metric, metric_name in METRICS.items():
            measured = {one: line for one, line in found.items() if all(metric in row.values for row in line)}
            if measured:
                reference = next(
                    (r for r in rows if r.is_reference and r.setting == setting and metric in r.values), None
                )
                draw = partial(
                    _draw_series, series=measured, keys=keys, metric=metric, unit=unit, axis_key=axis_key,
                    reference=reference.values[metric].mean if reference else None,
                )  # fmt: skip
                told = ", ".join(measured)
                head = ", ".join(part for part in (setting_title(setting), TITLES[metric]) if part)
                panels.append(
                    Panel(head, f"{metric_name} against {unit} for {told}; the values are in the table", draw)
                )
    if not panels:
        return None
    softmax = Key("Softmax", INK, line=SOFTMAX_DASH)
    return Picture(name, title, f"All else equal along a line. {NOTE}", tuple(panels), (softmax, *keys.values()))


def _series(rows: Sequence[Row], axis_key: str, series_of: Callable[[Row], str | None]) -> dict[str, list[Row]]:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        name = series_of(row) if row.decision else None
        if name is not None:
            lines.setdefault(name, []).append(row)
    ordered = {name: sorted(line, key=lambda row: _at(row, axis_key)) for name, line in lines.items()}
    return {name: line for name, line in ordered.items() if len({_at(row, axis_key) for row in line}) > 1}


def _at(row: Row, axis_key: str) -> int:
    assert row.decision is not None
    return int(row.decision[axis_key])


def _draw_series(
    axis: Any,
    series: Series,
    keys: Mapping[str, Key],
    metric: str,
    unit: str,
    axis_key: str,
    reference: float | None,
) -> None:
    top = reference or 0.0
    for name, line in series.items():
        key = keys[name]
        values = [row.values[metric] for row in line]
        bars = [value.half_width or 0.0 for value in values]
        axis.errorbar(
            [_at(row, axis_key) for row in line], [value.mean for value in values], yerr=bars,
            color=key.colour, marker=key.marker, markersize=6.5, markeredgecolor=PAPER, linewidth=1.6, capsize=3,
            elinewidth=1.2,
        )  # fmt: skip
        top = max(top, *(value.mean + bar for value, bar in zip(values, bars, strict=True)))
    if reference is not None:
        axis.axhline(reference, color=INK, linestyle=SOFTMAX_DASH, linewidth=1)
    points = sorted({_at(row, axis_key) for line in series.values() for row in line})
    axis.set(xlabel=unit, ylabel=METRICS[metric], ylim=(0, 1.1 * top or 0.01))
    axis.set_xscale("log", base=2)
    axis.set_xticks(points, [str(point) for point in points])
    axis.minorticks_off()
    axis.margins(x=0.1)
    if metric == "top1":
        axis.yaxis.set_major_formatter(as_percent)
