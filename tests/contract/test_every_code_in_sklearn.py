"""Every design with every decoder in scikit-learn's hands, against the plain way of doing it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from codehead.codes import DESIGNS
from codehead.codes.codebook import PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder
from codehead.errors import DataError
from codehead.sklearn import OutputCodeClassifier
from reference_decoders import true_scores

V = 6
X, NUMBERS = make_blobs(90, 5, centers=V, cluster_std=4.0, random_state=1)
Y = np.array(["ant", "bee", "cat", "dog", "elk", "fox"])[NUMBERS]
MATRIX = 2 * np.eye(V, V + 2, dtype=int) - 1
MATRIX[:, -1] = [1, -1, 0, 0, 1, -1]


def classifier(design: str, **options: Any) -> OutputCodeClassifier:
    params = {"array": MATRIX} if design == "custom" else None
    made = OutputCodeClassifier(LinearSVC(dual=False), code=design, code_params=params, random_state=3, cv=2, **options)
    return made.fit(X, Y)


@cache
def plain(design: str) -> OutputCodeClassifier:
    return classifier(design, code_size=1.5)


@pytest.mark.parametrize("design", DESIGNS.names())
def test_a_dichotomizer_learns_the_classes_its_column_looks_at(design: str) -> None:
    fitted = plain(design)
    assert fitted.code_book_.shape == (V, len(fitted.estimators_))
    for column, estimator in zip(fitted.code_book_.T, fitted.estimators_, strict=True):
        sides = column[NUMBERS]
        if set(sides[sides != 0]) == {-1, 1}:
            alone = clone(fitted.estimator).fit(X[sides != 0], sides[sides != 0])
            np.testing.assert_allclose(estimator.coef_, alone.coef_)


UNCALIBRATED = [(design, decoder, None) for design in DESIGNS.names() for decoder in DECODERS.names()]
CALIBRATED = [(design, "likelihood", "platt") for design in DESIGNS.names()]
CALIBRATED += [("sparse_random", decoder, "platt") for decoder in DECODERS.names() if decoder != "likelihood"]


@pytest.mark.parametrize(("design", "decoder", "calibration"), UNCALIBRATED + CALIBRATED)
def test_scores_equal_the_plain_definition(design: str, decoder: str, calibration: str | None) -> None:
    if calibration is None and not isinstance(DECODERS.get(decoder), FittedDecoder):
        fitted = clone(plain(design)).set_params(decoder=decoder).fit(X, Y)
    else:
        fitted = classifier(design, code_size=1.5, decoder=decoder, calibration=calibration)
    matrix = fitted.code_book_
    asked = [j for j in range(matrix.shape[1]) if {-1, 1} <= set(matrix[:, j])]
    z = np.stack([fitted.estimators_[j].decision_function(X) for j in asked], axis=1)
    if calibration:
        z = fitted.calibration_.slope * z + fitted.calibration_.offset
    table = CodewordTable(PackedCodebook.from_array(matrix[:, asked]))
    weights = fitted._decision.weights
    truth = true_scores(torch.from_numpy(z), table, decoder, weights).numpy()
    found = fitted.decision_function(X)
    if decoder == "likelihood":  # defined up to a constant of the sample
        found, truth = (scores - scores.max(axis=1, keepdims=True) for scores in (found, truth))
    tolerance = 1e-6 if decoder in ("inverse_hamming", "probabilistic") else 1e-9
    np.testing.assert_allclose(found, truth, rtol=tolerance, atol=tolerance)
    best = np.take_along_axis(found, np.searchsorted(fitted.classes_, fitted.predict(X))[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(best, found.max(axis=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("design", DESIGNS.names())
def test_separable_classes_are_learnt(design: str) -> None:
    points = 40 * np.eye(V)[NUMBERS] + np.random.default_rng(1).standard_normal((len(NUMBERS), V))
    assert clone(plain(design)).fit(points, Y).score(points, Y) > 0.95


@pytest.mark.parametrize("design", DESIGNS.names())
def test_text_is_learnt_through_a_pipeline(design: str) -> None:
    text = [f"the {label} sleeps" for label in Y]
    pipeline = make_pipeline(CountVectorizer(), LinearSVC(dual=False))
    assert clone(plain(design)).set_params(estimator=pipeline).fit(text, Y).score(text, Y) == 1


@pytest.mark.parametrize("design", DESIGNS.names())
def test_missing_values_go_to_the_estimator_or_are_refused_with_a_remedy(design: str) -> None:
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    tree = clone(plain(design)).set_params(estimator=DecisionTreeClassifier(random_state=0))
    if "prototypes" in DESIGNS.get(design).params():
        with pytest.raises(DataError, match=rf"code='{design}' computes with; make estimator a pipeline"):
            tree.fit(gaps, Y)
    else:
        assert tree.fit(gaps, Y).score(gaps, Y) > 0.9
