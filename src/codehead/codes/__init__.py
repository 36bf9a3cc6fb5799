"""What a token's codeword is: codebooks, the designs that make them, their quality, their files.

NumPy only; `codehead.codes.table` holds the tensor form and is imported on its own.
"""

from codehead.codes import custom, decoc, itq, merged_trees, random_designs, structured  # noqa: F401  (they register their designs)
from codehead.codes.assignment import assign
from codehead.codes.codebook import Codebook, OneVsAllCodebook, PackedCodebook
from codehead.codes.design import DESIGNS, build
from codehead.codes.files import load
from codehead.codes.quality import Quality, quality

__all__ = [
    "DESIGNS",
    "Codebook",
    "OneVsAllCodebook",
    "PackedCodebook",
    "Quality",
    "assign",
    "build",
    "load",
    "quality",
]
