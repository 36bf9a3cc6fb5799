"""Output codes for scikit-learn: `OutputCodeClassifier` turns binary classifiers into a multi-class one."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("codehead.sklearn needs scikit-learn: pip install 'codehead[sklearn]'") from error

from codehead.sklearn.estimator import OutputCodeClassifier

__all__ = ["OutputCodeClassifier"]
