"""From what the dichotomizers say to scores of classes: calibration, decoder, weights; and what a code confuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.utils import _safe_indexing, indexable

from codehead.codes import Codebook, Evaluation
from codehead.codes.ecoc_one import VALIDATION_SHARE
from codehead.codes.packing import Floats, Integers, Symbols
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder, Weights, fit, token_scores
from codehead.decoding.soft_bits import fit_sigmoids
from codehead.errors import ConfigurationError
from codehead.sklearn.dichotomizers import CHUNK_SCORES, bit_scores, fit_columns, fold, subset

# From scores of dichotomizers to probabilities: Platt's sigmoid for every bit, one temperature for the posterior.
#
# The sigmoids bring all bits to one scale, that of logits (`codehead.decoding.soft_bits`). The codeword posterior
# takes the errors of the bits for independent; dichotomizers trained on the same samples err together, the more so the
# longer the code, so that it is far too sure. One temperature for its log-probabilities mends most of that (C. Guo and
# others, "On Calibration of Modern Neural Networks", 2017) and changes no ranking.


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


# From what the dichotomizers say to scores of classes: calibration, decoder and its weights, for one code.


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


# What a code confuses, found by training its dichotomizers without some of the samples: for designs that grow.


class HeldOutEvaluation:
    """The `evaluate` of `ecoc_one`: a codebook → confusions on 15% of the samples, and on those learnt from.

    A column is trained once, however many codebooks it is in. Classes are decided by likelihood.
    """

    def __init__(
        self, estimator: Any, X: Any, ids: Integers, params: dict[str, Any], *, n_jobs: int | None, seed: int
    ) -> None:
        (X,) = indexable(X)
        train, test = _split(ids, seed)
        self._estimator, self._n_jobs = estimator, n_jobs
        self._samples = {"train": _safe_indexing(X, train), "test": _safe_indexing(X, test)}
        self._ids = {"train": ids[train], "test": ids[test]}
        self._params = subset(params, train, len(ids))
        self._scores: dict[bytes, dict[str, Floats]] = {}

    def __call__(self, codebook: Codebook) -> Evaluation:
        """Confusions as counts, label by answer, and the share of wrong bits in the samples held out."""
        matrix = codebook.to_array()
        self._train_new(matrix)
        columns = [self._scores[column.tobytes()] for column in matrix.T]
        decision = ClassDecision(CodewordTable(codebook), "likelihood")
        scores = {part: np.stack([column[part] for column in columns], axis=1) for part in self._ids}
        counts = {part: self._confusion(decision.best(scores[part]), part, len(matrix)) for part in self._ids}
        return Evaluation(counts["test"], counts["train"], _error_rates(scores["test"], matrix[self._ids["test"]]))

    def _train_new(self, matrix: Symbols) -> None:
        """Train the columns of a coding matrix (V, n) that were never trained."""
        new = [column for column in matrix.T if column.tobytes() not in self._scores]
        if not new:
            return
        symbols = np.stack(new, axis=1)[self._ids["train"]]
        trained = fit_columns(
            self._estimator, self._samples["train"], symbols, self._params, n_jobs=self._n_jobs, verbose=0
        )
        for column, dichotomizer in zip(new, trained, strict=True):
            scores = {part: bit_scores([dichotomizer], X)[:, 0] for part, X in self._samples.items()}
            self._scores[column.tobytes()] = scores

    def _confusion(self, answers: Integers, part: str, num_classes: int) -> Integers:
        """How often each class was answered with each (V, V)."""
        pairs = np.bincount(self._ids[part] * num_classes + answers, minlength=num_classes**2)
        return np.asarray(pairs.reshape(num_classes, num_classes))


def _split(ids: Integers, seed: int) -> tuple[Integers, Integers]:
    """The numbers of the samples to learn from, at least one of every class, and of those held out, at random."""
    order = np.random.RandomState(seed).permutation(len(ids))
    is_first = np.zeros(len(ids), dtype=bool)
    is_first[np.unique(ids[order], return_index=True)[1]] = True
    count = min(max(1, round(VALIDATION_SHARE * len(ids))), int((~is_first).sum()))
    if not count:
        message = "every class has a single sample, so none can be held out to find what is confused"
        raise ConfigurationError(f"{message}; give more data, or code_params={{'confusion': …}}")
    test = order[~is_first][:count]
    return np.setdiff1d(order, test), test


def _error_rates(scores: Floats, symbols: Symbols) -> Floats:
    """The share of wrong signs (n,) in scores (N, n) where the symbols are not 0; ½ if there are none."""
    looked_at = (symbols != 0).sum(axis=0)
    wrong = ((scores * symbols <= 0) & (symbols != 0)).sum(axis=0)
    return np.asarray(np.where(looked_at > 0, wrong / np.maximum(looked_at, 1), 0.5))
