"""What is left of Softmax for how many of its bytes: codes beside everything else that makes a head smaller."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from codehead.lab.reports.drawing import INK, LABEL, SOFTMAX_DASH, Key, Panel, Picture, place_labels
from codehead.lab.reports.families import NOTE, as_percent, draw_family, families_of, look
from codehead.lab.reports.summary import Row, by_setting, setting_title

FRONTIER_METRICS = {
    "share": ("Top-1 accuracy", "top-1 accuracy, share of Softmax"),
    "perplexity_ratio": ("Perplexity", "perplexity, times Softmax’s"),
}
LIMITS = {"share": (0.75, 1.25), "perplexity_ratio": (0.5, 2.5)}
"""What lies beyond is off the picture, so that the rest can be told apart; the note below and the table have it."""
UNIT = "bytes of the head, share of Softmax in bf16"


def frontier(rows: Sequence[Row]) -> list[Picture]:
    """One picture per setting, a panel per metric; none if the rows are not weighed in bytes, or all weigh the same."""
    found = []
    for setting, group in by_setting([row for row in rows if row.byte_share is not None]).items():
        if _budgets(group) < 2:
            continue
        shown = {metric: _shown(group, metric) for metric in FRONTIER_METRICS}
        panels = [_panel(metric, some) for metric, some in shown.items() if len(some) > 1]
        drawn = [row for some in shown.values() for row in some]
        title = ", ".join(part for part in ("Accuracy per byte", setting_title(setting)) if part)
        keys = (Key("Softmax", INK, line=SOFTMAX_DASH), *(_frontier_key(family) for family in families_of(drawn)))
        name = f"frontier-{setting}" if setting else "frontier"
        found.append(Picture(name, title, NOTE + _left_out(group), tuple(panels), keys))
    return [picture for picture in found if picture.panels]


def _budgets(rows: Sequence[Row]) -> int:
    """How many different shares of the reference's bytes there are, in steps of a thousandth."""
    return len({round(row.byte_share or 0.0, 3) for row in rows if not row.is_reference})


def _frontier_key(family: str) -> Key:
    name, colour, marker = look(family)
    return Key(name if family == "peer" else f"code: {name}", colour, marker, "" if family == "peer" else "-")


def _shown(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows that a panel has room for, the reference left to its line."""
    measured = [row for row in rows if metric in row.values and not row.is_reference]
    return [row for row in measured if not _is_beyond(row, metric)]


def _left_out(rows: Sequence[Row]) -> str:
    """What a note tells of the rows that a panel has no room for."""
    beyond = [
        f"{row.name} ({', '.join(_told(row, metric) for metric in FRONTIER_METRICS if _is_beyond(row, metric))})"
        for row in rows
        if any(_is_beyond(row, metric) for metric in FRONTIER_METRICS)
    ]
    return f" Beyond the scale: {'; '.join(beyond)}." if beyond else ""


def _is_beyond(row: Row, metric: str) -> bool:
    low, high = LIMITS[metric]
    return metric in row.values and not row.is_reference and not low <= row.values[metric].mean <= high


def _told(row: Row, metric: str) -> str:
    mean = row.values[metric].mean
    return f"{mean:.3g}×" if metric == "perplexity_ratio" else f"{mean:.1%}"


def _panel(metric: str, rows: Sequence[Row]) -> Panel:
    title, unit = FRONTIER_METRICS[metric]
    alt = f"{unit} of {len(rows)} heads against {UNIT}; the values are in the table"
    return Panel(title, alt, partial(_draw, rows=rows, metric=metric), (7.0, 5.0))


def _draw(axis: Any, rows: Sequence[Row], metric: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    lines = []
    for family in families_of(rows):
        chosen = sorted((row for row in rows if row.family == family), key=lambda row: row.byte_share or 0.0)
        shares = [row.byte_share or 0.0 for row in chosen]
        draw_family(axis, family, shares, [row.values[metric] for row in chosen])
        if family != "peer":
            lines.append(_best_of_each_budget(chosen, metric))
            axis.plot(*zip(*lines[-1], strict=True), color=look(family)[1], linewidth=1.4, zorder=1)
    axis.axhline(1.0, color=INK, linestyle=SOFTMAX_DASH, linewidth=1)
    axis.set(xscale="log", xlabel=UNIT, ylabel=FRONTIER_METRICS[metric][1])
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(as_percent)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.15, y=0.12)
    if metric == "perplexity_ratio":
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    else:
        axis.yaxis.set_major_formatter(as_percent)
    points = [(row.byte_share or 0.0, row.values[metric].mean, row.name, LABEL) for row in rows]
    bars = [row.values[metric].half_width or 0.0 for row in rows]
    place_labels(axis, points, bars, avoid_y=[1.0], lines=lines)


def _best_of_each_budget(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """Share of bytes and value of the best row of every budget, in steps of a thousandth, by rising share."""
    better = min if metric == "perplexity_ratio" else max
    found: dict[float, tuple[float, float]] = {}
    for row in rows:
        share, value = row.byte_share or 0.0, row.values[metric].mean
        known = found.setdefault(round(share, 3), (share, value))
        found[round(share, 3)] = better(known, (share, value), key=lambda point: point[1])
    return sorted(found.values())
