"""Linear dichotomizers as one: n decision functions in a single matrix product."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model._base import LinearClassifierMixin


def stack(estimators: Sequence[Any]) -> Any:
    """A linear model whose decision function (N, n) has those of all estimators; None if they are not all linear.

    Linear is what has scikit-learn's own linear decision function, and dense coefficients (1, d). The model is a copy
    of the first estimator, so that it checks its input as that does.
    """
    if not estimators or not all(_is_linear(estimator, type(estimators[0])) for estimator in estimators):
        return None
    stacked = copy.copy(estimators[0])
    stacked.coef_ = np.concatenate([estimator.coef_ for estimator in estimators])
    stacked.intercept_ = np.concatenate([np.ravel(estimator.intercept_) for estimator in estimators])
    return stacked


def _is_linear(estimator: Any, kind: type) -> bool:
    inherited = getattr(kind, "decision_function", None) is LinearClassifierMixin.decision_function
    coefficients = getattr(estimator, "coef_", None)
    return (
        type(estimator) is kind
        and inherited
        and isinstance(coefficients, np.ndarray)
        and coefficients.shape[:-1] == (1,)
    )
