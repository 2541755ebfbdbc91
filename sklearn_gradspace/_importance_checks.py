"""What the parameters of EdgeImportance may be, and rank correlations.

An estimator and labels enter; an error that says what to do leaves where they mean nothing.
"""

import warnings
from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from ._featurizer_checks import check_gradient_parameters, warn_of_small_percentile
from ._parameter_checks import check_choices
from .gradients import VIEWS

CRITERIA = ("sensitivity", "gradient", "fisher", "magnitude", "survival")


def check_parameters(importance, y) -> None:
    """Raise an error that names the first parameter of an EdgeImportance that means nothing."""
    check_choices(importance, {"criterion": CRITERIA, "labels": ("auto", *VIEWS), "per_class": (True, False)})
    check_gradient_parameters(importance)
    if importance.criterion == "survival":
        warn_of_small_percentile(importance.percentile)
    if importance.labels == "true" and y is None:
        raise ValueError(
            "labels='true' requires y to be passed, but the target y is None. Pass labels, or use labels='expected'."
        )
    if importance.criterion == "magnitude" and importance.per_class:
        raise ValueError("criterion='magnitude' knows no classes, since no data enter it: use per_class=False.")


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
