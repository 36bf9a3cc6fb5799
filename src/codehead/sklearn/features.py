"""The numbers that a design which looks at the data is shown: the samples themselves, or what a pipeline makes of them.

Dichotomizers may take what no design can compute with: text, categories, missing values. A pipeline says itself how
these become numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array

from codehead.codes.packing import Integers
from codehead.errors import DataError


def numeric_features(X: Any, ids: Integers, estimator: Any, design: str) -> Any:
    """Finite features of the samples, float64 (N, d), dense or CSR.

    These are X itself or, where it is no such matrix, what the steps of a pipeline before its classifier make of it,
    fitted to all samples and their class ids (N,).

    Raises:
        DataError: there is no such pipeline, a step of it fails, or its features are not finite numbers either.
    """
    try:
        return check_array(X, accept_sparse="csr", dtype=np.float64)
    except (TypeError, ValueError) as error:
        reason = error
    if not isinstance(estimator, Pipeline) or len(estimator) < 2:
        found = f"X is not a matrix of finite numbers ({_first_line(reason)})"
        raise DataError(f"{found}, which code={design!r} computes with; {_remedy(True)}") from reason
    try:
        features = clone(estimator[:-1]).fit_transform(X, ids)
        return check_array(features, accept_sparse="csr", dtype=np.float64)
    except (TypeError, ValueError) as error:
        found = f"the steps of the pipeline before its classifier make no finite numbers of X ({_first_line(error)})"
        raise DataError(f"{found}, which code={design!r} computes with; {_remedy(False)}") from error


def _remedy(may_be_prepared: bool) -> str:
    steps = "make estimator a pipeline whose first steps turn X into finite numbers, " if may_be_prepared else ""
    return (
        f"{steps}give code_params={{'prototypes': …}}, a row of numbers for every class, or choose a code that does "
        "not look at X, such as 'dense_random'"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
