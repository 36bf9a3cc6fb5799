"""Linear dichotomizers as one: n decision functions in a single matrix product, and that of the code folded into it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.validation import _num_samples

from codehead.codes.packing import Floats, Integers

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
