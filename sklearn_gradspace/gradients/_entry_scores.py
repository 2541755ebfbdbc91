"""Scores of the entries of gradients, summed over rows without holding the gradients of these.

Rows of data enter; what they add to `ScoreMoments` leaves. The gradient of a linear layer that sees a vector is
``delta a^T``, and so is its score, ``|delta|^p |a|^p``: sums over rows are matrix products of these factors. Gradients
of other layers are formed a few rows at a time.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ._engine import CACHE_BYTES, GradientEngine
from ._factored import FactoredGradients
from ._features import GradientFeatures
from ._moments import ScoreMoments
from ._outputs import Labels, label_probabilities

Views = tuple[Labels, Callable[[Tensor], Tensor] | None]


VIEWS = ("true", "predicted", "sampled", "expected", "all")


def views(kind: str, y: Tensor | None = None, uniform: np.ndarray | None = None) -> Views:
    """Return the labels whose gradients rows give, and how much each counts.

    Parameters
    ----------
    kind : {"true", "predicted", "sampled", "expected", "all"}
    y : Tensor of shape (n,), optional
        Numbers of the true labels.
    uniform : ndarray of shape (n,), optional
        Random numbers in [0, 1), by which labels are drawn.

    Returns
    -------
    labels : Tensor of shape (n,), "predicted", callable or None
        As of :class:`GradientEngine`; None stands for all labels.
    weights : callable or None
        From outputs to weights of shape (n, n_labels) of the labels, where a row has several.
    """
    if kind == "sampled":
        return partial(_drawn, uniform=uniform), None
    several = {"expected": label_probabilities, "all": lambda outputs: _alike(label_probabilities(outputs))}
    if kind in several:
        return None, several[kind]
    return (y if kind == "true" else kind), None


def _alike(probabilities: Tensor) -> Tensor:
    return torch.full_like(probabilities, 1 / probabilities.shape[1])


def _drawn(outputs: Tensor, uniform: np.ndarray) -> Tensor:
    """Return a label for each row, drawn from the net's probabilities."""
    cumulative = label_probabilities(outputs.double()).cumsum(1)
    below = torch.from_numpy(uniform).to(cumulative).unsqueeze(1) >= cumulative[:, :-1]
    return below.sum(1)


def add_powers(moments: ScoreMoments, engine: GradientEngine, X: np.ndarray, of: Views, groups: Tensor, p: int) -> None:
    """Add the scores ``sum_c weight_c |g_c|^p`` of the rows `X`, the next ones, which one pass can take.

    Parameters
    ----------
    moments : ScoreMoments
    engine : GradientEngine
    X : ndarray of shape (n, ...)
    of : tuple
        What :func:`views` returned for the rows.
    groups : Tensor of shape (n,)
        The number of each row's group.
    p : int
    """
    labels, weigh = of
    gradients = FactoredGradients(engine, X, labels)
    start = moments.n_rows
    with engine.computing(), torch.no_grad():
        weights = None if weigh is None else weigh(gradients.outputs.double()).to(engine.feature_dtype)
        for block in engine.blocks:
            if block.name in gradients.factors:
                deltas, inputs = (factor.abs() for factor in gradients.factors[block.name])
                scale = 1.0 if p == 1 else _power(deltas, p, (0, 1)).view(-1, 1) * _power(inputs, p)
                moments.add_products(block.name, _weighted(deltas, weights), inputs, groups, start, scale)
                continue
            for rows, part in gradients.parts(block.name, CACHE_BYTES, by_tap=True):
                part.abs_()
                scale = 1.0 if p == 1 else _power(part, p)
                scores = _weighted(part, None if weights is None else weights[rows])
                moments.add(block.name, scores, groups[rows], start + rows.start, scale)
        moments.count(groups)


def add_survivals(moments: ScoreMoments, features: GradientFeatures, X: np.ndarray, of: Views, groups: Tensor) -> None:
    """Add for each entry whether selection leaves it, ``sum_c weight_c [g_c survives]``; else as :func:`add_powers`."""
    engine, (labels, weigh) = features.engine, of
    outputs = engine.outputs(X).double() if weigh or callable(labels) else None
    labels = labels(outputs) if callable(labels) else labels
    weights = None if weigh is None else weigh(outputs).to(engine.feature_dtype)
    start, first = 0, moments.n_rows
    for part in features.parts(X, labels):  # type: ignore[arg-type]
        rows = slice(start, start + len(part))
        scores = _weighted(part.copy_(part != 0), None if weights is None else weights[rows])
        for block in features.blocks:
            moments.add(block.name, scores[:, block.slice], groups[rows], first + start)
        start = rows.stop
    moments.count(groups)


def _power(magnitudes: Tensor, p: int, axes: tuple[int, ...] = ()) -> Tensor:
    """Raise in place to a power after a division by the largest, along `axes` or of all; return what that divided by.

    The square of a squared gradient would else leave the range of single precision.
    """
    largest = magnitudes.amax(axes)
    largest = torch.where(largest == 0, 1, largest)
    magnitudes.div_(largest).pow_(p)
    return largest.double().view(-1) ** p


def _weighted(scores: Tensor, weights: Tensor | None) -> Tensor:
    """Return scores of shape (n, size) from those of all labels, of shape (n, k, size)."""
    return scores.squeeze(1) if weights is None else torch.einsum("nk,nkp->np", weights, scores)
