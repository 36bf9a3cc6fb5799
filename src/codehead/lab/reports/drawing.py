"""What all pictures share: colours, style, and the way from panels to a PNG or to SVGs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart with every kind of colour vision (https://jfly.uni-koeln.de/color/).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))  # one style per turn through the palette
INK, LABEL, TICK, EDGE, GRID, PAPER = "#222222", "#333333", "#555555", "#888888", "#E6E6E6", "#FFFFFF"
SOFTMAX_DASH = (0, (4, 3))
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": LABEL,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": EDGE,
    "ytick.color": EDGE,
    "xtick.labelcolor": TICK,
    "ytick.labelcolor": TICK,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}
DPI = 160  # of PNGs
ACROSS = 3  # panels in a row of a PNG


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    colour: str
    marker: str = ""  # matplotlib's
    line: Any = ""  # matplotlib's; empty for none


@dataclass(frozen=True)
class Panel:
    """One pair of axes: `draw` fills them; `alt` says in words what is to be seen."""

    title: str
    alt: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (4.8, 3.6)  # inches


@dataclass(frozen=True)
class Picture:
    """Panels of one kind under one legend."""

    name: str  # of the PNG file, without its ending
    title: str
    note: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...] = ()
    is_wide: bool = False  # a panel needs the whole width of a page


def pyplot() -> Any:
    """matplotlib.pyplot without a window."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_panel(axis: Any, panel: Panel, *, titled: bool) -> None:
    """Fill the axes, which must be those of a figure in STYLE."""
    if titled and panel.title:
        axis.set_title(panel.title)
    panel.draw(axis)


def save_png(picture: Picture, path: Path) -> Path:
    """All panels and the legend as one PNG."""
    plt = pyplot()
    across = min(len(picture.panels), 1 if picture.is_wide else ACROSS)
    down = -(-len(picture.panels) // across)
    width, height = picture.panels[0].size
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(max(7.2, width * across), (height + 0.5) * down),
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(picture.panels) :]:
            axis.set_axis_off()
        if picture.keys:
            columns = _columns(picture.keys, max(7.2, width * across))
            figure.legend(
                handles=[_handle(plt, key) for key in picture.keys], loc="outside lower center", ncols=columns
            )
        for axis, panel in zip(axes.flat, picture.panels, strict=False):
            draw_panel(axis, panel, titled=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        plt.close(figure)
    return path


def _handle(plt: Any, key: Key) -> Any:
    line = key.line or "none"
    return plt.Line2D(
        [], [], color=key.colour, marker=key.marker, linestyle=line, markersize=7, markeredgecolor=PAPER, label=key.name
    )


def _columns(keys: Sequence[Key], width: float) -> int:
    """How many entries fit beside each other in `width` inches."""
    entry = 0.65 + 0.085 * max(len(key.name) for key in keys)
    return max(1, min(len(keys), int(width / entry)))
