"""OutputCodeClassifier as its users meet it: labels, data, weights, batches, pipelines, refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn")

import joblib
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_blobs
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    LeaveOneGroupOut,
    ShuffleSplit,
    StratifiedGroupKFold,
    cross_val_score,
)
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from codehead.codes import build
from codehead.errors import CodebookError, ConfigurationError, DataError
from codehead.sklearn import OutputCodeClassifier
from codehead.sklearn.dichotomizers import ConstantDichotomizer

V = 6
X, NUMBERS = make_blobs(240, 8, centers=V, cluster_std=5.0, random_state=0)
Y = np.array(["ant", "bee", "cat", "dog", "elk", "fox"])[NUMBERS]
TRAIN, TEST = slice(0, 120), slice(120, None)
SVM = LinearSVC(dual=False)


def fitted(estimator: Any = SVM, **options: Any) -> OutputCodeClassifier:
    return OutputCodeClassifier(estimator, random_state=0, **options).fit(X[TRAIN], Y[TRAIN])


def test_importing_the_package_imports_no_scikit_learn() -> None:
    program = "import sys, codehead, codehead.codes; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_scikit_learn_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("codehead.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'codehead\[sklearn\]'"):
        import codehead.sklearn  # noqa: F401


def test_attributes_are_those_of_scikit_learn() -> None:
    classifier = fitted(code_size=2)
    assert classifier.classes_.tolist() == ["ant", "bee", "cat", "dog", "elk", "fox"]
    assert classifier.code_book_.shape == (V, 2 * V) == (V, len(classifier.estimators_))
    assert classifier.n_features_in_ == 8
    assert classifier.estimators_[0].classes_.tolist() == [0, 1]
    assert set(classifier.predict(X[TEST])) <= set(Y)
    assert classifier.codebook_.checksum == build("dense_random", V, bits=2 * V, seed=0).checksum


def test_the_seed_chooses_the_code() -> None:
    one, two = (OutputCodeClassifier(SVM, random_state=seed).fit(X, Y).code_book_ for seed in (1, 2))
    assert not np.array_equal(one, two)
    state = [OutputCodeClassifier(SVM, random_state=np.random.RandomState(5)).fit(X, Y).code_book_ for _ in range(2)]
    assert np.array_equal(*state)


@pytest.mark.parametrize("code", [build("gray", V), build("one_vs_all", V), 2 * np.eye(V + 3, V, dtype=int) - 1])
def test_codebooks_and_matrices_are_codes(code: Any) -> None:
    classifier = fitted(code=code)
    matrix = code if isinstance(code, np.ndarray) else code.to_array()
    assert np.array_equal(classifier.code_book_, matrix[:V])
    assert classifier.score(X[TEST], Y[TEST]) > 0.5


def test_data_driven_codes_see_class_means_or_what_they_are_given() -> None:
    classifier = fitted(code="itq", bits=8)
    means = np.stack([X[TRAIN][Y[TRAIN] == label].mean(axis=0) for label in classifier.classes_])
    assert np.array_equal(classifier.code_book_, build("itq", V, bits=8, prototypes=means).to_array())
    other = np.random.default_rng(0).standard_normal((V, 4))
    given = fitted(code="itq", bits=8, code_params={"prototypes": other})
    assert np.array_equal(given.code_book_, build("itq", V, bits=8, prototypes=other).to_array())


def test_weighted_and_sparse_class_means() -> None:
    weights = np.random.default_rng(0).random(len(X))
    dense, sparse = (
        OutputCodeClassifier(LogisticRegression(), code="itq", bits=7, random_state=0).fit(data, Y, weights)
        for data in (X, sp.csr_matrix(X))
    )
    means = np.stack([np.average(X[c == Y], axis=0, weights=weights[c == Y]) for c in dense.classes_])
    assert np.array_equal(dense.code_book_, build("itq", V, bits=7, prototypes=means).to_array())
    assert np.array_equal(dense.code_book_, sparse.code_book_)


def test_samples_go_to_designs_that_take_them() -> None:
    classifier = fitted(code="decoc")
    ids = np.searchsorted(classifier.classes_, Y[TRAIN])
    assert np.array_equal(classifier.code_book_, build("decoc", V, samples=X[TRAIN], labels=ids).to_array())


def test_a_design_computes_with_what_a_pipeline_makes_of_the_data() -> None:
    table = pd.DataFrame({"size": X[:, 0], "kind": np.array(["red", "blue", None])[NUMBERS % 3]})
    table.loc[::7, "size"] = np.nan
    prepare = make_column_transformer((SimpleImputer(), ["size"]), (OneHotEncoder(), ["kind"]), sparse_threshold=0)
    pipeline = make_pipeline(prepare, StandardScaler(), SVM)
    classifier = OutputCodeClassifier(pipeline, code="itq", bits=8, random_state=0).fit(table, Y)
    features = pipeline[:-1].fit_transform(table, NUMBERS)
    means = np.stack([features[c == Y].mean(axis=0) for c in classifier.classes_])
    assert np.array_equal(classifier.code_book_, build("itq", V, bits=8, prototypes=means).to_array())
    given = OutputCodeClassifier(
        HistGradientBoostingClassifier(max_iter=2), code="itq", bits=8, code_params={"prototypes": means}
    )
    assert given.fit(np.where(X > 9, np.nan, X), Y).code_book_.shape == (V, 8)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (SVM, r"could not convert string to float: 'c'\), which code='decoc' computes with; make estimator "),
        (make_pipeline(SVM), "make estimator a pipeline whose first steps turn X into finite numbers"),
        (make_pipeline(FunctionTransformer(), SVM), "the steps of the pipeline before its classifier make no finite"),
        (make_pipeline(StandardScaler(), SVM), "the steps of the pipeline .* choose a code that does not look at X"),
    ],
)
def test_data_without_numbers_are_refused_with_a_remedy(estimator: Any, message: str) -> None:
    words = np.array([["a", "b"], ["c", "d"]], dtype=object)[NUMBERS % 2]
    with pytest.raises(DataError, match=message):
        OutputCodeClassifier(estimator, code="decoc").fit(words, Y)


def test_a_growing_code_is_told_what_held_out_samples_confuse() -> None:
    classifier = fitted(code="ecoc_one", code_params={"stop_error": 0.0})
    params = classifier.codebook_.params
    assert len(params["pairs"]) == 3 and classifier.code_book_.shape == (V, V - 1 + 3)
    assert all(0 < error < 1 for error in params["errors"])


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
@pytest.mark.parametrize("options", [{}, {"code": "one_vs_one", "calibration": "platt"}])
def test_sparse_data(kind: Any, options: dict[str, Any]) -> None:
    dense, sparse = (OutputCodeClassifier(SVM, random_state=0, **options).fit(data, Y) for data in (X, kind(X)))
    np.testing.assert_allclose(dense.decision_function(X), sparse.decision_function(kind(X)), rtol=1e-3, atol=1e-3)


def test_one_product_equals_one_call_per_dichotomizer() -> None:
    for estimator in (SVM, RidgeClassifier(), SGDClassifier(random_state=0), LogisticRegression(max_iter=500)):
        classifier = fitted(estimator, code_size=3, calibration="platt")
        assert classifier._stacked is not None and classifier._folded is not None
        one_by_one = np.stack([each.decision_function(X) for each in classifier.estimators_], axis=1)
        np.testing.assert_allclose(classifier._bit_scores(X), one_by_one)
        folded = classifier._folded.decision_function(X)
        np.testing.assert_allclose(folded, classifier.calibration_.bit_logits(one_by_one) @ classifier.code_book_.T)
        assert np.array_equal(classifier.predict(X), classifier.classes_[classifier.decision_function(X).argmax(1)])


def test_a_fold_is_made_only_where_it_decides_alike_and_costs_less() -> None:
    assert fitted(bits=7)._folded is None  # eight features
    assert fitted(bits=12, decoder="hamming")._folded is None
    assert fitted(code="one_vs_one")._folded is None
    assert fitted(code="one_vs_one", decoder="loss_linear")._folded is not None


def test_predictions_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for classifier in (fitted(code_size=3), fitted(KNeighborsClassifier(3))):
        p = classifier.predict_proba(X)
        monkeypatch.setattr("codehead.sklearn.dichotomizers.CHUNK_SCORES", 7 * V)
        np.testing.assert_allclose(classifier.predict_proba(X), p, rtol=1e-9)
        found = np.searchsorted(classifier.classes_, classifier.predict(X))
        best = np.take_along_axis(p, found[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(best, p.max(axis=1), rtol=1e-9)  # of equal ones it may be the other by rounding
        monkeypatch.undo()


@pytest.mark.parametrize("estimator", [GaussianNB(), KNeighborsClassifier(), DecisionTreeClassifier(random_state=0)])
def test_dichotomizers_that_only_know_probabilities(estimator: Any) -> None:
    classifier = fitted(estimator)
    p = np.stack([each.predict_proba(X)[:, 1] for each in classifier.estimators_], axis=1)
    np.testing.assert_allclose(1 / (1 + np.exp(-classifier._bit_scores(X))), p, atol=2e-7)
    assert classifier.score(X[TEST], Y[TEST]) > 0.6


def test_probabilities_are_the_codeword_posterior() -> None:
    classifier = fitted(LogisticRegression(max_iter=500), decoder="hamming")
    p = classifier.predict_proba(X)
    scores = classifier._bit_scores(X) @ classifier.code_book_.T / 2
    np.testing.assert_allclose(p, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(X)), p)


def test_calibrated_probabilities_are_honest() -> None:
    points, labels = make_blobs(900, 8, centers=V, cluster_std=6.0, random_state=0)
    losses = {}
    for calibration in (None, "platt"):
        classifier = OutputCodeClassifier(SVM, bits=25, calibration=calibration, random_state=0)
        p = classifier.fit(points[:450], labels[:450]).predict_proba(points[450:])
        losses[calibration] = log_loss(labels[450:], p)
        np.testing.assert_allclose(p.sum(axis=1), 1)
    assert losses["platt"] < 0.95 * losses[None]
    assert abs(p.max(axis=1).mean() - classifier.score(points[450:], labels[450:])) < 0.05
    assert classifier.calibration_.sharpness < 0.5  # dichotomizers err together


def test_calibration_learns_from_samples_out_of_fold() -> None:
    """A tree knows its own samples by heart, so that its scores of these say nothing of others."""
    honest = fitted(DecisionTreeClassifier(random_state=0), calibration="platt", cv=ShuffleSplit(1, random_state=0))
    p = honest.predict_proba(X[TEST]).max(axis=1)
    assert p.mean() < 0.95


def test_two_classes_have_one_decision() -> None:
    classifier = OutputCodeClassifier(SVM, random_state=0).fit(X, NUMBERS > 2)
    decision = classifier.decision_function(X)
    assert decision.shape == (len(X),)
    assert np.array_equal(decision > 0, classifier.predict(X))
    assert classifier.predict_proba(X).shape == (len(X), 2)


def test_a_column_that_asks_nothing_changes_nothing() -> None:
    matrix = 2 * np.eye(V, dtype=int) - 1
    wider = np.column_stack([np.ones(V, dtype=int), matrix])
    plain, padded = fitted(code=matrix), fitted(code=wider)
    assert isinstance(padded.estimators_[0], ConstantDichotomizer)
    assert set(padded.estimators_[0].predict(X)) == {1} and not padded.estimators_[0].decision_function(X).any()
    np.testing.assert_array_equal(plain.decision_function(X), padded.decision_function(X))


def test_sample_weights_are_those_of_the_samples_a_column_looks_at() -> None:
    weights = np.where(np.arange(len(X)) % 3 == 0, 0.0, 1.0)
    logistic = LogisticRegression(max_iter=2000, tol=1e-10)
    weighted = OutputCodeClassifier(logistic, code="one_vs_one").fit(X, Y, sample_weight=weights)
    removed = OutputCodeClassifier(logistic, code="one_vs_one").fit(X[weights > 0], Y[weights > 0])
    np.testing.assert_allclose(weighted.decision_function(X), removed.decision_function(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("code", ["one_vs_one", "itq", "dense_random"])
def test_sample_weights_of_another_length_or_not_finite_are_refused(code: str) -> None:
    """With a ternary code as many weights as a column has samples would go to the wrong ones."""
    looked_at = int(np.isin(Y, np.unique(Y)[:2]).sum())
    classifier = OutputCodeClassifier(LogisticRegression(), code=code, random_state=0)
    for weights in (np.ones(looked_at), np.full(len(X), np.nan), np.ones((len(X), 1))):
        with pytest.raises(ValueError, match=r"sample_weight|Sample weights"):
            classifier.fit(X, Y, sample_weight=weights)
    for_all = classifier.fit(X, Y, sample_weight=2).decision_function(X)
    np.testing.assert_allclose(for_all, classifier.fit(X, Y, np.full(len(X), 2.0)).decision_function(X))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_failed_fit_changes_nothing(method: str) -> None:
    classes = {"classes": np.unique(Y)} if method == "partial_fit" else {}
    new = OutputCodeClassifier(SGDClassifier(random_state=0), code="one_vs_one", random_state=0)
    with pytest.raises(ValueError, match="NaN"):
        getattr(new, method)(np.full_like(X, np.nan), Y, **classes)
    with pytest.raises(NotFittedError):
        new.predict(X)
    getattr(new, method)(X, Y, **classes)
    before = new.decision_function(X)
    with pytest.raises(ValueError, match="NaN"):
        new.fit(np.full_like(X, np.nan), np.where(Y == "ant", "bee", Y))
    np.testing.assert_array_equal(new.decision_function(X), before)
    assert new.classes_.tolist() == np.unique(Y).tolist()


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e7])
def test_calibration_does_not_depend_on_the_unit_of_the_scores(scale: float) -> None:
    kernel = SVC(kernel="linear", C=1 / scale**2)
    plain, scaled = (
        OutputCodeClassifier(estimator, code="one_vs_all", calibration="platt").fit(data, Y).predict_proba(data)
        for estimator, data in ((SVC(kernel="linear"), X), (kernel, X * scale))
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-2)


def test_metadata_is_routed_where_it_is_requested() -> None:
    weights = np.where(np.arange(len(X)) % 3 == 0, 0.0, 1.0)
    plain = OutputCodeClassifier(LogisticRegression(), code="one_vs_one").fit(X, Y, weights)
    with sklearn.config_context(enable_metadata_routing=True):
        requesting = LogisticRegression().set_fit_request(sample_weight=True)
        routed = OutputCodeClassifier(requesting, code="one_vs_one").fit(X, Y, sample_weight=weights)
        with pytest.raises(ValueError, match="not explicitly set as requested"):
            OutputCodeClassifier(LogisticRegression()).fit(X, Y, sample_weight=weights)
    np.testing.assert_allclose(plain.decision_function(X), routed.decision_function(X))


def test_batches_train_the_dichotomizers_further() -> None:
    classes, sgd = np.unique(Y), SGDClassifier(random_state=0)
    classifier = OutputCodeClassifier(sgd, code="sparse_random", code_size=3, random_state=0)
    for part in (slice(0, 10), slice(10, 100), slice(100, 240)):
        classifier.partial_fit(X[part], Y[part], classes=classes)
    for column, estimator in zip(classifier.code_book_.T, classifier.estimators_, strict=True):
        alone = clone(sgd)
        for part in (slice(0, 10), slice(10, 100), slice(100, 240)):
            sides = column[NUMBERS[part]]
            if sides.any():
                alone.partial_fit(X[part][sides != 0], sides[sides != 0] > 0, classes=[False, True])
        np.testing.assert_allclose(estimator.coef_, alone.coef_)
    assert classifier.score(X, Y) > 0.5
    assert not hasattr(OutputCodeClassifier(SVM), "partial_fit")


def test_a_class_may_come_in_a_later_batch() -> None:
    classifier = OutputCodeClassifier(SGDClassifier(random_state=0), random_state=0)
    first = NUMBERS < 3
    classifier.partial_fit(X[first], Y[first], classes=np.unique(Y))
    classifier.partial_fit(X, Y)
    assert set(classifier.predict(X)) == set(Y)


@pytest.mark.parametrize("code", ["one_vs_one", "sparse_random", "one_vs_all"])
@pytest.mark.parametrize("learner", [SGDClassifier(random_state=0), MultinomialNB()])
def test_the_first_batch_may_have_one_class(code: str, learner: Any) -> None:
    classifier, positive = OutputCodeClassifier(learner, code=code, code_size=3, random_state=0), np.abs(X)
    only = NUMBERS == 2
    classifier.partial_fit(positive[only], Y[only], classes=np.unique(Y))
    assert set(classifier.predict(positive)) == {"cat"} and classifier.n_features_in_ == X.shape[1]
    unseen = [column[2] == 0 for column in classifier.code_book_.T]
    assert [isinstance(estimator, ConstantDichotomizer) for estimator in classifier.estimators_] == unseen
    classifier.partial_fit(positive, Y)
    assert not any(isinstance(estimator, ConstantDichotomizer) for estimator in classifier.estimators_)


def test_a_first_batch_that_is_refused_leaves_no_trace() -> None:
    classifier = OutputCodeClassifier(SGDClassifier(random_state=0), code="itq", bits=8, random_state=0)
    with pytest.raises(ConfigurationError, match=r"class number 3 has no training sample .* give the first batch"):
        classifier.partial_fit(X[NUMBERS < 3], Y[NUMBERS < 3], classes=np.unique(Y))
    classifier.partial_fit(X, Y, classes=np.unique(Y))
    assert classifier.code_book_.shape == (V, 8)


def test_pipelines_searches_pickles_and_clones() -> None:
    classifier = OutputCodeClassifier(LinearSVC(dual=False), random_state=0)
    pipeline = make_pipeline(StandardScaler(), classifier)
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.6
    grid = {"code": ["dense_random", "one_vs_one"], "decoder": ["hamming", "likelihood"], "estimator__C": [0.1, 1.0]}
    search = GridSearchCV(classifier, grid, cv=2).fit(X, Y)
    assert search.best_params_["estimator__C"] == search.best_estimator_.estimators_[0].C
    for made in (
        fitted(code_size=3),
        fitted(KNeighborsClassifier()),
        fitted(calibration="platt", decoder="probabilistic"),
    ):
        again = pickle.loads(pickle.dumps(made))
        assert np.array_equal(again.predict(X), made.predict(X))
        assert np.array_equal(again.predict_proba(X), made.predict_proba(X))
        assert not hasattr(clone(made), "classes_")
    assert pickle.loads(pickle.dumps(OutputCodeClassifier(SVM))).estimator.get_params() == SVM.get_params()


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_parallel_training_changes_nothing(backend: str) -> None:
    with joblib.parallel_config(backend=backend):
        parallel = fitted(code="sparse_random", code_size=3, calibration="platt", n_jobs=2)
    alone = fitted(code="sparse_random", code_size=3, calibration="platt")
    np.testing.assert_array_equal(parallel.decision_function(X), alone.decision_function(X))


def test_progress_is_told_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    fitted()
    assert not "".join(capfd.readouterr())
    fitted(verbose=1)
    assert "Parallel" in "".join(capfd.readouterr())


class NoScores(ClassifierMixin, BaseEstimator):
    def fit(self, X: Any, y: Any) -> NoScores:
        return self


class Diverged(ClassifierMixin, BaseEstimator):
    def fit(self, X: Any, y: Any) -> Diverged:
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: Any) -> Any:
        return np.full(len(X), np.nan)


def ternary(row: list[int]) -> np.ndarray:
    return np.column_stack([2 * np.eye(V, dtype=int) - 1, row])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": LinearRegression()}, ConfigurationError, "is no classifier; give one"),
        ({"estimator": NoScores()}, ConfigurationError, "neither decision_function nor predict_proba"),
        ({"code": "dense_randon"}, ConfigurationError, "did you mean 'dense_random'"),
        ({"decoder": "likelyhood"}, ConfigurationError, "did you mean 'likelihood'"),
        ({"calibration": "plat"}, ConfigurationError, "did you mean 'platt'"),
        ({"calibration": "platt", "cv": 500}, ConfigurationError, "cv=500 cannot split these 240 samples"),
        ({"code_size": 0.2}, ConfigurationError, "code_size=0.2 makes 1 columns for 6 classes, which need at least 3"),
        ({"code_size": -1}, ConfigurationError, "code_size=-1 is not possible"),
        ({"code_params": {"candidate": 3}}, ConfigurationError, "did you mean 'candidates'"),
        ({"code": np.eye(V)}, CodebookError, "write −1, not 0, for a bit 0"),
        ({"code": 2 * np.eye(4, 7) - 1}, CodebookError, "4 codewords for 6 classes; give a row per class"),
        ({"code": build("gray", 5)}, CodebookError, "5 codewords for 6 classes"),
        ({"code": np.ones((V, 1)) - 2 * np.eye(V)[:, :4]}, CodebookError, "equal codewords"),
        ({"code": ternary([0] * V)}, CodebookError, "column 6 of code looks at none of the 6 classes"),
        ({"code": ternary([0] * V)[:, 2:]}, CodebookError, "looks at none|equal"),
        ({"code": build("gray", V), "code_params": {"seed": 1}}, ConfigurationError, "options of a named design"),
        ({"code_params": {"bits": 8}}, ConfigurationError, r"code_params=.* the length is bits=…"),
        ({"code_params": [1]}, ConfigurationError, r"code_params=\[1\] must be a dictionary"),
        ({"code": None}, ConfigurationError, "code=None is no code"),
        ({"code": build("gray", V), "bits": 9}, ConfigurationError, "bits=9 does not fit the custom matrix"),
        ({"estimator": SVC(kernel="precomputed"), "code": "one_vs_one"}, ConfigurationError, "precomputed kernel"),
    ],
)
def test_what_cannot_work_is_refused_early(options: dict[str, Any], error: type[Exception], message: str) -> None:
    classifier = OutputCodeClassifier(options.pop("estimator", SVM), random_state=0, **options)
    with pytest.raises(error, match=message):
        classifier.fit(X, Y)


def test_classes_that_no_column_parts_are_named() -> None:
    matrix = np.array([[1, 1], [-1, 1], [0, 1], [1, 0], [-1, 0], [0, 0]])  # the second column has no −1
    with pytest.raises(CodebookError, match=r"tells class 'ant' from 'dog': .* give a matrix with distinct rows"):
        fitted(code=matrix)


def test_data_that_cannot_work_are_refused() -> None:
    with pytest.raises(DataError, match="2 classes or more, found 1 class"):
        OutputCodeClassifier(SVM).fit(X, np.zeros(len(X)))
    with pytest.raises(ConfigurationError, match=r"KNeighborsClassifier\.fit does not take it"):
        OutputCodeClassifier(KNeighborsClassifier()).fit(X, Y, sample_weight=np.ones(len(X)))
    with pytest.raises(ConfigurationError, match="fit got groups, which only metadata routing"):
        OutputCodeClassifier(SVM).fit(X, Y, groups=Y)
    with pytest.raises(DataError, match="Diverged gave a score that is not finite"):
        OutputCodeClassifier(Diverged()).fit(X, Y).predict(X)


@pytest.mark.parametrize("splitter", [GroupKFold(3), LeaveOneGroupOut(), StratifiedGroupKFold(3)])
def test_a_splitter_by_groups_is_given_as_its_folds(splitter: Any) -> None:
    groups = np.arange(len(X)) // 40
    with pytest.raises(ConfigurationError, match=r"; give the folds .* cv=list\(splitter\.split\(X, y, groups\)\)"):
        OutputCodeClassifier(SVM, calibration="platt", cv=splitter).fit(X, Y)
    folds = list(splitter.split(X, Y, groups))
    assert OutputCodeClassifier(SVM, calibration="platt", cv=folds).fit(X, Y).calibration_ is not None


def test_batches_that_cannot_work_are_refused() -> None:
    sgd = SGDClassifier(random_state=0)
    with pytest.raises(ConfigurationError, match="classes must be passed on the first call"):
        OutputCodeClassifier(sgd).partial_fit(X, Y)
    with pytest.raises(ConfigurationError, match="a classifier needs 2 classes or more"):
        OutputCodeClassifier(sgd).partial_fit(X, Y, classes=["ant"])
    with pytest.raises(ConfigurationError, match="no samples are held out; use fit"):
        OutputCodeClassifier(sgd, calibration="platt").partial_fit(X, Y, classes=np.unique(Y))
    started = OutputCodeClassifier(sgd, random_state=0).partial_fit(X, Y, classes=np.unique(Y))
    with pytest.raises(ConfigurationError, match="differ from those of the first call"):
        started.partial_fit(X, Y, classes=["ant", "bee"])
    with pytest.raises(DataError, match="label 'yak', which is none of the 6 classes"):
        started.partial_fit(X[:1], ["yak"])
