"""Places short labels beside the points of a picture so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SIZE = 8.5  # points
WIDTH_OF_LETTER = 0.56 * SIZE  # of DejaVu Sans, on average
GAP = 9.0  # points from a marker's centre to its label
MARKER = 5.0  # half the width of a marker, in points
FAR = 20.0  # a label this far above or below needs a line to its point
LEADER = "#888888"
CAP = 3.0  # half the width of an error bar's cap, in points
PLACES = (
    ("left", GAP, 0.0),
    ("right", -GAP, 0.0),
    ("center", 0.0, 12.0),
    ("center", 0.0, -12.0),
    ("left", GAP, 9.0),
    ("left", GAP, -9.0),
    ("right", -GAP, 9.0),
    ("right", -GAP, -9.0),
    ("center", 0.0, 24.0),
    ("center", 0.0, -24.0),
    ("center", 0.0, 36.0),
    ("center", 0.0, -36.0),
)  # alignment and offset in points, the first that fits


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
) -> None:
    """Write a label at every point (x, y, text, colour), clear of the others, of the edges and of lines at `avoid_y`.

    `bars` are the half lengths of the points' error bars. The axis must have its final limits and scale.
    """
    axis.figure.canvas.draw()
    to_points = 72 / axis.figure.dpi
    places = [axis.transData.transform((x, y)) * to_points for x, y, *_ in points]
    frame = axis.get_window_extent()
    left, right = frame.x0 * to_points, frame.x1 * to_points
    taken = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in places]
    for (x, y, *_), bar in zip(points, bars, strict=False):
        (px, low), (_, high) = (axis.transData.transform((x, end)) * to_points for end in (y - bar, y + bar))
        taken.append(Box(px - CAP, low, px + CAP, high))
    for y in avoid_y:
        height = axis.transData.transform((axis.get_xlim()[0], y))[1] * to_points
        taken.append(Box(left, height - 1, right, height + 1))
    taken += [Box(left - 1e4, -1e4, left, 1e4), Box(right, -1e4, right + 1e4, 1e4)]
    for (x, y, text, colour), (px, py) in zip(points, places, strict=True):
        boxes = [_box(px, py, text, place) for place in PLACES]
        best = min(range(len(PLACES)), key=lambda i: sum(boxes[i].overlap(other) for other in taken))
        alignment, dx, dy = PLACES[best]
        taken.append(boxes[best])
        leader = {"arrowstyle": "-", "color": LEADER, "linewidth": 0.7, "shrinkB": MARKER} if abs(dy) >= FAR else None
        axis.annotate(
            text, (x, y), xytext=(dx, dy), textcoords="offset points",
            ha=alignment, va="center", fontsize=SIZE, color=colour, arrowprops=leader if text else None,
        )  # fmt: skip


def _box(x: float, y: float, text: str, place: tuple[str, float, float]) -> Box:
    alignment, dx, dy = place
    width = WIDTH_OF_LETTER * len(text)
    left = x + dx - {"left": 0.0, "center": width / 2, "right": width}[alignment]
    return Box(left, y + dy - SIZE / 2, left + width, y + dy + SIZE / 2)
