"""Shared by all pictures: colours, style, panels to PNG, and labels that do not collide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import pairwise
from math import hypot
from typing import Any

import numpy as np

# Okabe and Ito's colours, distinguishable with every kind of colour vision (https://jfly.uni-koeln.de/color/).
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
    """One pair of axes: `draw` fills them; `alt` describes the content in words."""

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
    keys: tuple[Key, ...]

    @property
    def alt(self) -> str:
        """A description of all panels."""
        return "; ".join(panel.alt for panel in self.panels)


def pyplot() -> Any:
    """matplotlib.pyplot without a window."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def png(picture: Picture) -> bytes:
    """All panels and the legend as one PNG; the same picture gives the same bytes."""
    plt = pyplot()
    across = min(len(picture.panels), ACROSS)
    down = -(-len(picture.panels) // across)
    width, height = picture.panels[0].size
    whole = max(7.2, width * across)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(whole, (height + 0.5) * down),
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(picture.panels) :]:
            axis.set_axis_off()
        handles = [_handle(plt, key) for key in picture.keys]
        figure.legend(handles=handles, loc="outside lower center", ncols=_columns(picture.keys, whole))
        for axis, panel in zip(axes.flat, picture.panels, strict=False):
            axis.set_title(panel.title)
            panel.draw(axis)
        written = BytesIO()
        figure.savefig(written, dpi=DPI, metadata={"Software": None})
        plt.close(figure)
    return written.getvalue()


def _handle(plt: Any, key: Key) -> Any:
    line = key.line or "none"
    return plt.Line2D(
        [], [], color=key.colour, marker=key.marker, linestyle=line, markersize=7, markeredgecolor=PAPER, label=key.name
    )


def _columns(keys: Sequence[Key], width: float) -> int:
    """How many entries fit side by side in `width` inches."""
    entry = 0.65 + 0.085 * max(len(key.name) for key in keys)
    return max(1, min(len(keys), int(width / entry)))


# The look of each family of heads in every picture, and tick labels.


FAMILIES = {
    "softmax": ("Softmax", INK, "D"),
    "linear": ("ECOC head (n, 0)", "#0072B2", "o"),
    "mtl": ("MTL-ECOC head (n, d)", "#D55E00", "s"),
    "codeword": ("codeword loss", "#009E73", "^"),
    "refined": ("extra bits for frequent tokens", "#B8A100", "h"),
    "converted": ("learnt from Softmax, backbone frozen", "#CC79A7", "P"),
    "labelled": ("learnt from Softmax and the text, backbone frozen", "#E69F00", "X"),
    "joint": ("the backbone learnt from Softmax too", "#56B4E9", "p"),
    "trained": ("trained on with the backbone", "#882255", "d"),
    "peer": ("no code: low rank, quantised, trimmed", "#7F7F7F", "v"),
}


def look(family: str) -> tuple[str, str, str]:
    """Name, colour and marker of a family."""
    return FAMILIES.get(family, (f"{family} head", "#7F7F7F", "v"))


def name_ticks(axis: Any, between: Sequence[float], name: Callable[[float, Any], str]) -> None:
    """Ticks of a logarithmic axis at the powers of ten, times 1 and whatever is `between`."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, *between)))
    axis.xaxis.set_major_formatter(name)
    axis.xaxis.set_minor_formatter(NullFormatter())


def as_percent(value: float, _: Any = None) -> str:
    """`12.5%` for 0.125."""
    return f"{round(100 * value, 1):g}%"


def as_count(value: float, _: Any = None) -> str:
    """`300`, `20k`, `1M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


# Places short labels beside the points of a picture so that they do not cover each other.


SIZE = 8.5  # points
HEIGHT = 1.15 * SIZE  # of a line of text
ROOM = 4.0  # points between labels
GAP = 9.0  # points from a marker's centre to its label
MARKER = 5.0  # half the width of a marker, in points
FAR = 20.0  # a label this far away needs a line to its point
LEADER = "#888888"
CAP = 3.0  # half the width of an error bar's cap, in points
FREE = 0.1  # square points that a label may cover to be one point nearer
BEYOND = 1e4  # points beyond the frame
SIDES = (("left", 1.0), ("right", -1.0))
STEP = 4.0  # points between the marks that keep labels off a line
REACH = range(0, 145, 12)  # points above or below
ASIDE = (GAP, 45.0, 80.0)  # points to a side
PLACES = [
    *(("center", 0.0, sign * dy) for dy in REACH[1:] for sign in (1.0, -1.0)),
    *((align, side * dx, sign * dy) for dx in ASIDE for dy in REACH for sign in (1.0, -1.0) for align, side in SIDES),
]
"""Alignment and offset in points."""

Place = tuple[str, float, float]
Boxes = list[tuple[float, float, float, float]]
"""Left, bottom, right, top, in points."""


def place_labels(
    axis: Any,
    points: Sequence[tuple[float, float, str, str]],
    bars: Sequence[float] = (),
    avoid_y: Sequence[float] = (),
    lines: Sequence[Sequence[tuple[float, float]]] = (),
) -> None:
    """Write a label at every point (x, y, text, colour), inside the frame and clear of the others.

    `bars` are the half lengths of the points' error bars; labels also keep off the level lines at `avoid_y` and the
    `lines` through some points. The axis must have its final limits and scale.
    """
    axis.figure.canvas.draw()
    to_points = 72 / axis.figure.dpi

    def at(x: float, y: float) -> tuple[float, float]:
        px, py = axis.transData.transform((x, y)) * to_points
        return float(px), float(py)

    places = [at(x, y) for x, y, *_ in points]
    frame = axis.get_window_extent()
    left, right, bottom, top = (edge * to_points for edge in (frame.x0, frame.x1, frame.y0, frame.y1))
    taken: Boxes = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in places]
    for (x, y, *_), bar in zip(points, bars, strict=False):
        (px, low), (_, high) = at(x, y - bar), at(x, y + bar)
        taken.append((px - CAP, low, px + CAP, high))
    for y in avoid_y:
        height = at(axis.get_xlim()[0], y)[1]
        taken.append((left, height - 1, right, height + 1))
    for line in lines:
        taken += _along([at(x, y) for x, y in line])
    taken += [(left - BEYOND, -BEYOND, left, BEYOND), (right, -BEYOND, right + BEYOND, BEYOND)]
    taken += [(-BEYOND, bottom - BEYOND, BEYOND, bottom), (-BEYOND, top, BEYOND, top + BEYOND)]
    for (x, y, text, colour), (px, py) in zip(points, places, strict=True):
        if not text:
            continue
        candidates = [(place, _covered_by(px, py, _width(text), place)) for place in PLACES]
        others = np.array(taken)
        costs = [_overlap(boxes, others) + FREE * hypot(*place[1:]) for place, boxes in candidates]
        (alignment, dx, dy), boxes = candidates[int(np.argmin(costs))]
        taken += boxes
        leader = {
            "arrowstyle": "-", "color": LEADER, "linewidth": 0.7, "shrinkB": MARKER,
            "relpos": ({"left": 0.0, "center": 0.5, "right": 1.0}[alignment], 0.5),
        }  # fmt: skip
        axis.annotate(
            text, (x, y), xytext=(dx, dy), textcoords="offset points",
            ha=alignment, va="center", fontsize=SIZE, color=colour, arrowprops=leader if len(boxes) > 1 else None,
        )  # fmt: skip


def _covered_by(x: float, y: float, width: float, place: Place) -> Boxes:
    """The area of a label, and the line to its point if it is far."""
    alignment, dx, dy = place
    left = x + dx - {"left": 0.0, "center": width / 2, "right": width}[alignment]
    label = (left, y + dy - HEIGHT / 2, left + width, y + dy + HEIGHT / 2)
    distance = hypot(dx, dy)
    if distance < FAR:
        return [label]
    start = 2 * MARKER / distance  # beside the marker
    return [label, *_along([(x + start * dx, y + start * dy), (x + dx, y + dy)])]


def _along(line: Sequence[tuple[float, float]]) -> Boxes:
    """Small boxes along a line through some points."""
    found: Boxes = []
    for (x, y), (to_x, to_y) in pairwise(line):
        parts = np.linspace(0, 1, max(2, round(hypot(to_x - x, to_y - y) / STEP)))
        found += [
            (px - 1, py - 1, px + 1, py + 1)
            for px, py in zip(x + (to_x - x) * parts, y + (to_y - y) * parts, strict=True)
        ]
    return found


def _overlap(boxes: Boxes, taken: np.ndarray) -> float:
    """Area in common with `taken` `(n, 4)`, in square points."""
    own = np.array(boxes)[:, None]
    sides = np.minimum(own[..., 2:], taken[:, 2:]) - np.maximum(own[..., :2], taken[:, :2])
    return float(np.clip(sides, 0, None).prod(-1).sum())


@cache
def _width(text: str) -> float:
    """The box of a label with a margin, in points."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=SIZE).get_extents().width) + ROOM
