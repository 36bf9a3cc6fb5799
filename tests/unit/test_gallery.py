"""The gallery: trees read from matrices, every design drawn, and pictures in the documentation that are up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codehead.codes import DESIGNS, build

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
gallery = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gallery)


@pytest.mark.parametrize("design", gallery.WITH_TREE)
def test_a_class_is_reached_by_its_symbols(design: str) -> None:
    shown = gallery.specimen(design)
    symbols = shown.codebook.to_array()
    assert sorted(shown.order) == list(range(16))

    def check(tree: int | tuple) -> None:
        if isinstance(tree, int):
            return
        up, down = map(gallery.leaves, tree)
        assert any(np.all(column[up] == 1) and np.all(column[down] == -1) for column in symbols.T)
        for side in tree:
            check(side)

    assert shown.tree is not None
    check(shown.tree)


def test_a_tree_read_from_a_matrix() -> None:
    symbols = np.array([[1, 0, 1], [-1, 1, 0], [-1, -1, 0], [1, 0, -1]])
    assert gallery.grow(symbols, [0, 1, 2, 3]) == ((0, 3), (1, 2))
    assert gallery.leaves(((0, 3), (1, 2))) == [0, 3, 1, 2]
    assert gallery.depth((0, (1, (2, 3)))) == 3
    with pytest.raises(ValueError, match=r"no column splits the classes \[1, 2\]"):
        gallery.grow(symbols[:, [0, 2]], [0, 1, 2, 3])


def test_like_classes_are_near_and_confused() -> None:
    names = list(gallery.CLASSES)
    counts = gallery.confusion()
    assert gallery.prototypes().shape == (16, len(gallery.FEATURES))
    assert counts[names.index("cat")].argsort()[-2] == names.index("dog")
    assert counts[names.index("shark"), names.index("truck")] == 0


@pytest.mark.parametrize("design", ["sparse_random", "ecoc_one"])
def test_a_picture_holds_the_checksum_of_its_code(design: str, tmp_path: Path) -> None:
    path = gallery.draw(design, tmp_path / "new" / "picture.png")
    with Image.open(path) as picture:
        assert picture.info["Description"] == gallery.specimen(design).codebook.checksum
        assert picture.size[0] > picture.size[1]


def test_the_documentation_shows_every_design() -> None:
    text = (DOCS / "gallery.md").read_text()
    for design in gallery.designs():
        assert f"\n### {design}\n" in text
        assert f"(gallery/{design}.png)" in text
        assert (DOCS / "gallery" / f"{design}.png").stat().st_size < 60_000
    assert {path.stem for path in (DOCS / "gallery").iterdir()} == set(gallery.designs())


@pytest.mark.parametrize("design", [d for d in gallery.designs() if "prototypes" not in DESIGNS.get(d).params()])
def test_the_pictures_are_those_of_the_designs(design: str) -> None:
    with Image.open(DOCS / "gallery" / f"{design}.png") as picture:
        assert picture.info["Description"] == build(design, 16).checksum
