"""The four tables of the paper, as data.

Source: Agarwal, "Efficient Implementation of LLMs: an ECOC-based approach to reducing the vocabulary bottleneck",
Imperial College London with Amazon Web Services, 2024, and the paper that followed it
(https://openreview.net/forum?id=NNkDZsBu82).
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "Agarwal, “Efficient Implementation of LLMs: an ECOC-based approach to reducing the vocabulary bottleneck”, 2024"
)
SOURCE_ADDRESS = "https://openreview.net/forum?id=NNkDZsBu82"
BACKBONE = "OPT-1.3B"
ENCODER = "roberta-large"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table. What the table does not give is None."""

    design: str | None  # None: Softmax
    head: str = "mtl"
    bits: int = 0
    width: int = 512
    parameters: int | None = None  # of the last layer
    seconds: int | None = None  # of inference on one evaluation set
    loss: float | None = None  # final mean training loss per node
    precision: float | None = None  # BERTScore
    recall: float | None = None
    f1: float | None = None
    backbone: str = BACKBONE

    @property
    def label(self) -> str:
        """The configuration in the paper's notation."""
        if self.design is None:
            return "Softmax"
        design = {"minimal": "Minimal", "minrandom": "MinRandom"}[self.design]
        return f"{design} {'MTL-ECOC' if self.head == 'mtl' else 'ECOC'} ({self.bits}, {self.width})"


@dataclass(frozen=True)
class PaperTable:
    """One protocol of the paper."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]


def _scored(
    design: str, bits: int, width: int, scores: tuple[float, float, float, float], backbone: str = BACKBONE
) -> PaperRow:
    loss, precision, recall, f1 = scores
    return PaperRow(design, "mtl", bits, width, loss=loss, precision=precision, recall=recall, f1=f1, backbone=backbone)


TABLES = {
    table.number: table
    for table in (
        PaperTable(
            1,
            "configurations of the head",
            (
                PaperRow(None, parameters=102_957_056, seconds=12 * 60 + 50),
                PaperRow("minimal", "linear", 16, 0, parameters=32_768, seconds=65),
                PaperRow("minrandom", "linear", 50, 0, parameters=102_400, seconds=60 + 45),
                PaperRow("minimal", "mtl", 16, 512, parameters=16_785_408, seconds=7 * 60),
                PaperRow("minrandom", "mtl", 50, 512, parameters=52_454_400, seconds=8 * 60 + 10),
            ),
        ),
        PaperTable(
            2,
            "hidden width of MTL-ECOC",
            (
                _scored("minimal", 16, 1024, (0.2305, 0.6023, 0.6047, 0.6034)),
                _scored("minimal", 16, 512, (0.2464, 0.5924, 0.6126, 0.6023)),
                _scored("minimal", 16, 128, (0.2657, 0.5749, 0.5925, 0.5835)),
                _scored("minrandom", 50, 1024, (0.2829, 0.6648, 0.7439, 0.7014)),
                _scored("minrandom", 50, 512, (0.3134, 0.6577, 0.7348, 0.6934)),
                _scored("minrandom", 50, 128, (0.3230, 0.6256, 0.7078, 0.6641)),
            ),
        ),
        PaperTable(
            3,
            "codeword length",
            (
                _scored("minimal", 16, 512, (0.2464, 0.5924, 0.6126, 0.6023)),
                _scored("minrandom", 25, 512, (0.2760, 0.6359, 0.6583, 0.6469)),
                _scored("minrandom", 50, 512, (0.3134, 0.6577, 0.7348, 0.6934)),
                _scored("minrandom", 75, 512, (0.3177, 0.6689, 0.7278, 0.6971)),
                _scored("minrandom", 100, 512, (0.2583, 0.6835, 0.7551, 0.7175)),
            ),
        ),
        PaperTable(
            4,
            "backbones",
            (
                _scored("minrandom", 50, 512, (0.3134, 0.6577, 0.7348, 0.6934)),
                _scored("minrandom", 75, 512, (0.2821, 0.6851, 0.7759, 0.7268), "Qwen2-1.5B"),
                _scored("minrandom", 100, 512, (0.2693, 0.6683, 0.7579, 0.7102), "TinyLlama-1.1B"),
            ),
        ),
    )
}
