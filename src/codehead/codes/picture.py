"""What a notebook shows of a codebook: its matrix, how far its rows are apart, and its bytes."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape
from typing import Any

import numpy as np

from codehead.boundaries import missing_extra
from codehead.codes.codebook import Codebook
from codehead.codes.design import whole_number
from codehead.codes.packing import Symbols
from codehead.codes.quality import Quality, quality

ROWS, COLUMNS = 64, 256
"""The most that is shown of a matrix."""
LIMIT, SAMPLES = 2**22, 2**14
"""Words compared, and pairs drawn where that is not enough: a tenth of a second."""
COLOURS = {-1: "#c8553d", 0: "#f2f0eb", 1: "#2b5d8c"}
"""Symbol → colour."""
LONGEST = 120
"""Characters of a value."""
PIXEL = 6
"""The side of a symbol on the page."""


def table(rows: dict[str, Any]) -> str:
    """Two columns of HTML: names and values, the beginning of long ones."""
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
    """The facts and the first rows of a codebook, as a page that needs nothing else."""
    symbols = _first(codebook, ROWS)
    height, width = (PIXEL * side for side in symbols.shape)
    image = base64.b64encode(_png(symbols)).decode()
    return (
        f"<b>{escape(_name(codebook))}</b>{table(_facts(codebook))}"
        f"<img alt='coding matrix' src='data:image/png;base64,{image}' width='{width}' height='{height}' "
        f"style='image-rendering:pixelated;max-width:100%'><div>{escape(_shown(codebook, symbols))}</div>"
    )


def plot(codebook: Codebook, rows: int = ROWS) -> Any:
    """Draw the first `rows` of a codebook, and the distances between its rows; the two axes of matplotlib.

    ImportError names the extra that brings matplotlib.
    """
    pyplot = matplotlib_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
    symbols, measured = _first(codebook, rows), _measured(codebook)
    axes[0].imshow(_pixels(symbols), aspect="auto", interpolation="nearest")
    axes[0].set(xlabel="column", ylabel="class", title=_shown(codebook, symbols))
    counts = measured.row_histogram
    axes[1].bar(list(counts), [count / measured.pairs for count in counts.values()], color=COLOURS[1])
    if measured.row_distance_mean > codebook.length / 4:  # far from it, the line would hide the distances
        axes[1].axvline(codebook.length / 2, color=COLOURS[-1], linestyle="--", label="half of the columns")
        axes[1].legend(frameon=False)
    axes[1].set(xlabel="distance of two rows", ylabel="share of pairs", title=f"row distance: {_separation(measured)}")
    figure.suptitle(f"{_name(codebook)}, {codebook.nbytes:,} bytes")
    return axes


def matplotlib_pyplot() -> Any:
    """matplotlib.pyplot; an ImportError names the extra that brings it."""
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
    return quality(codebook, exact_limit=LIMIT, samples=SAMPLES)


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
    found: np.ndarray = palette[symbols.astype(np.intp) + 1]
    return found


def _png(symbols: Symbols) -> bytes:
    """A picture with a pixel per symbol."""
    rows, columns = symbols.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), _pixels(symbols).reshape(rows, -1)], axis=1)  # no filter
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
