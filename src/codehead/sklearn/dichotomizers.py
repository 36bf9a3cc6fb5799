"""Dichotomizers, one binary classifier per column of a code: how they are trained and decide between classes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logit, logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params, _num_samples

from codehead.codes.packing import Floats, Integers, Symbols, slices
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder, Weights, fit, token_scores
from codehead.decoding.soft_bits import fit_sigmoids
from codehead.errors import ConfigurationError, DataError

SURE = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to this distance from 0 and 1: bit logits of at most ±15.9."""


class ConstantDichotomizer(ClassifierMixin, BaseEstimator):
    """Replaces a dichotomizer whose training classes are all on one side: the answer is always `side`, 0 or 1."""

    def __init__(self, side: int = 1) -> None:
        self.side = side

    @property
    def classes_(self) -> Integers:
        return np.array([self.side])

    def predict(self, X: Any) -> Integers:
        return np.full(_num_samples(X), self.side)

    def decision_function(self, X: Any) -> Floats:
        """Bit logits of 0: the answer has no weight."""
        return np.zeros(_num_samples(X))


def fit_columns(
    estimator: Any,
    X: Any,
    symbols: Symbols,
    params: dict[str, Any],
    parallel: Parallel,
    trained: Sequence[Any] | None = None,
) -> list[Any]:
    """A fitted clone of the estimator for each column of `symbols` (N, n), the code's symbols for each sample.

    With `trained` dichotomizers, these are trained on a further batch: one whose column looks at no sample of the batch
    stays as it is; a constant one, whose column has seen no sample before, becomes a clone of the estimator. `params`
    go to `fit` or `partial_fit`; those with a value per sample are reduced to the samples of the column.
    """
    X = X if symbols.all() else indexable(X)[0]  # rows can be chosen, if they will be
    learners = trained or [None] * symbols.shape[1]
    jobs = (
        delayed(_fit)(estimator, learner, X, column, params)
        for learner, column in zip(learners, symbols.T, strict=True)
    )
    return list(parallel(jobs))


def _fit(estimator: Any, trained: Any, X: Any, symbols: Symbols, params: dict[str, Any]) -> Any:
    X, sides, params = _looked_at(X, symbols, params)
    if trained is None:
        if not len(sides) or (sides == sides[0]).all():
            return ConstantDichotomizer(int(sides[0]) if len(sides) else 1)
        return clone(estimator).fit(X, sides, **params)
    if not len(sides):
        return trained
    learner = clone(estimator) if isinstance(trained, ConstantDichotomizer) else trained
    return learner.partial_fit(X, sides, classes=np.array([0, 1]), **params)


def _looked_at(X: Any, symbols: Symbols, params: dict[str, Any]) -> tuple[Any, Integers, dict[str, Any]]:
    """The samples of a column whose symbol is not 0, their sides (0 or 1), and the parameters that go with them."""
    chosen = np.flatnonzero(symbols)
    sides = (symbols[chosen] > 0).astype(int)
    if len(chosen) == len(symbols):
        return X, sides, params
    return _safe_indexing(X, chosen), sides, _check_method_params(X, params, chosen)


def bit_scores(estimators: Sequence[Any], X: Any, stacked: Any = None) -> Floats:
    """The dichotomizers' scores of the samples, float64 (N, n): positive means +1.

    The decision function where there is one, else the logit of the probability. `stacked` is the result of
    `codehead.sklearn.dichotomizers.stack` for the estimators, if any: then one matrix product is enough.
    DataError if a score is not finite: then no class is nearest.
    """
    if stacked is None:
        scores = np.stack([_score(estimator, X) for estimator in estimators], axis=1)
    else:
        scores = np.asarray(stacked.decision_function(X), dtype=np.float64).reshape(-1, len(estimators))
    if not np.isfinite(scores).all():
        message = f"{type(estimators[0]).__name__} gave a score that is not finite: its training diverged"
        raise DataError(f"{message}; scale the features, or lower its learning rate")
    return scores


def _score(estimator: Any, X: Any) -> Floats:
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(X), dtype=np.float64).reshape(_num_samples(X))
    return np.asarray(logit(np.clip(estimator.predict_proba(X)[:, 1].astype(np.float64), SURE, 1 - SURE)))


def out_of_fold_scores(
    estimator: Any, X: Any, y: Integers, matrix: Symbols, params: dict[str, Any], cv: Any, parallel: Parallel
) -> tuple[Floats, Integers]:
    """Bit scores (M, n) of samples that the dichotomizers were not trained on, and their class ids (M,).

    The folds are those of `check_cv(cv, y)`; M is N if every sample is in one test fold.
    """
    (X,) = indexable(X)
    scores, labels = [], []
    for train, test in _folds(X, y, cv):
        some = (_safe_indexing(X, train), matrix[y[train]], _check_method_params(X, params, train))
        estimators = fit_columns(estimator, *some, parallel)
        scores.append(bit_scores(estimators, _safe_indexing(X, test), stack(estimators)))
        labels.append(y[test])
    return np.concatenate(scores), np.concatenate(labels)


def _folds(X: Any, y: Integers, cv: Any) -> list[tuple[Integers, Integers]]:
    try:
        with warnings.catch_warnings():
            # A class too rare to be in every fold does no harm: other classes fit the columns.
            warnings.filterwarnings("ignore", message="The least populated class in y")
            return list(check_cv(cv, y, classifier=True).split(X, y))
    except ValueError as error:
        message = f"cv={cv!r} cannot split these {len(y)} samples into training and test folds ({error})"
        remedy = "give fewer folds, more data, or a splitter"
        if "groups" in str(error):
            remedy = "give the folds of a splitter by groups themselves, cv=list(splitter.split(X, y, groups))"
        raise ConfigurationError(f"{message}; {remedy}") from error


# Linear dichotomizers as one: n decision functions in a single matrix product, with the code's product folded in.


CHUNK_SCORES = 2**18
"""Class scores computed at a time to find the best: 2 MiB, which fits into a processor's cache."""


def stack(estimators: Sequence[Any]) -> Any:
    """A linear model with the decision functions (N, n) of all estimators; None if they are not all linear.

    Linear means scikit-learn's own linear decision function and dense coefficients (1, d) or (d,). The model is a copy
    of the first estimator, so that it checks its input in the same way.
    """
    if not all(_is_linear(estimator, type(estimators[0])) for estimator in estimators):
        return None
    stacked = copy.copy(estimators[0])
    stacked.coef_ = np.concatenate([np.atleast_2d(estimator.coef_) for estimator in estimators])
    stacked.intercept_ = np.concatenate([np.ravel(estimator.intercept_) for estimator in estimators])
    return stacked


def best_class(scores: Callable[[slice], Floats], num_samples: int, num_classes: int) -> Integers:
    """The classes (N,) with the highest `scores` (rows, V), the first of equal ones, in little memory."""
    pieces = slices(num_samples, CHUNK_SCORES // num_classes)
    return np.concatenate([scores(some).argmax(axis=1) for some in pieces])


def _is_linear(estimator: Any, kind: type) -> bool:
    inherits = getattr(kind, "decision_function", None) is LinearClassifierMixin.decision_function
    coefficients = getattr(estimator, "coef_", None)
    if type(estimator) is not kind or not inherits or not isinstance(coefficients, np.ndarray):
        return False
    return coefficients.ndim == 1 or coefficients.shape[0] == 1


# From scores of dichotomizers to probabilities: Platt's sigmoid for every bit, one temperature for the posterior.
#
# The sigmoids bring all bits to one scale, that of logits (`codehead.decoding.soft_bits`). The codeword posterior
# treats the errors of the bits as independent; dichotomizers trained on the same samples err together, more so for
# longer codes, so it is overconfident. One temperature for its log-probabilities corrects most of this (C. Guo and
# others, "On Calibration of Modern Neural Networks", 2017) and changes no ranking.


LOG_SHARPNESS = (-8.0, 3.0)
"""Search range for the logarithm of 1 / temperature."""

FITTED_SCORES = 2**24
"""The most class scores that the temperature is fitted to (128 MiB); with more samples, every k-th is used."""


@final
@dataclass(frozen=True, eq=False)
class Calibration:
    """Bit logits are `slope · score + offset`, both (n,); log-probabilities are multiplied by `sharpness`."""

    slope: Floats
    offset: Floats
    sharpness: float

    @classmethod
    def fit(cls, scores: Floats, ids: Integers, table: CodewordTable) -> Calibration:
        """Fit to the dichotomizers' scores (M, n) of samples that they were not trained on, of the classes `ids`."""
        symbols = table.lookup(torch.from_numpy(ids)).double()
        slope, offset = -fit_sigmoids(torch.from_numpy(scores), symbols).numpy()
        some = slice(None, None, 1 + len(ids) * table.num_classes // FITTED_SCORES)
        log_products = token_scores(torch.from_numpy(slope * scores[some] + offset), table, "likelihood")
        return cls(slope, offset, _sharpness(log_products.numpy(), ids[some]))

    def bit_logits(self, scores: Floats) -> Floats:
        """The calibrated bit logits of scores (N, n)."""
        return self.slope * scores + self.offset


def _sharpness(log_products: Floats, ids: Integers) -> float:
    """The factor that minimises the cross entropy of the softmax of the scores (M, V)."""

    def cross_entropy(log_factor: float) -> float:
        scaled = np.exp(log_factor) * log_products
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(ids)), ids]))

    return float(np.exp(minimize_scalar(cross_entropy, bounds=LOG_SHARPNESS, method="bounded").x))


# From the dichotomizers' scores to scores of classes: calibration, decoder and its weights, for one code.


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
        """The classes (N,) with the highest scores, the first of equal ones."""
        return best_class(lambda some: self.class_scores(scores[some]), len(scores), self.table.num_classes)

    def folded(self, stacked: Any) -> Any:
        """A linear model that ranks classes as decoder and stacked dichotomizers do, if it costs less; else None.

        Its decision function (N, V) is the matrix of codewords (V, n) times the bit logits of the stacked model.
        Likelihood on a binary code, and the linear loss on any, rank by the product of codewords and bit logits.
        """
        by_product = self.decoder == "loss_linear" or (self.decoder == "likelihood" and not self.table.is_ternary)
        if stacked is None or not by_product or stacked.coef_.shape[1] >= self.table.length:
            return None
        slope, offset = (self.calibration.slope, self.calibration.offset) if self.calibration else (1.0, 0.0)
        matrix, folded = self.table.signs().double().numpy(), copy.copy(stacked)
        folded.coef_ = (matrix * slope) @ stacked.coef_
        folded.intercept_ = matrix @ (slope * stacked.intercept_ + offset)
        return folded

    def log_products(self, scores: Floats) -> Floats:
        """Log-probabilities of the codewords (N, V) up to a constant of the sample, tempered if calibrated."""
        sharpness = self.calibration.sharpness if self.calibration else 1.0
        return sharpness * self._decoded(scores, "likelihood")

    def _decoded(self, scores: Floats, decoder: str) -> Floats:
        bit_logits = self.calibration.bit_logits(scores) if self.calibration else scores
        with torch.inference_mode():
            return token_scores(torch.from_numpy(bit_logits), self.table, decoder, weights=self.weights).numpy()
