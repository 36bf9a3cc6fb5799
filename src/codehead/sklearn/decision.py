"""From what the dichotomizers say to scores of classes: calibration, decoder and its weights, for one code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from codehead.codes.packing import Floats, Integers
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder, Weights, fit, token_scores
from codehead.sklearn.calibration import Calibration
from codehead.sklearn.linear import CHUNK_SCORES, fold


@final
@dataclass(frozen=True, eq=False)
class ClassDecision:
    """Decides between the V classes of `table` by the scores (N, n) of its columns, in float64."""

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

    def folded(self, stacked: Any) -> Any:
        """A linear model that ranks the classes as decoder and stacked dichotomizers do, if it costs less; else None.

        Likelihood on a binary code, and the linear loss on any, rank by the product of codewords and bit logits.
        """
        by_product = self.decoder == "loss_linear" or (self.decoder == "likelihood" and not self.table.is_ternary)
        if stacked is None or not by_product or stacked.coef_.shape[1] >= self.table.length:
            return None
        slope, offset = np.ones(self.table.length), np.zeros(self.table.length)
        if self.calibration:
            slope, offset = self.calibration.slope, self.calibration.offset
        return fold(stacked, self.table.signs().double().numpy(), slope, offset)

    def log_products(self, scores: Floats) -> Floats:
        """Log-probabilities of the codewords (N, V) up to a constant of the sample, tempered if calibrated."""
        sharpness = self.calibration.sharpness if self.calibration else 1.0
        return sharpness * self._decoded(scores, "likelihood")

    def _decoded(self, scores: Floats, decoder: str) -> Floats:
        bit_logits = self.calibration.bit_logits(scores) if self.calibration else scores
        with torch.inference_mode():
            return token_scores(torch.from_numpy(bit_logits), self.table, decoder, weights=self.weights).numpy()
