"""From what the dichotomizers say to scores of classes: calibration, decoder and its weights, for one code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from codehead.codes.arrays import Floats, Integers
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder, Weights, fit, token_scores
from codehead.sklearn.calibration import Calibration

CHUNK_SCORES = 2**22
"""Scores of classes that are held at a time to find the best (32 MiB)."""


@final
@dataclass(frozen=True, eq=False)
class ClassDecision:
    """Decides between the V classes of `table` by the scores (N, n) of its columns; nothing is 32-bit."""

    table: CodewordTable
    decoder: str
    calibration: Calibration | None = None
    weights: Weights | None = None

    @classmethod
    def fit(
        cls, table: CodewordTable, decoder: str, scores: Floats, ids: Integers, *, calibrated: bool
    ) -> ClassDecision:
        """Calibration and weights, where there are any, are fitted to scores (M, n) of samples of the classes `ids`."""
        calibration = Calibration.fit(scores, ids, table) if calibrated else None
        bit_logits = calibration.bit_logits(scores) if calibration else scores
        is_fitted = isinstance(DECODERS.get(decoder), FittedDecoder)
        weights = fit(decoder, torch.from_numpy(bit_logits), torch.from_numpy(ids), table) if is_fitted else None
        return cls(table, decoder, calibration, weights)

    def class_scores(self, scores: Floats) -> Floats:
        """The decoder's scores of all classes (N, V)."""
        return self._decoded(scores, self.decoder)

    def best(self, scores: Floats) -> Integers:
        """The classes (N,) of the highest scores, of equal ones the first; no more than a chunk of scores is held."""
        rows = max(1, CHUNK_SCORES // self.table.num_classes)
        pieces = (scores[start : start + rows] for start in range(0, len(scores), rows))
        return np.concatenate([self.class_scores(piece).argmax(axis=1) for piece in pieces])

    def log_products(self, scores: Floats) -> Floats:
        """Log-probabilities of the codewords (N, V) up to a constant of the sample, tempered if calibrated."""
        sharpness = self.calibration.sharpness if self.calibration else 1.0
        return sharpness * self._decoded(scores, "likelihood")

    def _decoded(self, scores: Floats, decoder: str) -> Floats:
        bit_logits = self.calibration.bit_logits(scores) if self.calibration else scores
        with torch.inference_mode():
            return token_scores(torch.from_numpy(bit_logits), self.table, decoder, weights=self.weights).numpy()
