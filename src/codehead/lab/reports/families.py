"""How a family of heads looks in every picture: name, colour and marker, its points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codehead.lab.reports.drawing import INK, PAPER
from codehead.lab.reports.summary import Estimate, Row

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
NOTE = "Error bars are 95% t-intervals over seeds; the dashed line is Softmax."


def look(family: str) -> tuple[str, str, str]:
    """Name, colour and marker of a family."""
    return FAMILIES.get(family, (f"{family} head", "#7F7F7F", "v"))


def as_percent(value: float, _: Any = None) -> str:
    """The label of a tick."""
    return f"{round(100 * value, 1):g}%"


def families_of(rows: Sequence[Row]) -> list[str]:
    """The families of the rows, known ones first in their order; heads registered elsewhere follow."""
    present = {row.family for row in rows}
    return [family for family in FAMILIES if family in present] + sorted(present - set(FAMILIES))


def draw_family(axis: Any, family: str, at: Sequence[float], values: Sequence[Estimate]) -> None:
    """The points of a family at the places `at`, with their intervals."""
    _, colour, marker = look(family)
    axis.errorbar(
        at, [value.mean for value in values], yerr=[value.half_width or 0.0 for value in values],
        fmt=marker, color=colour, markersize=7, markeredgecolor=PAPER, capsize=3, elinewidth=1.2,
        zorder=2 if family == "peer" else 3,  # codes over baselines where both are
    )  # fmt: skip
