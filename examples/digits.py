"""Handwritten digits, patch by patch: the decision layer over an output space that is not text.

    python examples/digits.py --out digits.png

The 8 × 8 digits of scikit-learn become sequences of 16 patches of 2 × 2 pixels, each replaced by the nearest of 256
k-means centroids. A GRU is given a digit and draws it patch by patch. Softmax, independent bits and a chain of bits
take turns as its last layer; nothing else changes. Needs scikit-learn and matplotlib; takes a minute or two on one
core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from codehead import codes, heads
from codehead.layer import DecisionLayer

PATCHES = 16  # per image
KINDS = 256  # of patches: V
HIDDEN = 96
TEST = 360  # images


@dataclass(frozen=True)
class Data:
    """Images as patches, and the pixels of each patch."""

    patches: Tensor  # (images, 16), numbers of patches
    digits: Tensor  # (images,)
    looks: np.ndarray  # (256, 4), the pixels of each kind, 0 to 16


def load() -> Data:
    """The digits, cut into patches; the patches, each replaced by the nearest of 256 centroids."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits

    found = load_digits()
    cut = found.images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    means = KMeans(KINDS, n_init=1, max_iter=30, random_state=0).fit(cut)
    patches = torch.from_numpy(means.labels_).long().view(-1, PATCHES)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    return Data(patches[order], torch.from_numpy(found.target)[order], means.cluster_centers_)


def layers(looks: np.ndarray) -> dict[str, DecisionLayer]:
    """Three last layers. The code is a tree over the patches' pixels: similar patches share their first bits."""
    tree = codes.build("merged_decoc", KINDS, prototypes=looks)
    every = codes.build("one_vs_all", KINDS)
    return {
        "Softmax": DecisionLayer(every, heads.build("linear", HIDDEN, KINDS), loss="codeword"),
        "independent bits": DecisionLayer(tree, heads.build("mtl", HIDDEN, tree.length, width=16), loss="codeword"),
        "chain of bits": DecisionLayer(tree, heads.build("chain", HIDDEN, tree.length, width=15), loss="codeword"),
    }


class Painter(nn.Module):
    """Given a digit, reads the patches so far and predicts the next. Before the first, it reads patch number 256."""

    def __init__(self, last: DecisionLayer) -> None:
        super().__init__()
        self.digit = nn.Embedding(10, HIDDEN)
        self.seen = nn.Embedding(KINDS + 1, HIDDEN)
        self.place = nn.Embedding(PATCHES, HIDDEN)
        self.memory = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.last = last

    def hidden(self, digits: Tensor, patches: Tensor) -> Tensor:
        """Hidden states `(images, 16, hidden)`, each before the patch `(images, 16)` that it should predict."""
        before = nn.functional.pad(patches[:, :-1], (1, 0), value=KINDS)
        inputs = self.digit(digits).unsqueeze(1) + self.place.weight + self.seen(before)
        states: Tensor = self.memory(inputs)[0]
        return states

    @torch.no_grad()
    def draw(self, digits: Tensor, seed: int = 0) -> Tensor:
        """Patches `(images, 16)` of new images of the `digits` `(images,)`, drawn at random one after another."""
        generator = torch.Generator().manual_seed(seed)
        seen, memory, drawn = torch.full_like(digits, KINDS), None, []
        for place in self.place.weight:
            state, memory = self.memory((self.digit(digits) + place + self.seen(seen)).unsqueeze(1), memory)
            seen = torch.multinomial(self.last(state.squeeze(1)).softmax(-1), 1, generator=generator).squeeze(1)
            drawn.append(seen)
        return torch.stack(drawn, dim=1)


def train(painter: Painter, data: Data, steps: int, batch: int = 128) -> None:
    """Adam on the loss of the decision layer."""
    optimizer = torch.optim.Adam(painter.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        some = torch.randint(TEST, len(data.patches), (batch,), generator=generator)
        patches = data.patches[some]
        loss = painter.last.loss(painter.hidden(data.digits[some], patches), patches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def bits_per_patch(painter: Painter, data: Data) -> float:
    """Mean −log2 of the probability of the patches in test images."""
    patches = data.patches[:TEST]
    scores = painter.last(painter.hidden(data.digits[:TEST], patches)).log_softmax(-1)
    return -float(scores.gather(-1, patches.unsqueeze(-1)).mean()) / float(np.log(2))


def picture(rows: dict[str, Tensor], looks: np.ndarray, path: Path) -> None:
    """One row of images, given as patches `(images, 16)`, under each name."""
    from matplotlib import pyplot

    columns = max(len(row) for row in rows.values())
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(columns, 1.25 * len(rows)), squeeze=False)
    for (name, row), places in zip(rows.items(), axes, strict=True):
        pixels = looks[row.numpy()].reshape(-1, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8)
        places[0].set_title(name, loc="left")
        for image, place in zip(pixels, places, strict=True):
            place.imshow(image, cmap="gray_r", vmin=0, vmax=16)
            place.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(steps: int, out: Path) -> dict[str, float]:
    """Train the three, print their sizes and losses, and draw; returns the bits per patch of each."""
    data = load()
    ten = torch.arange(10)
    rows = {"scikit-learn's": torch.stack([data.patches[TEST:][data.digits[TEST:] == digit][0] for digit in ten])}
    found = {}
    torch.manual_seed(0)
    for name, last in layers(data.looks).items():
        painter = Painter(last)
        train(painter, data, steps)
        found[name] = bits_per_patch(painter, data)
        rows[name] = painter.draw(ten)
        size = sum(parameter.numel() for parameter in last.parameters())
        print(f"{name:<17} {size:>6,} parameters  {found[name]:.3f} bits per patch of test images")
    picture(rows, data.looks, out)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each of the three")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="the picture")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.out)
