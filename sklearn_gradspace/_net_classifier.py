"""NetClassifier: a skorch classifier for any module that keeps scikit-learn's contract.

Samples and labels of any kind enter; a classifier with true labels leaves. It is the base of the package's classifiers.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.special import xlogy
from skorch import NeuralNetClassifier
from torch import nn

from ._labels import check_class_weight, checked_labels, distinct, weights_by_class
from ._module_checks import check_logits, check_probabilities
from ._net_estimator import NetEstimator
from ._rows import WeightedRows


class NetClassifier(NetEstimator, NeuralNetClassifier):
    """A skorch classifier for any module, with scikit-learn's contract.

    Parameters
    ----------
    module : Module class, instance or callable
        From (n, ...) to logits of shape (n, n_classes). A class or callable gets those of `n_features`, `n_outputs` and
        `n_classes` that it has arguments for; an instance is copied in `fit`.
    criterion : Module class
        Loss of logits and class numbers, or skorch's NLLLoss of probabilities. Of a loss of probabilities of your own
        say ``predict_nonlinearity=None``.
    class_weight : {"balanced"}, dict or None
        Weights of the classes in the loss.
    **kwargs : dict
        Parameters of `NetEstimator`, and all else that a skorch net takes.
    """

    def __init__(self, module, *, criterion=nn.CrossEntropyLoss, class_weight=None, **kwargs):
        super().__init__(module, criterion=criterion, **kwargs)
        self.class_weight = class_weight

    @property
    def classes_(self):
        """Class labels of shape (n_classes,); inside `fit`, where labels are numbers, those numbers."""
        if not hasattr(self, "_labels"):
            raise AttributeError(f"{type(self).__name__} has no attribute 'classes_' before fit")
        return np.arange(len(self._labels)) if self._fitting else self._labels

    def partial_fit(self, X, y=None, classes=None, sample_weight=None, **fit_params):
        """Train on, for `max_epochs` more epochs.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            Training data.
        y : array-like of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), optional
            All labels that will ever come; needed in the first call if `y` does not hold them all, and the same in
            others.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the samples in the loss.
        **fit_params : dict
            Passed on as skorch does.

        Returns
        -------
        self : object
            The fitted net.
        """
        if classes is not None and hasattr(self, "_labels"):
            classes = distinct(classes, "classes")
            if not np.array_equal(classes, self._labels):
                raise ValueError(
                    f"classes={classes[:10].tolist()} is not the same as on the last call to partial_fit or fit, which "
                    f"was {self._labels[:10].tolist()}."
                )
        return self._partial_fit(X, y, classes, sample_weight, fit_params)

    def _learn_labels(self, classes, in_y: Callable[[], Sequence]) -> None:
        known = classes if classes is not None else self.classes
        self._labels = distinct(in_y(), "y") if known is None else distinct(known, "classes")
        self._n_outputs = len(self._labels)

    def _learn_dataset(self, dataset, classes):
        self._learn_labels(classes, lambda: [int(dataset[i][1]) for i in range(len(dataset))])
        if not np.array_equal(self._labels, np.arange(len(self._labels))):
            raise ValueError(
                f"a Dataset's labels must be 0, ..., n_classes - 1; these are {self._labels[:10].tolist()}. "
                "Pass X and y as arrays, whose labels may be of any kind."
            )

    def _validate_y(self, y, classes, reset):
        y = checked_labels(y)
        if reset:
            self._learn_labels(classes, lambda: y)
            if len(self._labels) < 2:
                known = "y" if classes is None and self.classes is None else "classes"
                raise ValueError(
                    f"{type(self).__name__} needs samples of at least two classes; {known} holds "
                    f"{f'only one class, {self._labels.tolist()[0]!r}' if len(self._labels) else 'none'}."
                )
        unknown = np.setdiff1d(y, self._labels)
        if len(unknown):
            raise ValueError(
                f"y holds classes that the net does not know: {unknown[:10].tolist()}; it knows "
                f"{self._labels[:10].tolist()}. Name all classes by classes=[...], at the latest in the first "
                "partial_fit."
            )
        return np.searchsorted(self._labels, y)

    def _check_training_parameters(self) -> None:
        super()._check_training_parameters()
        check_class_weight(self)

    def _weights_by_class(self, y: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
        return weights_by_class(self.class_weight, self._labels, y, sample_weight)

    def _constant_loss(self, X, y):
        plain = isinstance(self.criterion_, nn.CrossEntropyLoss) and self.criterion_.weight is None
        if y is None or not plain or self.criterion_.label_smoothing:
            return None
        share = np.bincount(y, X.weight if isinstance(X, WeightedRows) else None) / len(y)
        return float(-np.sum(xlogy(share, share)))

    def _check_outputs(self, outputs):
        if isinstance(self.criterion_, nn.CrossEntropyLoss):
            check_logits(self.module_, outputs, self._n_outputs)
        elif isinstance(self.criterion_, nn.NLLLoss):
            check_probabilities(outputs)

    def _get_predict_nonlinearity(self):
        # skorch takes what an unknown loss sees for probabilities; here it sees logits.
        if self.predict_nonlinearity == "auto" and not isinstance(self.criterion_, nn.NLLLoss):
            return partial(torch.softmax, dim=-1)
        return super()._get_predict_nonlinearity()

    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            The samples.

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`.
        """
        return self._checked_outputs(super().predict_proba(self._check_new(X)))

    def predict(self, X):
        """Return the most probable class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            The samples.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Class labels.
        """
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(1)]

    def _module_sizes(self) -> dict:
        return super()._module_sizes() | {"n_classes": self._n_outputs}
