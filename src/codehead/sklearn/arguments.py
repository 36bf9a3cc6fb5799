"""What `OutputCodeClassifier` is called with: checked early, and refused with a remedy."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import is_regressor
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, has_fit_parameter, validate_data

from codehead.codes.packing import Integers
from codehead.decoding import DECODERS, FittedDecoder
from codehead.errors import ConfigurationError, DataError
from codehead.registry import did_you_mean

CALIBRATIONS = (None, "platt")


def check_parameters(classifier: Any) -> None:
    """Raise a ConfigurationError for an estimator without scores, an unknown decoder or an unknown calibration."""
    estimator, calibration = classifier.estimator, classifier.calibration
    if is_regressor(estimator) or not hasattr(estimator, "fit"):
        raise ConfigurationError(f"estimator={estimator!r} is no classifier; give one, e.g. sklearn.svm.LinearSVC()")
    if not hasattr(estimator, "decision_function") and not hasattr(estimator, "predict_proba"):
        message = f"estimator={estimator!r} has neither decision_function nor predict_proba"
        raise ConfigurationError(f"{message}, so its answers have no strength; choose one that has")
    DECODERS.get(classifier.decoder)
    if calibration not in CALIBRATIONS:
        hint = did_you_mean(calibration, ["platt"])
        raise ConfigurationError(f"unknown calibration {calibration!r}{hint}; give None or 'platt'")


def needs_scores_out_of_fold(classifier: Any) -> bool:
    """Whether calibration or decoder learn from samples that the dichotomizers were not trained on."""
    return classifier.calibration is not None or isinstance(DECODERS.get(classifier.decoder), FittedDecoder)


def check_kernel(classifier: Any, is_ternary: bool) -> None:
    """A ConfigurationError if training on some of the samples would tear a precomputed kernel matrix."""
    reduced = is_ternary or needs_scores_out_of_fold(classifier)
    if reduced and get_tags(classifier.estimator).input_tags.pairwise:
        message = "a precomputed kernel cannot be used with a ternary code, calibration or a decoder that is fitted"
        raise ConfigurationError(f"{message}: they train on some of the samples; give features and a kernel function")


def check_learns_in_batches(classifier: Any) -> None:
    """A ConfigurationError if there is something to fit that batches do not allow."""
    if needs_scores_out_of_fold(classifier):
        message = f"partial_fit cannot fit calibration={classifier.calibration!r} and decoder={classifier.decoder!r}"
        raise ConfigurationError(
            f"{message}: no samples are kept back; use fit, or calibration=None and another decoder"
        )


def seed_of(random_state: Any) -> int:
    """The seed of a design: an int itself, otherwise drawn from the RandomState or, for None, from NumPy's."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def checked_labels(classifier: Any, X: Any, y: Any) -> Any:
    """`y` as an array (N,) of classes; what X holds is the estimator's business."""
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
        raise ConfigurationError("classes must be passed on the first call to partial_fit: all labels there will be")
    if len(np.unique(classes)) < 2:
        raise ConfigurationError(f"classes={classes!r}: a classifier needs 2 classes or more; name all there will be")
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


def routed(classifier: Any, method: str, sample_weight: Any, params: dict[str, Any]) -> dict[str, Any]:
    """What goes to the estimator's `method`, "fit" or "partial_fit", besides the samples and their sides."""
    if sample_weight is not None:
        params = {**params, "sample_weight": np.asarray(sample_weight)}
    if get_config()["enable_metadata_routing"]:
        return dict(process_routing(classifier, method, **params).estimator[method])
    unknown = [name for name in params if name != "sample_weight"]
    if unknown:
        message = f"{method} got {', '.join(unknown)}, which only metadata routing can hand to the estimator"
        raise ConfigurationError(f"{message}; call sklearn.set_config(enable_metadata_routing=True)")
    if params and not has_fit_parameter(classifier.estimator, "sample_weight"):
        message = f"sample_weight was given, but {type(classifier.estimator).__name__}.fit does not take it"
        raise ConfigurationError(f"{message}; choose an estimator that does, or omit it")
    return params
