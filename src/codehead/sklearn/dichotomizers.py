"""Dichotomizers: one binary classifier for every column of a code, trained on the classes the column looks at."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples

from codehead.codes.packing import Floats, Integers, Symbols
from codehead.errors import ConfigurationError, DataError

SURE = float(np.finfo(np.float32).eps)
"""Probabilities are taken to be no nearer to 0 or 1 than this: bit logits of at most ±15.9."""


class ConstantDichotomizer(ClassifierMixin, BaseEstimator):
    """Stands for a column that asks nothing of the classes it was trained on: the answer is always `side`, 0 or 1."""

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
    estimator: Any, X: Any, symbols: Symbols, params: dict[str, Any], *, n_jobs: int | None, verbose: int
) -> list[Any]:
    """A fitted clone of the estimator for each column of `symbols` (N, n), what the code has for each sample.

    `params` go to `fit`, those with a value per sample reduced to the samples of the column.
    """
    X = _indexable(X, symbols)
    jobs = (delayed(_fit)(estimator, X, column, params) for column in symbols.T)
    return list(Parallel(n_jobs=n_jobs, verbose=verbose)(jobs))


def partial_fit_columns(
    estimator: Any,
    trained: Sequence[Any],
    X: Any,
    symbols: Symbols,
    params: dict[str, Any],
    *,
    n_jobs: int | None,
    verbose: int,
) -> list[Any]:
    """Every trained dichotomizer after a further batch; one whose column looks at no sample of it stays as it is.

    One that is constant, as its column has looked at none before, becomes a clone of the estimator.
    """
    X = _indexable(X, symbols)
    jobs = (
        delayed(_partial_fit)(estimator, dichotomizer, X, column, params)
        for dichotomizer, column in zip(trained, symbols.T, strict=True)
    )
    return list(Parallel(n_jobs=n_jobs, verbose=verbose)(jobs))


def _indexable(X: Any, symbols: Symbols) -> Any:
    """The data in a form whose rows can be chosen, if they will be."""
    return X if symbols.all() else indexable(X)[0]


def _fit(estimator: Any, X: Any, symbols: Symbols, params: dict[str, Any]) -> Any:
    X, sides, params = _looked_at(X, symbols, params)
    if not len(sides) or (sides == sides[0]).all():
        return ConstantDichotomizer(int(sides[0]) if len(sides) else 1)
    return clone(estimator).fit(X, sides, **params)


def _partial_fit(estimator: Any, trained: Any, X: Any, symbols: Symbols, params: dict[str, Any]) -> Any:
    X, sides, params = _looked_at(X, symbols, params)
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
    return _safe_indexing(X, chosen), sides, subset(params, chosen, len(symbols))


def subset(params: dict[str, Any], chosen: Integers, num_samples: int) -> dict[str, Any]:
    """Fit parameters for some of the samples: those with a value per sample are reduced, others left as they are."""
    return {
        name: _safe_indexing(value, chosen)
        if hasattr(value, "__len__") and not isinstance(value, (str, dict)) and _num_samples(value) == num_samples
        else value
        for name, value in params.items()
    }


def bit_scores(estimators: Sequence[Any], X: Any, stacked: Any = None) -> Floats:
    """What the dichotomizers say of the samples, float64 (N, n): positive means +1.

    The decision function where there is one, else the logit of the probability. `stacked` is what
    `codehead.sklearn.dichotomizers.stack` made of the estimators, if anything: then it takes one matrix product.
    A DataError if a score is not finite: no class is nearest then.
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
    estimator: Any,
    X: Any,
    y: Integers,
    matrix: Symbols,
    params: dict[str, Any],
    *,
    cv: Any,
    n_jobs: int | None,
    verbose: int,
) -> tuple[Floats, Integers]:
    """Bit scores (M, n) of samples that the dichotomizers were not trained on, and their class ids (M,).

    The folds are those of `check_cv(cv, y)`; M is N if every sample is in one test fold.
    """
    (X,) = indexable(X)
    scores, labels = [], []
    for train, test in _folds(X, y, cv):
        some = (_safe_indexing(X, train), matrix[y[train]], subset(params, train, len(y)))
        estimators = fit_columns(estimator, *some, n_jobs=n_jobs, verbose=verbose)
        scores.append(bit_scores(estimators, _safe_indexing(X, test), stack(estimators)))
        labels.append(y[test])
    return np.concatenate(scores), np.concatenate(labels)


def _folds(X: Any, y: Integers, cv: Any) -> list[tuple[Integers, Integers]]:
    try:
        with warnings.catch_warnings():  # a class too rare to be in every fold is no trouble: others tell columns apart
            warnings.filterwarnings("ignore", message="The least populated class in y")
            return list(check_cv(cv, y, classifier=True).split(X, y))
    except ValueError as error:
        message = f"cv={cv!r} cannot split these {len(y)} samples into training and test folds ({error})"
        remedy = "give fewer folds, more data, or a splitter"
        if "groups" in str(error):
            remedy = "give the folds of a splitter by groups themselves, cv=list(splitter.split(X, y, groups))"
        raise ConfigurationError(f"{message}; {remedy}") from error


# Linear dichotomizers as one: n decision functions in a single matrix product, and that of the code folded into it.


CHUNK_SCORES = 2**18
"""Scores of classes that are computed at a time to find the best: 2 MiB, which a processor's cache holds."""


def stack(estimators: Sequence[Any]) -> Any:
    """A linear model whose decision function (N, n) has those of all estimators; None if they are not all linear.

    Linear is what has scikit-learn's own linear decision function, and dense coefficients (1, d) or (d,). The model is
    a copy of the first estimator, so that it checks its input as that does.
    """
    if not all(_is_linear(estimator, type(estimators[0])) for estimator in estimators):
        return None
    stacked = copy.copy(estimators[0])
    stacked.coef_ = np.concatenate([np.atleast_2d(estimator.coef_) for estimator in estimators])
    stacked.intercept_ = np.concatenate([np.ravel(estimator.intercept_) for estimator in estimators])
    return stacked


def fold(stacked: Any, matrix: Floats, slope: Floats, offset: Floats) -> Any:
    """A linear model whose decision function (N, V) is `matrix` (V, n) times the bit logits of a stacked model.

    The bit logits are `slope · decision function + offset`, both (n,).
    """
    folded = copy.copy(stacked)
    folded.coef_ = (matrix * slope) @ stacked.coef_
    folded.intercept_ = matrix @ (slope * stacked.intercept_ + offset)
    return folded


def best_class(model: Any, X: Any, num_classes: int) -> Integers:
    """Where the decision function (N, V) of a linear model is largest, the first such class (N,)."""
    (X,) = indexable(X)
    rows = max(1, CHUNK_SCORES // num_classes)
    starts = range(0, max(_num_samples(X), 1), rows)
    pieces = (model.decision_function(_safe_indexing(X, slice(start, start + rows))) for start in starts)
    return np.concatenate([scores.argmax(axis=1) for scores in pieces])


def _is_linear(estimator: Any, kind: type) -> bool:
    inherits = getattr(kind, "decision_function", None) is LinearClassifierMixin.decision_function
    coefficients = getattr(estimator, "coef_", None)
    if type(estimator) is not kind or not inherits or not isinstance(coefficients, np.ndarray):
        return False
    return coefficients.ndim == 1 or coefficients.shape[0] == 1
