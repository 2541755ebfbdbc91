"""Which label each output of a net stands for.

A parameter `net`, the number of its labels and class labels enter; labels in the order of the outputs leave.
"""

from numbers import Number

import numpy as np
from sklearn.base import is_regressor
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet

from ._base_net import trained_module
from ._labels import checked_labels, distinct
from ._net_classifier import NetClassifier
from .gradients._user import warn_user


def trained_classes(net, n_labels: int) -> np.ndarray | None:
    """Return the labels that the outputs of a fitted skorch net stand for, or None where that is not known.

    A net of skorch itself encodes nothing: a label is the number of an output, though `classes_` lists those it saw.
    """
    net = net.estimator if isinstance(net, FrozenEstimator) else net
    if isinstance(net, NeuralNet) and is_regressor(net):
        raise ValueError(
            f"net is a regressor, {type(net).__name__}, whose outputs are no logits of classes: pass a classifier. "
            "Features and kernels of a regressor's outputs are those of scalar='logit'."
        )
    classes = getattr(net, "classes_", None) if isinstance(net, NeuralNet) else None
    if classes is None or isinstance(net, NetClassifier) or len(classes) == n_labels:
        return classes
    return np.arange(n_labels)


def warn_of_order(right: float, n_rows: int, labels: np.ndarray) -> None:
    """Warn where the labels that outputs are taken for are right on a share of the rows less than that of a guess."""
    share = 1 / len(labels)
    if right < share - 3 * (share * (1 - share) / n_rows) ** 0.5:
        warn_user(
            f"the base net's outputs, taken for {labels[:10].tolist()}, are right on {right:.0%} of the rows, less "
            "than a guess: if their order is another one, pass classes=[...] in that order."
        )


def output_labels(net, n_labels: int, y: np.ndarray | None = None, classes=None) -> np.ndarray:
    """Return the labels of the outputs, in their order.

    They are `classes`, sorted if `net` is None, which was trained on them; or those that a skorch net knows; else those
    of `y` in sorted order, if they are as many as the net has labels; else the numbers from 0 on. Of a module that is
    given a sorted order of names is a guess, of which a warning tells; so are numbers of which `y` has some, but not 0.
    """
    if classes is not None:
        ordered = distinct(classes, "classes")
        if len(ordered) != n_labels or np.shape(classes) != (n_labels,):
            raise ValueError(f"classes={classes!r} must be {n_labels} different labels, one for each of those of net.")
        return ordered if net is None else np.asarray(classes)
    known = trained_classes(net, n_labels)
    if known is not None:
        if len(known) != n_labels:
            raise ValueError(f"net has {n_labels} labels and knows the names of {len(known)}: pass classes=[...].")
        return np.asarray(known)
    found = np.arange(0) if y is None else distinct(y, "y")
    if len(found) != n_labels:
        if found.dtype.kind == "b" or (len(found) > 1 and set(found.tolist()) <= set(range(1, n_labels))):
            warn_user(
                f"net has {n_labels} labels, and of y {found[:10].tolist()}: they are taken for numbers of its "
                "outputs, counted from 0. If they are not, pass classes=[...], the labels in the order of the outputs; "
                "or base_output=False, where a classifier has it, if they are of another kind.",
            )
        return np.arange(n_labels)
    if trained_module(net) is not None and not all(isinstance(label, Number) for label in found.tolist()):
        warn_user(
            "net does not say which label an output is of, and those of y are no numbers: they are taken in sorted "
            f"order, {found[:10].tolist()}. Pass classes=[...], the labels in the order of the outputs.",
        )
    return found


def class_codes(net, n_labels: int, y, classes=None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the labels of the outputs, and the number of each row's among them, or None without `y`."""
    y = None if y is None else checked_labels(y)
    known = output_labels(net, n_labels, y, classes)
    if y is None:
        return known, None
    unknown = np.setdiff1d(y, known)
    if len(unknown):
        raise ValueError(
            f"y holds labels unknown to the net: {unknown[:10].tolist()}. It has {n_labels} labels, "
            f"{known[:10].tolist()}. If these are not theirs, name them by classes=[...], in the order of the outputs."
        )
    order = np.argsort(known)
    return known, order[np.searchsorted(known, y, sorter=order)]
