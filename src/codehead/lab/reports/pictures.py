"""Pictures of a protocol: accuracy per byte and parameter, along codeword length and hidden width; training curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from codehead.lab.baselines import FILE_KEY
from codehead.lab.reports.drawing import (
    DASHES,
    FAMILIES,
    INK,
    LABEL,
    PALETTE,
    PAPER,
    SOFTMAX_DASH,
    Key,
    Panel,
    Picture,
    as_count,
    as_percent,
    look,
    name_ticks,
    place_labels,
)
from codehead.lab.reports.summary import (
    OVER_TOKENS,
    Estimate,
    Row,
    by_setting,
    family_of,
    grouped,
    label_of,
    setting_size,
    setting_title,
)
from codehead.lab.result import Result

METRICS = {
    "top1": ("Top-1 accuracy", "top-1 next-token accuracy"),
    "f1": ("BERTScore F1", "BERTScore F1"),
}
"""Metric → title of a panel, name of an axis."""
PARAMETERS = "parameters of the head"
NOTE = "Error bars are 95% t-intervals over seeds; the dashed line is Softmax."


def pictures(rows: Sequence[Row], results: Sequence[Result]) -> list[Picture]:
    """Those that have something to show."""
    sized = [row for row in rows if row.parameters]
    tradeoffs = [tradeoff(sized, metric) for metric in METRICS if any(metric in row.values for row in sized)]
    found = [*frontier(rows), *tradeoffs, *all_curves(results), *analyses(rows)]
    return [picture for picture in found if picture.panels]


# Shared by pictures: the points of a family of heads, the line of Softmax.


def families_of(rows: Sequence[Row]) -> list[str]:
    """The families of the rows, known ones first in their order; heads registered elsewhere follow."""
    present = {row.family for row in rows}
    return [family for family in FAMILIES if family in present] + sorted(present - set(FAMILIES))


def _scatter(axis: Any, rows: Sequence[Row], metric: str, size: Callable[[Row], float]) -> None:
    """The points of every family, with their intervals."""
    for family in families_of(rows):
        _, colour, marker = look(family)
        chosen = [row for row in rows if row.family == family]
        axis.errorbar(
            [size(row) for row in chosen], [row.values[metric].mean for row in chosen], yerr=_bars(chosen, metric),
            fmt=marker, color=colour, markersize=7, markeredgecolor=PAPER, capsize=3, elinewidth=1.2,
            zorder=2 if family == "peer" else 3,  # codes over baselines where both are
        )  # fmt: skip


def _bars(rows: Sequence[Row], metric: str) -> list[float]:
    return [row.values[metric].half_width or 0.0 for row in rows]


def _softmax_line(axis: Any, height: float) -> None:
    axis.axhline(height, color=INK, linestyle=SOFTMAX_DASH, linewidth=1)


def _told(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


# Accuracy kept against bytes: codes beside all other ways to make a head smaller.


LEFT = {
    "share": ("Top-1 accuracy", "top-1 accuracy, share of Softmax", (0.75, 1.25)),
    "perplexity_ratio": ("Perplexity", "perplexity, times Softmax’s", (0.5, 2.5)),
}
"""Metric → title, name of its axis, limits: values beyond them are cut off, so that the rest can be told apart; the
note below and the table have them."""
BYTES = "bytes of the head, share of Softmax in bf16"


def frontier(rows: Sequence[Row]) -> list[Picture]:
    """One picture per setting, a panel per metric; none if the rows have no bytes, or all have the same."""
    found = []
    weighed = [row for row in rows if row.byte_share is not None and not row.is_reference]
    for setting, group in by_setting(weighed).items():
        if len({_budget(row) for row in group}) < 2:
            continue
        shown = {metric: [row for row in group if _is_beyond(row, metric) is False] for metric in LEFT}
        panels = tuple(_frontier_panel(metric, some) for metric, some in shown.items() if len(some) > 1)
        drawn = [row for some in shown.values() for row in some]
        keys = (Key("Softmax", INK, line=SOFTMAX_DASH), *(_frontier_key(family) for family in families_of(drawn)))
        name = f"frontier-{setting}" if setting else "frontier"
        title = _told("Accuracy per byte", setting_title(setting))
        found += [Picture(name, title, NOTE + _left_out(group), panels, keys)] if panels else []
    return found


def _budget(row: Row) -> float:
    """The share of Softmax's bytes, to a thousandth."""
    return round(_share(row), 3)


def _share(row: Row) -> float:
    return row.byte_share or 0.0


def _is_beyond(row: Row, metric: str) -> bool | None:
    """Whether a panel has no room for the row; None if it has no such value."""
    low, high = LEFT[metric][2]
    return not low <= row.values[metric].mean <= high if metric in row.values else None


def _left_out(rows: Sequence[Row]) -> str:
    """The note on rows that a panel has no room for."""
    texts = {"share": "{:.1%}", "perplexity_ratio": "{:.3g}×"}
    beyond = []
    for row in rows:
        values = [text.format(row.values[metric].mean) for metric, text in texts.items() if _is_beyond(row, metric)]
        beyond += [f"{row.name} ({', '.join(values)})"] if values else []
    return f" Beyond the scale: {'; '.join(beyond)}." if beyond else ""


def _frontier_key(family: str) -> Key:
    name, colour, marker = look(family)
    return Key(name if family == "peer" else f"code: {name}", colour, marker, "" if family == "peer" else "-")


def _frontier_panel(metric: str, rows: Sequence[Row]) -> Panel:
    title, unit, _ = LEFT[metric]
    alt = f"{unit} of {len(rows)} heads against {BYTES}; the values are in the table"
    return Panel(title, alt, partial(_draw_frontier, rows=rows, metric=metric), (7.0, 5.0))


def _draw_frontier(axis: Any, rows: Sequence[Row], metric: str) -> None:
    _scatter(axis, rows, metric, _share)
    lines = {
        family: _best_of_each_budget([row for row in rows if row.family == family], metric)
        for family in families_of(rows)
        if family != "peer"
    }
    for family, line in lines.items():
        axis.plot(*zip(*line, strict=True), color=look(family)[1], linewidth=1.4, zorder=1)
    _softmax_line(axis, 1.0)
    axis.set(xscale="log", xlabel=BYTES, ylabel=LEFT[metric][1])
    name_ticks(axis, (2.0, 5.0), as_percent)
    axis.margins(x=0.15, y=0.12)
    axis.yaxis.set_major_formatter(as_percent if metric == "share" else lambda value, _: f"{value:g}×")
    points = [(_share(row), row.values[metric].mean, row.name, LABEL) for row in rows]
    place_labels(axis, points, _bars(rows, metric), avoid_y=[1.0], lines=list(lines.values()))


def _best_of_each_budget(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """Share of bytes and value of the best row of every budget, by rising share."""
    better = min if metric == "perplexity_ratio" else max
    best = [better(some, key=lambda row: row.values[metric].mean) for some in grouped(rows, _budget).values()]
    return sorted((_share(row), row.values[metric].mean) for row in best)


# A metric against the parameters of the head.


def tradeoff(rows: Sequence[Row], metric: str = "top1") -> Picture:
    """A metric against the parameters of the head on a log axis; rows that lack one of them are left out."""
    shown = [row for row in rows if metric in row.values and row.parameters]
    top = 1.12 * max(row.values[metric].mean + (row.values[metric].half_width or 0.0) for row in shown) or 0.01
    title, unit = METRICS[metric]
    panels = [
        Panel(
            setting_title(setting),
            f"{unit} of {len(group)} heads against {_told(PARAMETERS, setting_title(setting))}, with a line at "
            "Softmax; the values are in the table",
            partial(_draw_tradeoff, rows=group, metric=metric, top=top),
        )
        for setting, group in by_setting(shown).items()
    ]
    name = "tradeoff" if metric == "top1" else f"tradeoff-{metric}"
    keys = tuple(Key(*look(family), SOFTMAX_DASH if family == "softmax" else "") for family in families_of(shown))
    return Picture(name, f"{title} against head parameters", NOTE, tuple(panels), keys)


def _draw_tradeoff(axis: Any, rows: Sequence[Row], metric: str, top: float) -> None:
    _scatter(axis, rows, metric, lambda row: row.parameters)
    references = [row.values[metric].mean for row in rows if row.is_reference]
    for mean in references:
        _softmax_line(axis, mean)
    axis.set(xscale="log", xlabel=PARAMETERS, ylabel=METRICS[metric][1], ylim=(0, top))
    axis.margins(x=0.2)
    low, high = axis.get_xlim()
    name_ticks(axis, () if high > 500 * low else (3.0,), as_count)
    if metric == "top1":
        axis.yaxis.set_major_formatter(as_percent)
    points = [(row.parameters, row.values[metric].mean, "" if row.is_reference else _short(row), LABEL) for row in rows]
    place_labels(axis, points, _bars(rows, metric), avoid_y=references)


def _short(row: Row) -> str:
    """`Minimal (13, 0)`: the colour shows the kind of head."""
    return row.name.replace(" MTL-ECOC", "").replace(" ECOC", "")


# The training loss of every head.


def all_curves(results: Iterable[Result]) -> list[Picture]:
    """The curves of every setting."""
    groups = grouped(results, lambda result: str(result.config["setting"]))
    return [_curves(setting, groups[setting]) for setting in sorted(groups, key=setting_size)]


def _curves(setting: str, results: Sequence[Result]) -> Picture:
    trained = [result for result in sorted(results, key=_by_size) if result.metrics.get(FILE_KEY) is None]
    groups = grouped(trained, label_of)
    bitwise = {label for label, group in groups.items() if family_of(group[0]) not in OVER_TOKENS}
    keys = _curve_keys(groups)
    kinds = {
        "Mean training loss per node": ("nats per node and token", True),
        "Training loss over tokens": ("nats per token", False),
    }
    panels = []
    for title, (unit, is_bitwise) in kinds.items():
        lines = [(keys[label], group) for label, group in groups.items() if (label in bitwise) is is_bitwise]
        if lines:
            alt = _told(f"{title} of {len(lines)} heads during training", setting_title(setting))
            panels.append(Panel(title, alt, partial(_draw_curves, lines=lines, unit=unit)))
    note = "Lines are means over seeds, bands reach from the lowest to the highest seed."
    name, title = f"curves-{setting}" if setting else "curves", _told("Training loss", setting_title(setting))
    return Picture(name, title, note, tuple(panels), tuple(keys.values()))


def _by_size(result: Result) -> tuple[bool, int]:
    return result.metrics["decision"] is not None, result.metrics["size"]["head_parameters"]


def _curve_keys(labels: Iterable[str]) -> dict[str, Key]:
    """One colour and dash per label, Softmax in ink."""
    coloured = [label for label in labels if label != "Softmax"]
    keys = {"Softmax": Key("Softmax", INK, line="-")} if "Softmax" in labels else {}
    for number, label in enumerate(coloured):
        turn, place = divmod(number, len(PALETTE))
        keys[label] = Key(label, PALETTE[place], line=DASHES[turn % len(DASHES)])
    return keys


def _draw_curves(axis: Any, lines: Sequence[tuple[Key, Sequence[Result]]], unit: str) -> None:
    """Means over seeds, and the range between them as bands, at the steps that all seeds logged."""
    for key, group in lines:
        runs = [{entry["step"]: entry["loss"] for entry in result.metrics["history"]} for result in group]
        steps = sorted(set.intersection(*map(set, runs)))
        losses = np.array([[run[step] for step in steps] for run in runs])  # (seeds, logged steps)
        axis.plot(steps, losses.mean(0), color=key.colour, linestyle=key.line, linewidth=1.6)
        if len(losses) > 1:
            axis.fill_between(steps, losses.min(0), losses.max(0), color=key.colour, alpha=0.18, linewidth=0)
    axis.set(ylabel=unit, xlabel="optimizer steps")


# What drives accuracy: codeword length and hidden width, all else equal.


MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PAPER_DESIGNS = ("minimal", "minrandom")  # MinRandom without random bits is Minimal, so they make one curve
Line = list[tuple[int, Estimate]]
"""Bits or width, and the metric there."""


def analyses(rows: Sequence[Row]) -> list[Picture]:
    """The pictures for which the rows have data."""
    found = [
        _along(rows, "length", "Codeword length", "codeword length n (bits)", "bits", _length_series),
        _along(rows, "width", "Hidden width", "hidden width d", "width", _width_series),
    ]
    return [picture for picture in found if picture is not None]


def _length_series(label: str, decision: Mapping[str, Any]) -> str | None:
    """What must be equal along a curve over n: kind of head, d, loss and family of design."""
    kind = f"MTL-ECOC, d = {decision['width']}" if decision["head"] == "mtl" else f"{decision['head']} head"
    kind = "ECOC head" if decision["head"] == "linear" else kind
    return kind if decision["design"] in PAPER_DESIGNS else f"{decision['design']}, {kind}"


def _width_series(label: str, decision: Mapping[str, Any]) -> str | None:
    """What must be equal along a curve over d: design, n and loss of an MTL head; None for other heads."""
    return f"{label.split(' MTL')[0]}, n = {decision['bits']}" if decision["head"] == "mtl" else None


def _along(
    rows: Sequence[Row],
    name: str,
    title: str,
    unit: str,
    axis_key: str,
    series_of: Callable[[str, Mapping[str, Any]], str | None],
) -> Picture | None:
    """Metrics along a property of the head, all else equal; None without two points in a series."""
    keys: dict[str, Key] = {}
    panels = []
    for setting, group in by_setting(rows).items():
        series = _series(group, axis_key, series_of)
        for one in series:
            look_of = PALETTE[len(keys) % len(PALETTE)], MARKERS[len(keys) % len(MARKERS)]
            keys.setdefault(one, Key(one, *look_of, "-"))
        for metric, (metric_title, metric_name) in METRICS.items():
            measured = {one: line for one, line in series.items() if all(metric in row.values for _, row in line)}
            if not measured:
                continue
            lines = [(keys[one], [(at, row.values[metric]) for at, row in line]) for one, line in measured.items()]
            references = [row.values[metric].mean for row in group if row.is_reference and metric in row.values]
            draw = partial(_draw_series, lines=lines, metric=metric, unit=unit, references=references)
            alt = f"{metric_name} against {unit} for {', '.join(measured)}; the values are in the table"
            panels.append(Panel(_told(setting_title(setting), metric_title), alt, draw))
    softmax = Key("Softmax", INK, line=SOFTMAX_DASH)
    note = f"All else equal along a line. {NOTE}"
    return Picture(name, title, note, tuple(panels), (softmax, *keys.values())) if panels else None


def _series(
    rows: Sequence[Row], axis_key: str, series_of: Callable[[str, Mapping[str, Any]], str | None]
) -> dict[str, list[tuple[int, Row]]]:
    """The lines with at least two places, each in order."""
    lines: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        name = series_of(row.label, row.decision) if row.decision else None
        if name and row.decision:
            loss = row.decision["loss"]
            name += "" if loss == "bitwise" else f", {loss} loss"
            lines.setdefault(name, []).append((int(row.decision[axis_key]), row))
    ordered = {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}
    return {name: line for name, line in ordered.items() if len({at for at, _ in line}) > 1}


def _draw_series(
    axis: Any, lines: Sequence[tuple[Key, Line]], metric: str, unit: str, references: Sequence[float]
) -> None:
    for key, line in lines:
        axis.errorbar(
            [at for at, _ in line], [value.mean for _, value in line],
            yerr=[value.half_width or 0.0 for _, value in line], color=key.colour, marker=key.marker, markersize=6.5,
            markeredgecolor=PAPER, linewidth=1.6, capsize=3, elinewidth=1.2,
        )  # fmt: skip
    for mean in references:
        _softmax_line(axis, mean)
    tops = [value.mean + (value.half_width or 0.0) for _, line in lines for _, value in line]
    places = sorted({at for _, line in lines for at, _ in line})
    axis.set(xlabel=unit, ylabel=METRICS[metric][1], ylim=(0, 1.1 * max(*references, *tops) or 0.01))
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [str(place) for place in places])
    axis.minorticks_off()
    axis.margins(x=0.1)
    if metric == "top1":
        axis.yaxis.set_major_formatter(as_percent)
