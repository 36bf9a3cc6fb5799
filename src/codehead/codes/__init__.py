"""Codes: codebooks, the designs that make them, their quality, their files.

NumPy only; `codehead.codes.table` holds the tensor form and is imported separately.
"""

from codehead.codes import additive, data_free, decoc, trees  # noqa: F401  (they register their designs)
from codehead.codes.assignment import assign
from codehead.codes.codebook import Codebook, OneVsAllCodebook, PackedCodebook
from codehead.codes.confusion import Confusion, Evaluation
from codehead.codes.design import DESIGNS, build, default_length
from codehead.codes.ecoc_one import column_weights
from codehead.codes.files import load
from codehead.codes.quality import Quality, quality

__all__ = [
    "DESIGNS",
    "Codebook",
    "Confusion",
    "Evaluation",
    "OneVsAllCodebook",
    "PackedCodebook",
    "Quality",
    "assign",
    "build",
    "column_weights",
    "default_length",
    "load",
    "quality",
]
