"""NetClassifier: a skorch classifier for any module that keeps scikit-learn's contract.

Samples and labels of any kind enter; a classifier with true labels leaves. It is the base of the package's classifiers.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import assert_all_finite, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
from skorch import NeuralNetClassifier
from skorch.dataset import get_len
from skorch.utils import is_dataset
from torch import nn

from ._rows import RowDataset, WeightedRows, as_array
from ._skorch_sklearn import SklearnNetMixin


def is_skorchs_own(X) -> bool:
    """Return whether `X` is a Dataset or a dictionary, which skorch takes and scikit-learn does not."""
    return is_dataset(X) or (isinstance(X, Mapping) and not sparse.issparse(X))  # a dok_array is a Mapping, too


class NetClassifier(SklearnNetMixin, NeuralNetClassifier):
    """A skorch classifier for any module, with scikit-learn's contract.

    Parameters
    ----------
    module : Module class, instance or callable
        From (n, ...) to logits of shape (n, n_classes). A class gets `n_features` and `n_classes` from the data.
    criterion : Module class
        Loss of logits and class numbers.
    optimizer : Optimizer class
        Any of torch's.
    lr, max_epochs, batch_size
        As in skorch.
    class_weight : {"balanced"}, dict or None
        Weights of the classes in the loss.
    random_state : int, RandomState or None
        Seed of initialization, order and dropout. Global random states are left alone.
    **kwargs : dict
        All else that a skorch net takes.
    """

    _fitting = False
    _allow_nd = True

    def __init__(
        self,
        module,
        *,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=30,
        batch_size=32,
        dataset=RowDataset,
        train_split=None,
        class_weight=None,
        random_state=None,
        iterator_train__shuffle=True,
        verbose=0,
        **kwargs,
    ):
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            dataset=dataset,
            train_split=train_split,
            iterator_train__shuffle=iterator_train__shuffle,
            verbose=verbose,
            **kwargs,
        )
        self.class_weight = class_weight
        self.random_state = random_state
        self._drop_fitted_attributes()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    @property
    def classes_(self):
        """Class labels of shape (n_classes,); inside `fit`, where labels are numbers, those numbers."""
        if not hasattr(self, "_labels"):
            raise AttributeError(f"{type(self).__name__} has no attribute 'classes_' before fit")
        return np.arange(len(self._labels)) if self._fitting else self._labels

    def get_params_for_optimizer(self, prefix, named_parameters):
        """Return the arguments of the optimizer; Adam's fused form, up to ten times faster, unless told otherwise.

        Parameters
        ----------
        prefix : str
            Name of the optimizer.
        named_parameters : iterable of (str, Parameter)
            What it optimizes.

        Returns
        -------
        args : tuple
            The parameter groups.
        kwargs : dict
            All other arguments.
        """
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if self.optimizer in (torch.optim.Adam, torch.optim.AdamW) and not {"foreach", "capturable"} & kwargs.keys():
            kwargs.setdefault("fused", True)
        return args, kwargs

    def check_data(self, X, y):
        """Do nothing: `fit` has checked the data."""

    def fit(self, X, y=None, sample_weight=None, **fit_params):
        """Train the module from new, or on from where it is with `warm_start`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            Training data. Computation is in its precision.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the samples in the loss.
        **fit_params : dict
            Passed on as skorch does.

        Returns
        -------
        self : object
            The fitted net.
        """
        fresh = not (self.warm_start and self.initialized_)
        return self._fit(X, y, None, sample_weight, fresh, fresh, "fit", fit_params)

    def partial_fit(self, X, y=None, classes=None, sample_weight=None, **fit_params):
        """Train on, for `max_epochs` more epochs.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            Training data.
        y : array-like of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), optional
            All labels that will ever come; needed in the first call if `y` does not hold them all.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the samples in the loss.
        **fit_params : dict
            Passed on as skorch does.

        Returns
        -------
        self : object
            The fitted net.
        """
        reset = not hasattr(self, "_labels")
        return self._fit(X, y, classes, sample_weight, reset, not self.initialized_, "partial_fit", fit_params)

    def _fit(self, X, y, classes, sample_weight, reset, initialize, method, fit_params):
        X, y = self._validate(X, y, classes, reset)
        if sample_weight is not None or self.class_weight is not None:
            X, y = self._with_weights(X, y, sample_weight)
        with self._random_state(fresh=initialize or not hasattr(self, "_rng_states")):
            if initialize:
                self.initialize()
            self._fitting = True
            try:
                NeuralNetClassifier.partial_fit(self, X, y, _routing_method=method, **fit_params)
            finally:
                del self._fitting
        loss = self.history[-1].get("train_loss", 0.0) if self.history else 0.0  # an interrupted epoch has none
        if not np.isfinite(loss):
            raise ValueError(f"training diverged, the loss is {loss}: use a smaller lr, or scale the input.")
        return self

    def _validate(self, X, y, classes, reset):
        if y is None:
            if not is_dataset(X):
                raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
            if reset:
                known = classes if classes is not None else self.classes
                self._labels = np.unique([int(X[i][1]) for i in range(len(X))] if known is None else known)
                if not np.array_equal(self._labels, np.arange(len(self._labels))):
                    raise ValueError(
                        f"a Dataset's labels must be 0, ..., n_classes - 1; these are {self._labels[:10].tolist()}. "
                        "Pass X and y as arrays, whose labels may be of any kind."
                    )
            return self._validate_X(X, reset), None
        X = self._validate_X(X, reset)
        y = column_or_1d(as_array(y), warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        n_rows = get_len(X) if isinstance(X, Mapping) else X.shape[0]
        if len(y) != n_rows:
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: X has {n_rows}, y has {len(y)}."
            )
        if reset:
            known = classes if classes is not None else self.classes
            self._labels = np.unique(y if known is None else known)
            if len(self._labels) < 2:
                raise ValueError(
                    f"{type(self).__name__} needs samples of at least two classes; y holds only one class, "
                    f"{self._labels[0]!r}."
                )
        unknown = np.setdiff1d(y, self._labels)
        if len(unknown):
            raise ValueError(
                f"y holds classes that the net does not know: {unknown[:10].tolist()}; it knows "
                f"{self._labels[:10].tolist()}. Name all classes in the first partial_fit(classes=...)."
            )
        return X, np.searchsorted(self._labels, y)

    def _validate_X(self, X, reset):
        if is_skorchs_own(X):
            if reset:
                self._set_dtype(np.dtype(np.float32))
            return X
        dtype = [np.float64, np.float32] if reset else self._numpy_dtype
        X = validate_data(self, as_array(X), reset=reset, accept_sparse="csr", dtype=dtype, allow_nd=self._allow_nd)
        if reset:
            self._set_dtype(X.dtype)
        return X

    def _set_dtype(self, dtype: np.dtype) -> None:
        self._numpy_dtype, self._dtype = dtype, getattr(torch, dtype.name)

    def _with_weights(self, X, y, sample_weight):
        """Attach weights of mean 1; a row of weight 0 is left out, which is the same and keeps batches full."""
        if y is None or isinstance(X, Mapping):
            raise ValueError("sample_weight and class_weight need X and y as arrays, not a Dataset or a dictionary.")
        weight = _check_sample_weight(sample_weight, y, dtype=self._numpy_dtype, ensure_non_negative=True)
        if self.class_weight is not None:
            codes = self.class_weight
            if isinstance(codes, Mapping):
                unknown = sorted(set(codes) - set(self._labels.tolist()), key=str)
                if unknown or min(codes.values()) < 0:
                    raise ValueError(f"class_weight has negative weights, or labels that y does not: {unknown}.")
                codes = {i: codes.get(label, 1.0) for i, label in enumerate(self._labels.tolist())}
            weight = weight * compute_sample_weight(codes, y)
        rows = np.flatnonzero(weight)
        if not len(rows):
            raise ValueError("sample_weight: all weights are zero, so that nothing is left to fit.")
        weight = weight[rows]
        return WeightedRows(X[rows], (weight / weight.mean()).astype(self._numpy_dtype)), y[rows]

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the mean loss of a batch, weighted where `fit` was given weights.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_classes)
            Logits.
        y_true : Tensor of shape (n,)
            Numbers of the classes.
        X : array-like
            The batch.
        training : bool, default=False
            Whether this is a step of training.

        Returns
        -------
        loss : Tensor of shape ()
            The loss.
        """
        y_true = y_true.to(y_pred.device)
        if not isinstance(X, WeightedRows):
            return super().get_loss(y_pred, y_true, X=X, training=training)
        if not hasattr(self.criterion_, "reduction"):
            raise ValueError(f"weights need a criterion with a reduction, which {self.criterion_} lacks.")
        reduction, self.criterion_.reduction = self.criterion_.reduction, "none"
        try:
            losses = super().get_loss(y_pred, y_true, X=X, training=training)
        finally:
            self.criterion_.reduction = reduction
        by_class = getattr(self.criterion_, "weight", None)
        total = len(losses) if by_class is None else by_class[y_true].sum()  # what torch's mean divides by
        return (losses * torch.as_tensor(X.weight, device=losses.device)).sum() / total

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
        if not self._fitting:
            check_is_fitted(self)
            X = self._validate_X(X, reset=False)
        return super().predict_proba(X)

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
        return {"n_features": self.n_features_in_, "n_classes": len(self._labels)}
