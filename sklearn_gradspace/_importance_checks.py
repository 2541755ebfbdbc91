"""What the parameters and labels of EdgeImportance may be.

An estimator and labels enter; numbers of classes leave, or an error that says what to do.
"""

import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ._skorch_sklearn import check_device
from .gradients import VIEWS

CRITERIA = ("sensitivity", "gradient", "fisher", "magnitude", "survival")


def check_parameters(importance, y) -> None:
    """Raise an error that names the first parameter of an EdgeImportance that means nothing."""
    for name, values in {"criterion": CRITERIA, "labels": ("auto", *VIEWS), "per_class": (True, False)}.items():
        value = getattr(importance, name)
        if value not in values:
            raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, values))}.")
    percentile, size = importance.percentile, importance.batch_size
    if not isinstance(percentile, Real) or not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r} is not in (0, 100]: it is the percentage of entries that survive.")
    if size != "auto" and (not isinstance(size, Integral) or isinstance(size, bool) or size < 1):
        raise ValueError(f"batch_size={size!r} is neither a positive integer nor 'auto'.")
    if importance.net_output is not None and not callable(importance.net_output):
        raise TypeError("net_output is neither None nor a function that takes what the net returns.")
    if importance.labels == "true" and y is None:
        raise ValueError(
            "labels='true' requires y to be passed, but the target y is None. Pass labels, or use labels='expected'."
        )
    if importance.criterion == "magnitude" and importance.per_class:
        raise ValueError("criterion='magnitude' knows no classes, since no data enter it: use per_class=False.")
    check_device(importance.device)


def class_codes(known: np.ndarray | None, y, n_labels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the classes, and the number of each row's among the labels of the net, or None without `y`.

    The classes are those that the net is known to have; else those of `y`, if they are as many as the net has labels,
    or the numbers from 0 on.
    """
    classes = known
    if y is not None:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        classes = np.unique(y) if classes is None and len(np.unique(y)) == n_labels else classes
    classes = np.arange(n_labels) if classes is None else np.asarray(classes)
    if y is None:
        return classes, None
    order = np.argsort(classes)
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(
            f"y holds labels unknown to the net: {unknown[:10].tolist()}. It has {n_labels} labels, "
            f"{classes[:10].tolist()}."
        )
    return classes, order[np.searchsorted(classes, y, sorter=order)]


def warn_of_one_row(n: int, score: str) -> None:
    """Warn that a single row has no standard error."""
    if n == 1 and score != "magnitude":
        warnings.warn("X has a single row: standard errors and stability_ are NaN.", UserWarning, stacklevel=3)
