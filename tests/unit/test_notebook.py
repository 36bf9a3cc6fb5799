"""What a notebook shows of codebooks and configurations: the numbers and symbols are those of the objects."""

from __future__ import annotations

import base64
import io
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from codehead.codes import build
from codehead.codes.quality import COLOURS, quality
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError

SHAPE = ModelShape(64, 300)


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def colours(symbols: np.ndarray) -> np.ndarray:
    return np.array([[list(bytes.fromhex(COLOURS[symbol][1:])) for symbol in row] for row in symbols.tolist()])


def picture_in(page: str) -> np.ndarray:
    found = re.search("base64,([^']+)'", page)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


@pytest.mark.parametrize(("design", "classes"), [("minrandom", 300), ("sparse_random", 40), ("one_vs_all", 500)])
def test_the_page_of_a_codebook_shows_its_symbols_and_its_price(design, classes):
    codebook = build(design, classes)
    page, measured = codebook._repr_html_(), quality(codebook)
    symbols = codebook.to_array()[:64, :256]
    assert np.array_equal(picture_in(page), colours(symbols))
    assert f"{classes} codewords of {codebook.length} symbols" in page and codebook.checksum[:12] in page
    assert f"least {measured.row_distance_min:g}, mean {measured.row_distance_mean:.1f}" in page
    assert (f"{codebook.nbytes:,} bytes" if codebook.nbytes else "nothing is stored") in page
    assert ("white 0" in page) == codebook.is_ternary


def test_the_drawing_of_a_codebook_holds_rows_and_distances():
    codebook = build("minrandom", 300, bits=20)
    matrix, distances = codebook.plot(rows=10)
    assert np.array_equal(matrix.images[0].get_array(), colours(codebook.to_array()[:10]))
    measured = quality(codebook)
    shares = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in distances.patches}
    assert shares == pytest.approx({d: count / measured.pairs for d, count in measured.row_histogram.items()})
    with pytest.raises(ConfigurationError, match="rows"):
        codebook.plot(rows=0)


def test_the_page_of_a_configuration_tells_fields_and_price():
    config = DecisionConfig(code="minrandom", bits=64, weights="int8", dense_rows=tuple(range(1000)))
    page = config._repr_html_()
    assert "minrandom" in page and "int8" in page and "…" in page and len(page) < 3000
    assert f"{config.size(ModelShape(2048, 50_272)).bytes_stored:,} bytes" in page
    assert "give bits" in DecisionConfig(code="learned")._repr_html_()
    assert "&lt;b&gt;" in DecisionConfig(code="<b>.safetensors", bits=8)._repr_html_()


def test_the_drawing_of_a_configuration_is_its_price():
    config = DecisionConfig(code="minrandom", bits=64)
    bars = [bar.get_width() * 1e6 for bar in config.plot(SHAPE).patches]
    size = config.size(SHAPE)
    assert bars[0] == pytest.approx(SHAPE.softmax_bytes)
    assert bars[-2:] == pytest.approx([size.bytes_stored - size.codebook_bytes, size.codebook_bytes])


def test_a_missing_matplotlib_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"codehead\[lab\]"):
        build("minrandom", 30).plot()
