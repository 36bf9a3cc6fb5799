"""Pictures of a protocol: accuracy against head parameters, and training curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codehead.evaluation.result import Result
from codehead.reports.labels import place_labels
from codehead.reports.summary import Row, family_of, label_of, setting_size, setting_title

# Okabe and Ito's colours, told apart with every kind of colour vision (https://jfly.uni-koeln.de/color/).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
FAMILIES = {
    "softmax": ("Softmax", "#222222", "D"),
    "linear": ("ECOC head (n, 0)", "#0072B2", "o"),
    "mtl": ("MTL-ECOC head (n, d)", "#D55E00", "s"),
    "codeword": ("codeword loss", "#009E73", "^"),
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw_tradeoff(rows: Sequence[Row], path: Path) -> Path:
    """Top-1 accuracy against head parameters, one panel per setting, error bars over seeds."""
    plt = _pyplot()
    settings = sorted({row.setting for row in rows}, key=setting_size)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(settings),
            figsize=(max(7.2, 5.2 * len(settings)), 4.6),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, setting in zip(axes[0], settings, strict=True):
            _draw_panel(axis, [row for row in rows if row.setting == setting])
            axis.set_title(setting_title(setting) or "Accuracy against head parameters")
            axis.set_xlabel("parameters of the head")
        axes[0][0].set_ylabel("top-1 next-token accuracy")
        handles = [_legend_entry(plt, family) for family in _families(rows)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        best = max(row.values["top1"].mean for row in rows)
        axes[0][0].set_ylim(bottom=0, top=1.12 * best or 0.01)
        for axis, setting in zip(axes[0], settings, strict=True):
            _label_panel(axis, [row for row in rows if row.setting == setting])
        return _save(figure, path)


def draw_curves(results: Iterable[Result], path: Path) -> Path:
    """Training loss against steps: mean per node for bitwise losses, per token for losses over tokens."""
    plt = _pyplot()
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.metrics["size"]["head_parameters"]):
        groups.setdefault(label_of(result), []).append(result)
    panels = [
        (
            "Mean training loss per node",
            "nats per node and token",
            [g for g in groups.items() if _is_bitwise(g[1][0])],
        ),
        (
            "Training loss over tokens",
            "nats per token",
            [g for g in groups.items() if not _is_bitwise(g[1][0])],
        ),
    ]
    panels = [panel for panel in panels if panel[2]]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(max(7.2, 5.0 * len(panels)), 4.2), squeeze=False, layout="constrained"
        )
        for axis, (title, unit, lines) in zip(axes[0], panels, strict=True):
            for (label, group), colour in zip(lines, PALETTE * len(lines), strict=False):
                _draw_curve(axis, label, group, "#222222" if label == "Softmax" else colour)
            axis.set(title=title, ylabel=unit, xlabel="optimizer steps")
            axis.legend(fontsize=9)
        return _save(figure, path)


def _families(rows: Sequence[Row]) -> list[str]:
    """The families of the rows, known ones first in their order; heads registered elsewhere follow."""
    present = {row.family for row in rows}
    return [family for family in FAMILIES if family in present] + sorted(present - set(FAMILIES))


def _look(family: str) -> tuple[str, str, str]:
    """Name, colour and marker of a family."""
    return FAMILIES.get(family, (f"{family} head", "#7F7F7F", "v"))


def _legend_entry(plt: Any, family: str) -> Any:
    name, colour, marker = _look(family)
    line = (0, (4, 3)) if family == "softmax" else "none"
    return plt.Line2D(
        [], [], color=colour, marker=marker, linestyle=line, markersize=7, markeredgecolor="white", label=name
    )


def _draw_panel(axis: Any, rows: Sequence[Row]) -> None:
    for family in _families(rows):
        _, colour, marker = _look(family)
        chosen = [row for row in rows if row.family == family]
        means = [row.values["top1"].mean for row in chosen]
        bars = [row.values["top1"].half_width or 0.0 for row in chosen]
        axis.errorbar(
            [row.parameters for row in chosen], means, yerr=bars,
            fmt=marker, color=colour,
            markersize=7, markeredgecolor="white", capsize=3, elinewidth=1.2,
        )  # fmt: skip
    for row in rows:
        if row.is_reference:
            axis.axhline(row.values["top1"].mean, color="#222222", linestyle=(0, (4, 3)), linewidth=1)
    axis.set_xscale("log")
    axis.margins(x=0.18)
    axis.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%")


def _label_panel(axis: Any, rows: Sequence[Row]) -> None:
    points = [
        (row.parameters, row.values["top1"].mean, _short(row), _look(row.family)[1])
        for row in rows
        if not row.is_reference
    ]
    place_labels(axis, points, avoid_y=[row.values["top1"].mean for row in rows if row.is_reference])


def _draw_curve(axis: Any, label: str, group: Sequence[Result], colour: str) -> None:
    """The mean over seeds, and the range between them as a band."""
    curves = [{entry["step"]: entry["loss"] for entry in result.metrics["history"]} for result in group]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    losses = np.array([[curve[step] for step in steps] for curve in curves])  # (seeds, logged steps)
    axis.plot(steps, losses.mean(0), color=colour, linewidth=1.6, label=label)
    if len(losses) > 1:
        axis.fill_between(steps, losses.min(0), losses.max(0), color=colour, alpha=0.18, linewidth=0)


def _is_bitwise(result: Result) -> bool:
    return family_of(result) not in ("softmax", "codeword")


def _short(row: Row) -> str:
    """`Minimal (13, 0)`: the kind of head is told by the colour."""
    return row.label.replace(" MTL-ECOC", "").replace(" ECOC", "").split(" + ")[0]


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    _pyplot().close(figure)
    return path
