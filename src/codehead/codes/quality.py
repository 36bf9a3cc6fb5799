"""The quality of a code: row separation, column separation and balance, exact or sampled; display in notebooks."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, final

import numpy as np

from codehead.boundaries import missing_extra
from codehead.codes.codebook import Codebook, OneVsAllCodebook
from codehead.codes.design import whole_number
from codehead.codes.packing import PackedRows, Symbols, all_pairs, count_ones, sampled_pairs, transpose

EXACT_LIMIT = 2**28
"""Default limit on 64-bit words compared for an exact answer: about 23,000 classes of 64 bits."""

COLUMN_FACTOR = 8
"""How many times more words of columns are compared: columns are few and long, so a word costs less."""

SAMPLES = 2**22
"""Default number of pairs sampled above that limit."""


@final
@dataclass(frozen=True)
class Quality:
    """Measures of a codebook; distances count places, with ½ where either symbol is 0.

    * `row_distance_min`, `row_distance_mean`, `row_histogram` (distance → pairs): between codewords.
      Unless `exact`, they come from `pairs` sampled pairs and the minimum is an upper bound.
    * `correctable_bits`: wrong bits that nearest-codeword decoding always corrects, ⌊(d − 1) / 2⌋ for
      the minimum distance d (an upper bound unless `exact`). A 0 in the true codeword counts as half
      a wrong bit, since any prediction is possible there.
    * `column_distance`: the least min(h, V − h) over pairs of columns at distance h, 0 for a duplicate
      or complementary pair; None for a single column. Sampled unless `columns_exact`.
    * `balance_min`, `balance_max`, `balance_mean`: a column's share of +1 among its non-zero symbols.
    """

    num_classes: int
    length: int
    row_distance_min: float
    row_distance_mean: float
    row_histogram: dict[float, int]
    exact: bool
    pairs: int
    correctable_bits: int
    column_distance: float | None
    columns_exact: bool
    column_pairs: int
    balance_min: float
    balance_max: float
    balance_mean: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the keys of the histogram become strings, as in JSON."""
        return {**asdict(self), "row_histogram": {f"{d:g}": n for d, n in self.row_histogram.items()}}


def quality(codebook: Codebook, *, exact_limit: int = EXACT_LIMIT, samples: int = SAMPLES, seed: int = 0) -> Quality:
    """Measure a codebook.

    All pairs of rows are compared if that takes at most `exact_limit` 64-bit words (for columns, eight
    times as many), otherwise `samples` pairs drawn with `seed` (for columns, fewer as they are longer).
    one_vs_all has a closed form at any size.
    """
    exact_limit, samples = whole_number("exact_limit", exact_limit, 0), whole_number("samples", samples, 1)
    if isinstance(codebook, OneVsAllCodebook):  # any two rows differ in two places, and so do any two columns
        rows = columns = {4: codebook.num_classes * (codebook.num_classes - 1) // 2}
        exact = columns_exact = True
        shares = np.array([1 / codebook.num_classes])
    else:
        packed = PackedRows.from_planes(*codebook.planes.values(), length=codebook.length)
        rows, exact = _distances(packed, exact_limit, samples, seed)
        sides = [transpose(plane, codebook.length) for plane in codebook.planes.values()]
        packed = PackedRows.from_planes(*sides, length=codebook.num_classes)
        fewer = max(samples // packed.num_words, 1)
        columns, columns_exact = _distances(packed, COLUMN_FACTOR * exact_limit, fewer, seed)
        shares = _shares(packed)
    minimum, pairs = min(rows), sum(rows.values())
    apart = [min(doubled, 2 * codebook.num_classes - doubled) / 2 for doubled in columns]
    return Quality(
        num_classes=codebook.num_classes,
        length=codebook.length,
        row_distance_min=minimum / 2,
        row_distance_mean=sum(doubled * count for doubled, count in rows.items()) / (2 * pairs),
        row_histogram={doubled / 2: count for doubled, count in rows.items()},
        exact=exact,
        pairs=pairs,
        correctable_bits=max((minimum - 2) // 4, 0),
        column_distance=min(apart, default=None),
        columns_exact=columns_exact,
        column_pairs=sum(columns.values()),
        balance_min=float(shares.min()),
        balance_max=float(shares.max()),
        balance_mean=float(shares.mean()),
    )


def _distances(rows: PackedRows, limit: int, samples: int, seed: int) -> tuple[dict[int, int], bool]:
    """How many pairs of rows lie at each doubled distance, and whether these are all pairs."""
    exact = rows.num_pairs * rows.num_words <= limit
    counts = all_pairs(rows) if exact else sampled_pairs(rows, samples, seed)
    return {int(doubled): int(counts[doubled]) for doubled in np.flatnonzero(counts)}, exact


def _shares(columns: PackedRows) -> np.ndarray:
    """The share of +1 among the non-zero symbols of each column (n,); 0 for an empty column."""
    positive, *symbols = count_ones(columns.planes).sum(axis=1, dtype=np.int64)
    return positive / (np.maximum(symbols[0], 1) if symbols else columns.length)


# A codebook in a notebook: facts and a picture.


ROWS, COLUMNS = 64, 256
"""The most rows and columns of a matrix that are shown."""
SHOWN_LIMIT, SHOWN_SAMPLES = 2**22, 2**14
"""The limit on words compared, and the pairs sampled above it: a tenth of a second."""
COLOURS = {-1: "#c8553d", 0: "#f2f0eb", 1: "#2b5d8c"}
"""Symbol → colour."""
LONGEST = 120
"""The most characters shown of a value."""
PIXEL = 6
"""The side of a symbol on the page, in pixels."""


def table(rows: dict[str, Any]) -> str:
    """An HTML table of names and values; long values are cut off."""
    left = "style='text-align:left'"
    cells = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(_short(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def html(codebook: Codebook) -> str:
    """The facts and the first rows of a codebook, as self-contained HTML."""
    symbols = _first(codebook, ROWS)
    height, width = (PIXEL * side for side in symbols.shape)
    image = base64.b64encode(_png(symbols)).decode()
    return (
        f"<b>{escape(_name(codebook))}</b>{table(_facts(codebook))}"
        f"<img alt='coding matrix' src='data:image/png;base64,{image}' width='{width}' height='{height}' "
        f"style='image-rendering:pixelated;max-width:100%'><div>{escape(_shown(codebook, symbols))}</div>"
    )


def plot(codebook: Codebook, rows: int = ROWS) -> Any:
    """Plot the first `rows` of a codebook, and the distances between its rows; returns two matplotlib axes.

    ImportError names the extra that installs matplotlib.
    """
    pyplot = matplotlib_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
    symbols, measured = _first(codebook, rows), _measured(codebook)
    axes[0].imshow(_pixels(symbols), aspect="auto", interpolation="nearest")
    axes[0].set(xlabel="column", ylabel="class", title=_shown(codebook, symbols))
    counts = measured.row_histogram
    axes[1].bar(list(counts), [count / measured.pairs for count in counts.values()], color=COLOURS[1])
    if measured.row_distance_mean > codebook.length / 4:  # otherwise the line would squeeze the distances
        axes[1].axvline(codebook.length / 2, color=COLOURS[-1], linestyle="--", label="half of the columns")
        axes[1].legend(frameon=False)
    axes[1].set(xlabel="distance of two rows", ylabel="share of pairs", title=f"row distance: {_separation(measured)}")
    figure.suptitle(f"{_name(codebook)}, {codebook.nbytes:,} bytes")
    return axes


def matplotlib_pyplot() -> Any:
    """matplotlib.pyplot; an ImportError names the extra that installs it."""
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError(missing_extra(error) or str(error), name=error.name) from error
    return pyplot


def _name(codebook: Codebook) -> str:
    return f"{codebook.design}: {codebook.num_classes:,} codewords of {codebook.length:,} symbols"


def _facts(codebook: Codebook) -> dict[str, Any]:
    measured = _measured(codebook)
    return {
        "symbols": "−1, 0, +1" if codebook.is_ternary else "−1, +1",
        "row distance": _separation(measured),
        "share of +1 in a column": f"{measured.balance_min:.0%} to {measured.balance_max:.0%}",
        "price": f"{codebook.nbytes:,} bytes, packed" if codebook.nbytes else "nothing is stored",
        "seed": codebook.seed,
        "options": codebook.params or "none",
        "checksum": codebook.checksum[:12],
    }


def _measured(codebook: Codebook) -> Quality:
    return quality(codebook, exact_limit=SHOWN_LIMIT, samples=SHOWN_SAMPLES)


def _separation(measured: Quality) -> str:
    least = f"{'least' if measured.exact else 'least of a sample'} {measured.row_distance_min:g}"
    return f"{least}, mean {measured.row_distance_mean:.1f}"


def _first(codebook: Codebook, rows: int) -> Symbols:
    count = min(whole_number("rows", rows, 1), codebook.num_classes)
    return codebook.codewords(np.arange(count))[:, :COLUMNS]


def _shown(codebook: Codebook, symbols: Symbols) -> str:
    rows, columns = symbols.shape
    whole = symbols.shape == (codebook.num_classes, codebook.length)
    what = "the matrix" if whole else f"the first {rows} rows and {columns} columns"
    return f"{what}: blue +1, red −1{', white 0' if codebook.is_ternary else ''}"


def _pixels(symbols: Symbols) -> np.ndarray:
    """The colours of symbols: uint8 (rows, columns, 3)."""
    palette = np.array([list(bytes.fromhex(COLOURS[symbol][1:])) for symbol in (-1, 0, 1)], dtype=np.uint8)
    return palette[symbols.astype(np.intp) + 1]


def _png(symbols: Symbols) -> bytes:
    """A PNG image with one pixel per symbol."""
    rows, columns = symbols.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), _pixels(symbols).reshape(rows, -1)], axis=1)  # no filter
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
