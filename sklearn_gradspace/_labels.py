"""Class labels of any kind, checked.

What a user passes as labels enters; an array of labels that can be told apart and ordered leaves.
"""

from collections.abc import Mapping
from numbers import Real

import numpy as np
from sklearn.utils import assert_all_finite, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ._parameter_checks import check_choices
from ._rows import as_array


def checked_labels(y) -> np.ndarray:
    """Return class labels of shape (n,), or say why they are none."""
    y = column_or_1d(as_array(y), warn=True)
    assert_all_finite(y, input_name="y")
    distinct(y, "y")
    check_classification_targets(y)
    return y


def distinct(labels, name: str) -> np.ndarray:
    """Return the distinct labels in order, or say that `name` holds what has none."""
    try:
        return np.unique(labels)
    except (TypeError, ValueError) as error:  # strings beside numbers; lists of several lengths
        raise TypeError(f"{name} holds labels of several kinds, which have no order: make them of one kind.") from error


def check_class_weight(estimator) -> None:
    """Raise ValueError where `class_weight` is neither "balanced", a mapping nor None."""
    if not isinstance(estimator.class_weight, Mapping):
        check_choices(estimator, {"class_weight": (None, "balanced")})


def weights_by_class(class_weight, classes: np.ndarray, codes: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
    """Return the weight of each row's class; `codes` are numbers of the rows' classes."""
    if class_weight == "balanced":  # by weights, so that a weight of 2 is a row that comes twice
        totals = np.bincount(codes, sample_weight)
        seen = totals > 0
        return np.divide(totals.sum() / seen.sum(), totals, where=seen, out=np.zeros_like(totals))[codes]
    if isinstance(class_weight, Mapping):
        unknown: list = sorted(set(class_weight) - set(classes.tolist()), key=str)
        if unknown or not all(isinstance(w, Real) and 0 <= float(w) < np.inf for w in class_weight.values()):
            raise ValueError(
                f"class_weight={class_weight!r} must map labels of y to finite weights that are not negative; of its "
                f"labels y lacks {unknown}."
            )
        class_weight = {i: class_weight.get(label, 1.0) for i, label in enumerate(classes.tolist())}
    return compute_sample_weight(class_weight, codes)
