"""Class labels of any kind, checked.

What a user passes as labels enters; an array of labels that can be told apart and ordered leaves.
"""

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

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
