"""Places short labels beside the points of a picture so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

SIZE = 8.5  # points
HEIGHT = 1.15 * SIZE  # of a line of text
ROOM = 4.0  # points that labels keep from each other
GAP = 9.0  # points from a marker's centre to its label
MARKER = 5.0  # half the width of a marker, in points
FAR = 20.0  # a label this far above or below needs a line to its point
LEADER = "#888888"
CAP = 3.0  # half the width of an error bar's cap, in points
STEP = 4.0  # points between the marks that keep labels off a line
BESIDE = (("left", GAP, 0.0), ("right", -GAP, 0.0), ("center", 0.0, 12.0), ("center", 0.0, -12.0))
ALIGNED = (("center", 0.0), ("left", GAP), ("right", -GAP))
HEIGHTS = (9.0, *(12.0 * level for level in range(2, 13)))
PLACES = BESIDE + tuple((align, dx, sign * dy) for dy in HEIGHTS for align, dx in ALIGNED for sign in (1, -1))
"""Alignment and offset in points, the nearest first."""


@dataclass(frozen=True)
class Box:
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area in common, in square points."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


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
    taken = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in places]
    for (x, y, *_), bar in zip(points, bars, strict=False):
        (px, low), (_, high) = at(x, y - bar), at(x, y + bar)
        taken.append(Box(px - CAP, low, px + CAP, high))
    for y in avoid_y:
        height = at(axis.get_xlim()[0], y)[1]
        taken.append(Box(left, height - 1, right, height + 1))
    for line in lines:
        taken += _along([at(x, y) for x, y in line])
    taken += [Box(left - 1e4, -1e4, left, 1e4), Box(right, -1e4, right + 1e4, 1e4)]
    taken += [Box(-1e4, bottom - 1e4, 1e4, bottom), Box(-1e4, top, 1e4, top + 1e4)]
    for (x, y, text, colour), (px, py) in zip(points, places, strict=True):
        if not text:
            continue
        width = _width(text)
        boxes = [_box(px, py, width, place) for place in PLACES]
        best = min(range(len(PLACES)), key=lambda i: sum(boxes[i].overlap(other) for other in taken))
        alignment, dx, dy = PLACES[best]
        taken.append(boxes[best])
        is_far = abs(dy) >= FAR
        if is_far:
            taken += _along([(px, py), (px + dx, py + dy)])
        leader = {"arrowstyle": "-", "color": LEADER, "linewidth": 0.7, "shrinkB": MARKER} if is_far else None
        axis.annotate(
            text, (x, y), xytext=(dx, dy), textcoords="offset points",
            ha=alignment, va="center", fontsize=SIZE, color=colour, arrowprops=leader,
        )  # fmt: skip


def _box(x: float, y: float, width: float, place: tuple[str, float, float]) -> Box:
    alignment, dx, dy = place
    left = x + dx - {"left": 0.0, "center": width / 2, "right": width}[alignment]
    return Box(left, y + dy - HEIGHT / 2, left + width, y + dy + HEIGHT / 2)


def _along(line: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """Small boxes along a line through some points."""
    for (x, y), (to_x, to_y) in pairwise(line):
        count = max(1, round(max(abs(to_x - x), abs(to_y - y)) / STEP))
        for part in range(count + 1):
            px, py = x + (to_x - x) * part / count, y + (to_y - y) * part / count
            yield Box(px - 1, py - 1, px + 1, py + 1)


def _width(text: str) -> float:
    """Of a label with some room, in points."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=SIZE).get_extents().width) + ROOM
