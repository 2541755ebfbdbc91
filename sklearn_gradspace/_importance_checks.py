"""What the parameters and labels of EdgeImportance may be.

An estimator and labels enter; numbers of classes leave, or an error that says what to do.
"""

import warnings
from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from ._featurizer_checks import check_gradient_parameters
from ._labels import checked_labels
from ._parameter_checks import check_choices
from .gradients import VIEWS

CRITERIA = ("sensitivity", "gradient", "fisher", "magnitude", "survival")


def check_parameters(importance, y) -> None:
    """Raise an error that names the first parameter of an EdgeImportance that means nothing."""
    check_choices(importance, {"criterion": CRITERIA, "labels": ("auto", *VIEWS), "per_class": (True, False)})
    check_gradient_parameters(importance)
    if importance.labels == "true" and y is None:
        raise ValueError(
            "labels='true' requires y to be passed, but the target y is None. Pass labels, or use labels='expected'."
        )
    if importance.criterion == "magnitude" and importance.per_class:
        raise ValueError("criterion='magnitude' knows no classes, since no data enter it: use per_class=False.")


def class_codes(known: np.ndarray | None, y, n_labels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the classes, and the number of each row's among the labels of the net, or None without `y`.

    The classes are those that the net is known to have; else those of `y`, if they are as many as the net has labels,
    or the numbers from 0 on.
    """
    classes = known
    if y is not None:
        y = checked_labels(y)
        classes = np.unique(y) if classes is None and len(np.unique(y)) == n_labels else classes
    classes = np.arange(n_labels) if classes is None else np.asarray(classes)
    if y is None:
        if len(classes) != n_labels:
            raise ValueError(f"net has {n_labels} labels and knows the names of {len(classes)}: pass y.")
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


def rank_correlation(some: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> float:
    """Return Spearman's rank correlation of two importances of the same entries; NaN where all of one are equal."""
    shapes = [{name: np.shape(values) for name, values in of.items()} for of in (some, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"other has importances of {shapes[1]}; these are of {shapes[0]}.")
    a, b = (np.concatenate([np.ravel(of[name]) for name in some]) for of in (some, others))
    if np.isnan(a).any() or np.isnan(b).any() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)
