"""Names for the kinds of NumPy arrays that codes are made of."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Symbols: TypeAlias = npt.NDArray[np.int8]
"""Values −1, 0 and +1."""

Bytes: TypeAlias = npt.NDArray[np.uint8]
"""A packed plane, or raw random bytes."""

Words: TypeAlias = npt.NDArray[np.uint64]
"""Packed planes, 64 symbols at a time."""

Integers: TypeAlias = npt.NDArray[np.signedinteger[Any]]
"""Class ids, column numbers, counts."""

Floats: TypeAlias = npt.NDArray[np.float64]
"""Prototypes and what is computed from them."""
