"""Temperature scaling: one number that fits probabilities to held-out rows (Guo et al., arXiv:1706.04599).

Logits of rows and the rows' classes enter; what to divide logits by leaves, and how well that does.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_BOUNDS = 0.1, 100.0  # where all held-out rows are right, less is always better


def fit_temperature(
    logits: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, bounds: tuple[float, float] = _BOUNDS
) -> tuple[float, float]:
    """Return the temperature T > 0 that minimizes the cross-entropy of ``logits / T``, and that cross-entropy.

    Parameters
    ----------
    logits : ndarray of shape (n, n_classes)
    y : ndarray of shape (n,)
        Numbers of the classes.
    weight : ndarray of shape (n,), optional
        Weights of the rows.
    bounds : tuple of float
        Lowest and highest temperature.
    """
    logits = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        log_proba = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -np.average(log_proba[np.arange(len(y)), y], weights=weight)

    # Convex in 1 / T: there is one minimum.
    found = minimize_scalar(loss, bounds=np.log(bounds), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x)), float(found.fun)
