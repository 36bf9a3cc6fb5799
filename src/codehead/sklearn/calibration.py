"""From scores of dichotomizers to probabilities: Platt's sigmoid for every bit, one temperature for the posterior.

The sigmoids bring all bits to one scale, that of logits (`codehead.decoding.probabilistic`). The codeword posterior
takes the errors of the bits for independent; dichotomizers trained on the same samples err together, the more so the
longer the code, so that it is far too sure. One temperature for its log-probabilities mends most of that (C. Guo and
others, "On Calibration of Modern Neural Networks", 2017) and changes no ranking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from codehead.codes.packing import Floats, Integers
from codehead.codes.table import CodewordTable
from codehead.decoding import token_scores
from codehead.decoding.probabilistic import fit_sigmoids

LOG_SHARPNESS = (-8.0, 3.0)
"""Where the logarithm of 1 / temperature is looked for."""

FITTED_SCORES = 2**24
"""The most scores of classes that the temperature is fitted to (128 MiB); of more samples every k-th is taken."""


@final
@dataclass(frozen=True, eq=False)
class Calibration:
    """Bit logits are `slope · score + offset`, both (n,); log-probabilities are multiplied by `sharpness`."""

    slope: Floats
    offset: Floats
    sharpness: float

    @classmethod
    def fit(cls, scores: Floats, ids: Integers, table: CodewordTable) -> Calibration:
        """From scores (M, n) that the dichotomizers gave to samples they were not trained on, of the classes `ids`."""
        symbols = table.lookup(torch.from_numpy(ids)).double()
        slope, offset = -fit_sigmoids(torch.from_numpy(scores), symbols).numpy()
        some = slice(None, None, 1 + len(ids) * table.num_classes // FITTED_SCORES)
        log_products = token_scores(torch.from_numpy(slope * scores[some] + offset), table, "likelihood")
        return cls(slope, offset, _sharpness(log_products.numpy(), ids[some]))

    def bit_logits(self, scores: Floats) -> Floats:
        """The calibrated bit logits of scores (N, n)."""
        return self.slope * scores + self.offset


def _sharpness(log_products: Floats, ids: Integers) -> float:
    """The factor under which the softmax of the scores (M, V) has the least cross entropy."""

    def cross_entropy(log_factor: float) -> float:
        scaled = np.exp(log_factor) * log_products
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(ids)), ids]))

    return float(np.exp(minimize_scalar(cross_entropy, bounds=LOG_SHARPNESS, method="bounded").x))
