"""What scikit-learn demands: of any estimator, and in its own tests of its own OutputCodeClassifier."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.tests import test_multiclass as theirs
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from codehead.sklearn import OutputCodeClassifier

CALIBRATION = "folds are drawn from the samples as they are, whatever their weight"


def expected_failures(classifier: OutputCodeClassifier) -> dict[str, str]:
    """scikit-learn's own CalibratedClassifierCV is excused from these for the same reason."""
    if classifier.calibration is None:
        return {}
    names = ("check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data")
    return dict.fromkeys(names, CALIBRATION)


@parametrize_with_checks(
    [
        OutputCodeClassifier(LogisticRegression(C=1)),
        OutputCodeClassifier(LogisticRegression(C=1), code="one_vs_one"),
        OutputCodeClassifier(DecisionTreeClassifier(random_state=0), code="minrandom", bits=8),
        OutputCodeClassifier(LinearSVC(), calibration="platt", cv=2),
    ],
    expected_failed_checks=expected_failures,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


def own_tests() -> list[str]:
    """The tests of scikit-learn's module that name the class."""
    functions = inspect.getmembers(theirs, inspect.isfunction)
    return [name for name, test in functions if name.startswith("test_") and uses_the_class(test)]


def uses_the_class(test: Any) -> bool:
    return test.__module__ == theirs.__name__ and "OutputCodeClassifier" in test.__code__.co_names


def arguments(test: Any) -> Iterator[dict[str, Any]]:
    """What pytest would call a test of at most one parameter with."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    if not marks:
        yield {}
    for mark in marks:
        for value in mark.args[1]:
            yield {mark.args[0]: value}


def test_there_are_such_tests() -> None:
    assert {"test_ecoc_fit_predict", "test_ecoc_gridsearch", "test_ecoc_float_y"} <= set(own_tests())


@pytest.mark.parametrize("name", own_tests())
def test_their_tests_pass_with_our_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "OutputCodeClassifier", OutputCodeClassifier)
    test = getattr(theirs, name)
    for options in arguments(test):
        test(**options)
