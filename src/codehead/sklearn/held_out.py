"""What a code confuses, found by training its dichotomizers without some of the samples: for designs that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, indexable

from codehead.codes import Codebook, Evaluation
from codehead.codes.ecoc_one import VALIDATION_SHARE
from codehead.codes.packing import Floats, Integers, Symbols
from codehead.codes.table import CodewordTable
from codehead.errors import ConfigurationError
from codehead.sklearn.decision import ClassDecision
from codehead.sklearn.dichotomizers import bit_scores, fit_columns, subset


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
