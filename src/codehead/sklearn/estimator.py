"""`OutputCodeClassifier`: multi-class classification by an output code, as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, final

import numpy as np
from scipy.special import log_softmax
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, is_regressor
from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.parallel import Parallel
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from codehead.codes.codebook import PackedCodebook
from codehead.codes.packing import Floats, Integers
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, FittedDecoder
from codehead.errors import ConfigurationError, DataError
from codehead.registry import did_you_mean
from codehead.sklearn.coding import TrainingSet, asked_columns, check_separates, class_codebook
from codehead.sklearn.dichotomizers import (
    Calibration,
    ClassDecision,
    ConstantDichotomizer,
    best_class,
    bit_scores,
    fit_columns,
    out_of_fold_scores,
    stack,
)


@final
class OutputCodeClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Multi-class classification by an error-correcting output code: a binary classifier for every column.

    A drop-in for `sklearn.multiclass.OutputCodeClassifier` with all codes and decoders of codehead.

    Args:
        estimator: a classifier with `decision_function` or `predict_proba`; a clone of it is trained for each column.
        code: the name of a design (`codehead.codes.DESIGNS`), a `Codebook`, or a matrix (V or more, n) of −1, 0, +1
            whose rows belong to the sorted classes. Where it has zeros, a column is trained without these classes.
        code_size: the columns of a design of any length, as a share of the number of classes.
        bits: the number of columns instead.
        code_params: options of the design, e.g. `{"candidates": 64}`. A design that looks at the classes gets the
            training data unless prototypes are given here. It needs finite numbers: if X holds text, categories or
            missing values, pass a pipeline as `estimator`, whose first steps turn X into numbers.
        decoder: a name in `codehead.decoding.DECODERS`.
        calibration: None, or "platt": the scores of every dichotomizer are turned into log-odds by a sigmoid fitted to
            scores out of fold, and probabilities are tempered (`codehead.sklearn.dichotomizers`).
        cv: folds for calibration and for fitted decoders: a number, or a splitter of scikit-learn. Without these
            two, nothing is split.
        random_state: an int is the seed of the design; with None or a RandomState, one is drawn.
        n_jobs: joblib's number of parallel trainings.
        verbose: above 0, joblib prints progress.

    Attributes:
        classes_: the sorted labels (V,).
        code_book_: the coding matrix, int8 (V, n).
        codebook_: the same with its origin: design, parameters, checksum, `save`.
        estimators_: n fitted dichotomizers, whose classes are 0 (for −1) and 1; a `ConstantDichotomizer` for a column
            that lacks +1 or −1, which decoding skips.
        calibration_: a `Calibration`, or None.
        n_features_in_, feature_names_in_: those of the first dichotomizer, if it has them.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        code: Any = "dense_random",
        code_size: float = 1.5,
        bits: int | None = None,
        code_params: dict[str, Any] | None = None,
        decoder: str = "likelihood",
        calibration: str | None = None,
        cv: Any = 3,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.code = code
        self.code_size = code_size
        self.bits = bits
        self.code_params = code_params
        self.decoder = decoder
        self.calibration = calibration
        self.cv = cv
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **fit_params: Any) -> OutputCodeClassifier:
        """Choose a codeword for every class and train the dichotomizers.

        `sample_weight` (N,) is passed to estimators that accept it. With scikit-learn's metadata routing enabled,
        it and `fit_params` go where the estimator requests them.
        """
        check_parameters(self)
        y = checked_labels(self, X, y)
        params = routed(self, "fit", X, sample_weight, fit_params)
        with unchanged_by_failure(self):
            self.classes_ = known_classes(y)
            ids = class_ids(y, self.classes_)
            table = self._choose_code(X, ids, params)
            self.estimators_ = fit_columns(self.estimator, X, self.code_book_[ids], params, self._parallel())
            self._decision = self._fit_decision(table, X, ids, params)
            return self._settled()

    @available_if(lambda classifier: hasattr(classifier.estimator, "partial_fit"))
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None, **fit_params: Any
    ) -> OutputCodeClassifier:
        """Train the dichotomizers further with a batch.

        The first call needs `classes`, all labels of all batches; it chooses their codewords. A design that looks at
        the classes sees only the first batch, which must have samples of all of them. Until a column of a ternary code
        has seen a sample of its classes, a `ConstantDichotomizer` replaces it. Calibration and fitted decoders are not
        possible, because they need scores of samples that the dichotomizers were not trained on.
        """
        check_parameters(self)
        check_learns_in_batches(self)
        y = checked_labels(self, X, y)
        params = routed(self, "partial_fit", X, sample_weight, fit_params)
        with unchanged_by_failure(self):
            is_first = not hasattr(self, "estimators_")
            self.classes_ = checked_classes(classes, None if is_first else self.classes_)
            ids = class_ids(y, self.classes_)
            if is_first:
                self._decision = ClassDecision(self._choose_code(X, ids, params), self.decoder)
                self.estimators_ = [ConstantDichotomizer() for _ in self._asked]
            symbols = self.code_book_[:, self._asked][ids]
            trained = fit_columns(self.estimator, X, symbols, params, self._parallel(), self._dichotomizers())
            for column, estimator in zip(np.flatnonzero(self._asked), trained, strict=True):
                self.estimators_[column] = estimator
            return self._settled()

    @property
    def calibration_(self) -> Calibration | None:
        """The calibration that turns scores into bit logits and tempers probabilities; None without one."""
        check_is_fitted(self)
        return self._decision.calibration

    def predict(self, X: Any) -> Any:
        """The labels (N,) whose codewords the decoder scores highest; the first class of equal scores."""
        check_is_fitted(self)
        if self._folded is None:
            return self.classes_[self._decision.best(self._bit_scores(X))]
        (X,) = indexable(X)

        def scores(some: slice) -> Floats:
            return np.asarray(self._folded.decision_function(_safe_indexing(X, some)))

        return self.classes_[best_class(scores, max(_num_samples(X), 1), len(self.classes_))]

    def decision_function(self, X: Any) -> Floats:
        """The decoder's scores of all classes (N, V), larger is better; for two classes (N,), second minus first."""
        scores = self._bit_scores(X)  # checks that it is fitted
        scores = self._decision.class_scores(scores)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> Floats:
        """The codeword posterior (N, V), whatever the decoder: the softmax of the likelihood scores, tempered.

        With `calibration=None` it is overconfident.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Floats:
        """The logarithm of `predict_proba`, also where that is 0."""
        scores = self._bit_scores(X)
        return np.asarray(log_softmax(self._decision.log_products(scores), axis=1))

    def get_metadata_routing(self) -> MetadataRouter:
        """`fit` and `partial_fit` pass on what the estimator requests."""
        mapping = MethodMapping().add(caller="fit", callee="fit").add(caller="partial_fit", callee="partial_fit")
        return MetadataRouter(owner=self).add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator).input_tags
        for name in ("sparse", "pairwise", "allow_nan"):
            setattr(tags.input_tags, name, getattr(inner, name))
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("_stacked", "_folded")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "estimators_" in state:
            self._join_linear()

    def _choose_code(self, X: Any, ids: Integers, params: dict[str, Any]) -> CodewordTable:
        """Fix the code and the columns in use; the table has these columns."""
        data = TrainingSet(X, ids, params, len(self.classes_), self.estimator, Parallel(n_jobs=self.n_jobs))
        self.codebook_ = codebook = class_codebook(self, data, seed_of(self.random_state))
        check_kernel(self, codebook.is_ternary)
        self.code_book_ = codebook.to_array()
        check_separates(self.code_book_, self.classes_.tolist(), is_given=not isinstance(self.code, str))
        self._asked = asked_columns(self.code_book_)
        if not self._asked.all():
            codebook = PackedCodebook.from_array(self.code_book_[:, self._asked])
        return CodewordTable(codebook)

    def _fit_decision(self, table: CodewordTable, X: Any, ids: Integers, params: dict[str, Any]) -> ClassDecision:
        if not needs_scores_out_of_fold(self):
            return ClassDecision(table, self.decoder)
        matrix = self.code_book_[:, self._asked]
        held_out = out_of_fold_scores(self.estimator, X, ids, matrix, params, self.cv, self._parallel())
        return ClassDecision.fit(table, self.decoder, *held_out, calibrated=self.calibration is not None)

    def _parallel(self) -> Parallel:
        return Parallel(n_jobs=self.n_jobs, verbose=self.verbose)

    def _settled(self) -> OutputCodeClassifier:
        """Record what follows from the dichotomizers; returns the classifier."""
        self._join_linear()
        for name in ("n_features_in_", "feature_names_in_"):
            known = [getattr(estimator, name) for estimator in self._dichotomizers() if hasattr(estimator, name)]
            if known:
                setattr(self, name, known[0])
        return self

    def _join_linear(self) -> None:
        """Combine linear dichotomizers into one model, and these with the code into another, for fast predictions."""
        self._stacked = stack(self._dichotomizers())
        self._folded = self._decision.folded(self._stacked)

    def _dichotomizers(self) -> list[Any]:
        """Those of the columns in use."""
        return [estimator for estimator, asked in zip(self.estimators_, self._asked, strict=True) if asked]

    def _bit_scores(self, X: Any) -> Floats:
        """Scores of the dichotomizers of the columns in use: (N, n)."""
        check_is_fitted(self)
        return bit_scores(self._dichotomizers(), X, self._stacked)


@contextmanager
def unchanged_by_failure(classifier: Any) -> Iterator[None]:
    """Give the classifier back the attributes it had before, if the body fails."""
    before = dict(vars(classifier))
    try:
        yield
    except BaseException:
        vars(classifier).clear()
        vars(classifier).update(before)
        raise


# The arguments of `OutputCodeClassifier`: checked early, and refused with a remedy.


def check_parameters(classifier: Any) -> None:
    """Raise a ConfigurationError for an estimator without scores, an unknown decoder or an unknown calibration."""
    estimator, calibration = classifier.estimator, classifier.calibration
    if is_regressor(estimator) or not hasattr(estimator, "fit"):
        raise ConfigurationError(f"estimator={estimator!r} is no classifier; give one, e.g. sklearn.svm.LinearSVC()")
    if not hasattr(estimator, "decision_function") and not hasattr(estimator, "predict_proba"):
        message = f"estimator={estimator!r} has neither decision_function nor predict_proba"
        raise ConfigurationError(f"{message}, so its answers carry no confidence; choose an estimator with one of them")
    DECODERS.get(classifier.decoder)
    if calibration not in (None, "platt"):
        hint = did_you_mean(calibration, ["platt"])
        raise ConfigurationError(f"unknown calibration {calibration!r}{hint}; give None or 'platt'")


def needs_scores_out_of_fold(classifier: Any) -> bool:
    """Whether calibration or decoder learn from samples that the dichotomizers were not trained on."""
    return classifier.calibration is not None or isinstance(DECODERS.get(classifier.decoder), FittedDecoder)


def check_kernel(classifier: Any, is_ternary: bool) -> None:
    """Raise ConfigurationError if training on part of the samples would break a precomputed kernel matrix."""
    reduced = is_ternary or needs_scores_out_of_fold(classifier)
    if reduced and get_tags(classifier.estimator).input_tags.pairwise:
        message = "a precomputed kernel cannot be used with a ternary code, calibration or a fitted decoder"
        raise ConfigurationError(f"{message}: they train on some of the samples; give features and a kernel function")


def check_learns_in_batches(classifier: Any) -> None:
    """Raise ConfigurationError for a calibration or decoder that cannot be fitted in batches."""
    if needs_scores_out_of_fold(classifier):
        message = f"partial_fit cannot fit calibration={classifier.calibration!r} and decoder={classifier.decoder!r}"
        raise ConfigurationError(
            f"{message}: no samples are held out; use fit, or calibration=None and another decoder"
        )


def seed_of(random_state: Any) -> int:
    """The seed of a design: an int itself, otherwise drawn from the RandomState or, for None, from NumPy's."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def checked_labels(classifier: Any, X: Any, y: Any) -> Any:
    """`y` as an array (N,) of classes; the estimator checks X."""
    y = validate_data(classifier, X="no_validation", y=y)
    check_consistent_length(X, y)
    check_classification_targets(y)
    return y


def checked_classes(classes: Any, known: Any) -> Any:
    """The sorted classes of a call to `partial_fit`; `known` are those of the first call, None in that call."""
    if known is not None:
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise ConfigurationError(
                f"classes={classes!r} differ from those of the first call to partial_fit, {known!r}"
            )
        return known
    if classes is None:
        raise ConfigurationError("classes must be passed on the first call to partial_fit: all labels of all batches")
    if len(np.unique(classes)) < 2:
        raise ConfigurationError(
            f"classes={classes!r}: a classifier needs 2 classes or more; name the labels of all batches"
        )
    return np.unique(classes)


def known_classes(y: Any) -> Any:
    """The sorted labels of a training set; a DataError if there are not two."""
    classes = np.unique(y)
    if len(classes) < 2:
        found = f"1 class, {classes.tolist()[0]!r}" if len(classes) else "no sample"
        raise DataError(f"a classifier needs samples of 2 classes or more, found {found}; give more data")
    return classes


def class_ids(y: Any, classes: Any) -> Integers:
    """The number of each label (N,) among the sorted classes (V,); a DataError if it is none of them."""
    ids = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    wrong = np.flatnonzero(classes[ids] != y)
    if len(wrong):
        message = f"y has the label {y.tolist()[wrong[0]]!r}, which is none of the {len(classes)} classes"
        raise DataError(f"{message}; name it in the first call to partial_fit")
    return np.asarray(ids)


def routed(classifier: Any, method: str, X: Any, sample_weight: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the estimator's `method`, "fit" or "partial_fit", besides the samples and their sides.

    ValueError, as in scikit-learn, unless the weights are one finite number for each sample, or one for all.
    """
    if sample_weight is not None:
        params = {**params, "sample_weight": _check_sample_weight(sample_weight, X)}
    if get_config()["enable_metadata_routing"]:
        return dict(process_routing(classifier, method, **params).estimator[method])
    unknown = [name for name in params if name != "sample_weight"]
    if unknown:
        message = f"{method} got {', '.join(unknown)}, which only metadata routing can pass to the estimator"
        raise ConfigurationError(f"{message}; call sklearn.set_config(enable_metadata_routing=True)")
    if params and not has_fit_parameter(classifier.estimator, "sample_weight"):
        message = f"sample_weight was given, but {type(classifier.estimator).__name__}.fit does not take it"
        raise ConfigurationError(f"{message}; choose an estimator that does, or omit it")
    return params
