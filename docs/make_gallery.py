"""A gallery of the codes: matrix, tree and row distances of every design, for sixteen classes one can picture.

python docs/make_gallery.py docs/gallery
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codehead.codes import DESIGNS, Codebook, build, quality
from codehead.lab.reports.drawing import EDGE, GRID, INK, PALETTE, PAPER, STYLE, Key, pyplot

FEATURES = ("alive", "legs", "wings", "fur", "water", "air", "wheels", "engine", "size", "speed", "cargo")
"""What the numbers of CLASSES are, each from 0 to 1."""

CLASSES = {
    "cat": (1.0, 0.8, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.10, 0.3, 0.0),
    "dog": (1.0, 0.8, 0.0, 0.9, 0.1, 0.0, 0.0, 0.0, 0.15, 0.3, 0.0),
    "horse": (1.0, 1.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.40, 0.5, 0.3),
    "cow": (1.0, 1.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.45, 0.2, 0.1),
    "sparrow": (1.0, 0.4, 1.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.02, 0.3, 0.0),
    "eagle": (1.0, 0.4, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.10, 0.6, 0.0),
    "salmon": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.08, 0.2, 0.0),
    "shark": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.40, 0.4, 0.0),
    "bicycle": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.0, 0.20, 0.3, 0.1),
    "motorbike": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.8, 0.25, 0.6, 0.1),
    "car": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.9, 0.40, 0.6, 0.3),
    "truck": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.60, 0.5, 0.9),
    "helicopter": (0.0, 0.1, 0.3, 0.0, 0.0, 0.9, 0.1, 1.0, 0.60, 0.7, 0.3),
    "airplane": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.3, 1.0, 0.90, 1.0, 0.8),
    "sailboat": (0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.1, 0.50, 0.2, 0.2),
    "ship": (0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.00, 0.3, 1.0),
}
"""Prototypes by name: made up, so that a reader knows which classes are alike."""

WITH_TREE = ("merged_decoc", "merged_forest", "decoc", "forest_ecoc", "ecoc_one")
"""Designs whose first columns are the nodes of a tree."""

SYMBOLS = {-1: ("−1", PALETTE[1]), 0: ("0: not asked", GRID), 1: ("+1", PALETTE[0])}
DPI = 120
WITH_EDGES = 64  # columns up to which cells are parted by lines
TICKS = 16  # columns up to which every one has its number

Tree = int | tuple["Tree", "Tree"]
"""A class, or the two sides of a node: that of +1 first."""


class Specimen(NamedTuple):
    """A code to be drawn: its tree if it has one, and its classes from top to bottom."""

    codebook: Codebook
    tree: Tree | None
    order: Sequence[int]


def prototypes() -> np.ndarray:
    """The features of CLASSES (16, 11)."""
    return np.array(list(CLASSES.values()))


def confusion() -> np.ndarray:
    """Made-up counts (16, 16): the nearer two classes are, the more often one is taken for the other."""
    vectors = prototypes()
    squared = np.square(vectors[:, None] - vectors).sum(axis=-1)
    return np.rint(100 * np.exp(-4 * squared))


def designs() -> list[str]:
    """The designs that are drawn: all but the one that has no matrix of its own."""
    return [name for name in DESIGNS.names() if name != "custom"]


def specimen(design: str) -> Specimen:
    """The code of a design for the sixteen classes; designs with a tree have them in the order of its leaves."""
    given: dict[str, dict[str, Any]] = {
        "additive": {"bits": 12},
        "transform_coding": {"bits": 12},
        "itq": {"bits": 24},
        "ecoc_one": {"bits": 12, "start": "merged_decoc", "confusion": confusion(), "stop_error": 0.0},
    }
    options = given.get(design, {})
    if "prototypes" in DESIGNS.get(design).params():
        options = {**options, "prototypes": prototypes()}
    codebook = build(design, len(CLASSES), **options)
    if design not in WITH_TREE:
        return Specimen(codebook, None, range(len(CLASSES)))
    tree = grow(codebook.to_array(), list(range(len(CLASSES))))
    return Specimen(codebook, tree, leaves(tree))


def grow(symbols: np.ndarray, members: list[int]) -> Tree:
    """The tree over `members`: a node is split by the first column of `symbols` (V, n) that asks about all of them."""
    if len(members) == 1:
        return members[0]
    for column in symbols[members].T:
        if np.all(column) and len(np.unique(column)) == 2:
            up, down = ([m for m, symbol in zip(members, column, strict=True) if symbol == side] for side in (1, -1))
            return grow(symbols, up), grow(symbols, down)
    raise ValueError(f"no column splits the classes {members}")


def leaves(tree: Tree) -> list[int]:
    """The classes of a tree from top to bottom."""
    return [tree] if isinstance(tree, int) else [*leaves(tree[0]), *leaves(tree[1])]


def draw_matrix(axis: Any, shown: Specimen) -> None:
    """Classes downwards, columns to the right, a colour per symbol."""
    from matplotlib.colors import ListedColormap

    symbols = shown.codebook.to_array()[list(shown.order)]
    length = shown.codebook.length
    edges = {"edgecolors": PAPER, "linewidth": 0.6} if length <= WITH_EDGES else {}
    colours = ListedColormap([colour for _, colour in SYMBOLS.values()])
    axis.pcolormesh(symbols, cmap=colours, vmin=-1, vmax=1, **edges)
    axis.set_yticks(np.arange(len(symbols)) + 0.5, [list(CLASSES)[i] for i in shown.order])
    numbers = np.arange(0, length, 1 if length <= TICKS else 5 if length <= 2 * WITH_EDGES // 3 else 10)
    axis.set_xticks(numbers + 0.5, numbers)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("column")
    if shown.codebook.design == "ecoc_one":
        axis.axvline(shown.codebook.params["start"]["length"], color=INK, linewidth=1.5)


def draw_tree(axis: Any, shown: Specimen) -> None:
    """The root on the left, the branch of +1 above that of −1, a leaf beside every row of the matrix."""
    places = {leaf: place + 0.5 for place, leaf in enumerate(shown.order)}
    assert shown.tree is not None
    deepest = depth(shown.tree)

    def draw(tree: Tree, level: int) -> float:
        """Draw what is below a node; return its height."""
        if isinstance(tree, int):
            return places[tree]
        ends = [draw(side, level + 1) for side in tree]
        middle = sum(ends) / 2
        for side, end, symbol in zip(tree, ends, (1, -1), strict=True):
            right = deepest if isinstance(side, int) else level + 1
            axis.plot([level, level, right], [middle, end, end], color=SYMBOLS[symbol][1], linewidth=1.6)
        return middle

    draw(shown.tree, 0)
    axis.set_xlim(-0.2, deepest)
    axis.set_axis_off()


def depth(tree: Tree) -> int:
    """The most nodes on a path."""
    return 0 if isinstance(tree, int) else 1 + max(map(depth, tree))


def draw_distances(axis: Any, shown: Specimen) -> None:
    """How many pairs of classes have codewords at each distance."""
    measured = quality(shown.codebook)
    distances = list(measured.row_histogram)
    width = 0.8 * min(np.diff(distances), default=1.0)
    axis.bar(distances, measured.row_histogram.values(), width=min(width, 0.8), color=EDGE)
    axis.set_title(f"least {measured.row_distance_min:g}, mean {measured.row_distance_mean:.1f}", fontsize=10)
    axis.set(xlabel="row distance", ylabel="pairs of classes", xlim=(0, 1.1 * max(distances) + 0.5))
    axis.locator_params(integer=True, nbins=5)


def draw(design: str, path: Path) -> Path:
    """One design as a PNG, which holds the checksum of the code as its description."""
    plt = pyplot()
    shown = specimen(design)
    has_tree = shown.tree is not None
    with plt.rc_context(STYLE):
        widths = (1.5 if has_tree else 0.01, float(np.clip(0.35 * shown.codebook.length, 1.5, 5.2)), 2.2)  # inches
        figure = plt.figure(figsize=(sum(widths) + 1.6, 3.9), layout="constrained")
        grid = figure.add_gridspec(1, 3, width_ratios=widths, wspace=0.06)
        matrix = figure.add_subplot(grid[1])
        draw_matrix(matrix, shown)
        if has_tree:
            draw_tree(figure.add_subplot(grid[0], sharey=matrix), shown)
        draw_distances(figure.add_subplot(grid[2]), shown)
        figure.suptitle(
            f"{design}: {len(CLASSES)} classes × {shown.codebook.length} columns", x=0.01, ha="left", fontweight="bold"
        )
        symbols = np.unique(shown.codebook.to_array())
        handles = [_swatch(plt, Key(*SYMBOLS[int(symbol)])) for symbol in symbols[::-1]]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None, "Description": shown.codebook.checksum})
        plt.close(figure)
    return path


def _swatch(plt: Any, key: Key) -> Any:
    return plt.Line2D([], [], color=key.colour, marker="s", linestyle="none", markersize=8, label=key.name)


def draw_all(folder: str | Path) -> list[Path]:
    """A PNG for every design, named after it."""
    return [draw(design, Path(folder) / f"{design}.png") for design in designs()]


if __name__ == "__main__":
    draw_all(*sys.argv[1:])
