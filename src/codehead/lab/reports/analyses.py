"""Pictures of what drives accuracy: codeword length, hidden width, single bits; and of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, log2
from typing import Any

import numpy as np

from codehead.lab.reports.drawing import INK, PALETTE, PAPER, SOFTMAX_DASH, Key, Panel, Picture
from codehead.lab.reports.pictures import METRICS, TITLES, as_percent, look, short
from codehead.lab.reports.summary import TIMED, Row, by_setting, setting_title

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PAPER_DESIGNS = ("minimal", "minrandom")  # MinRandom without random bits is Minimal, so they make one curve
TIME_TITLES = dict(zip(TIMED, ("Answering", "Speed of generation"), strict=True))
TIME_UNITS = dict(zip(TIMED, ("seconds for all answers", "tokens per second"), strict=True))


def analyses(rows: Sequence[Row]) -> list[Picture]:
    """Those of the pictures that the rows have something to show in."""
    found = [
        _along(rows, "length", "Codeword length", "codeword length n (bits)", "bits", _length_series),
        _along(rows, "width", "Hidden width", "hidden width d", "width", _width_series),
        _bits(rows),
        _times(rows),
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
    note = "All else equal along a line. Error bars are 95% t-intervals over seeds; the dashed line is Softmax."
    softmax = Key("Softmax", INK, line=SOFTMAX_DASH)
    return Picture(name, title, note, tuple(panels), (softmax, *keys.values()))


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


def _bits(rows: Sequence[Row]) -> Picture | None:
    """A heat map per setting: how often every bit of every head is right."""
    panels = []
    for setting, group in by_setting(rows).items():
        shown = [row for row in group if row.bit_accuracies]
        if not shown:
            continue
        minimal = minimal_bits(group)
        where = f" at {setting_title(setting)}" if setting else ""
        alt = f"Accuracy of every bit of {len(shown)} heads{where}, from 50% (chance) to 100%: " + "; ".join(
            f"{row.name} {100 * np.mean(row.bit_accuracies):.1f}% on average" for row in shown
        )
        panels.append(
            Panel(
                setting_title(setting), alt, partial(_draw_bits, rows=shown, minimal=minimal),
                (9.6, 1.5 + 0.36 * len(shown)),
            )
        )  # fmt: skip
    if not panels:
        return None
    note = "Share of test tokens with the right bit, mean over seeds."
    if any(row.bit_accuracies and _is_minrandom(row) for row in rows):
        note += (
            " Left of the mark in a row of MinRandom stand the minimal bits of the token's index (most significant "
            "first), right of it the random ones."
        )
    return Picture("bits", "Accuracy of single bits", note, tuple(panels), is_wide=True)


def _is_minrandom(row: Row) -> bool:
    return row.decision is not None and row.decision["design"] == "minrandom"


def minimal_bits(rows: Sequence[Row]) -> int | None:
    """⌈log2 V⌉ at one setting: n of a Minimal code, or told by the sizes of a Softmax and another head."""
    for row in rows:
        if row.decision and row.decision["design"] in ("minimal", "gray"):
            return int(row.decision["bits"])
    softmax = next((row.parameters for row in rows if row.decision is None), None)
    for row in rows:
        if softmax and row.decision and row.decision["head"] in ("linear", "mtl"):
            bits, width = row.decision["bits"], row.decision["width"]
            hidden = row.parameters / (bits * width) - 1 if width else row.parameters / bits  # n·(H·d + d), n·H
            return ceil(log2(softmax / hidden))
    return None


def _draw_bits(axis: Any, rows: Sequence[Row], minimal: int | None) -> None:
    longest = max(len(row.bit_accuracies) for row in rows)
    accuracies = np.full((len(rows), longest), np.nan)
    for number, row in enumerate(rows):
        accuracies[number, : len(row.bit_accuracies)] = row.bit_accuracies
    mesh = axis.pcolormesh(
        np.ma.masked_invalid(accuracies), cmap="viridis", vmin=0.5, vmax=1.0, edgecolors=PAPER, linewidth=0.4
    )
    axis.set_yticks([number + 0.5 for number in range(len(rows))], [row.name for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="bit of the codeword, from 1", xlim=(0, longest))
    ticks = sorted({1, *range(10, longest + 1, 10), *([minimal] if minimal else [])})
    ticks = [tick for tick in ticks if tick == minimal or minimal is None or abs(tick - minimal) > longest / 40]
    axis.set_xticks([tick - 0.5 for tick in ticks], [str(tick) for tick in ticks])
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    _mark_random_bits(axis, rows, minimal)
    bar = axis.figure.colorbar(mesh, ax=axis, format=as_percent, fraction=0.025, pad=0.015)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")


def _mark_random_bits(axis: Any, rows: Sequence[Row], minimal: int | None) -> None:
    """A stroke in every MinRandom row where its random bits begin."""
    for number, row in enumerate(rows):
        if minimal and _is_minrandom(row) and len(row.bit_accuracies) > minimal:
            axis.plot([minimal, minimal], [number + 0.04, number + 0.96], color="#D55E00", linewidth=2.4)


def _times(rows: Sequence[Row]) -> Picture | None:
    """Bars of the medians, whiskers from the fastest to the slowest repeat."""
    panels = []
    for setting, group in by_setting(rows).items():
        for name, unit in TIME_UNITS.items():
            timed = [row for row in group if name in row.times]
            if timed:
                alt = f"{unit}: " + "; ".join(f"{row.name} {row.times[name].median:.3g}" for row in timed)
                title = ", ".join(part for part in (setting_title(setting), TIME_TITLES[name]) if part)
                height = 1.1 + 0.34 * len(timed)
                panels.append(Panel(title, alt, partial(_draw_times, rows=timed, name=name, unit=unit), (4.8, height)))
    if not panels:
        return None
    note = "Medians of interleaved repeats of one seed on one machine; whiskers reach from the lowest to the highest."
    return Picture("times", "Time", note, tuple(panels))


def _draw_times(axis: Any, rows: Sequence[Row], name: str, unit: str) -> None:
    times = [row.times[name] for row in rows]
    medians = np.array([time.median for time in times])
    low, high = (np.array([limit(time.repeats) for time in times]) for limit in (min, max))
    places = np.arange(len(rows))
    axis.barh(places, medians, height=0.62, color=[look(row.family)[1] for row in rows])
    axis.errorbar(medians, places, xerr=(medians - low, high - medians), fmt="none", ecolor="#888888", capsize=3)
    axis.set_yticks(places, [short(row) for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel=unit, xlim=(0, 1.05 * high.max() or 1.0))
    axis.grid(visible=False, axis="y")
