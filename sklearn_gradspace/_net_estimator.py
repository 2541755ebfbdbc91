"""NetEstimator: what a skorch classifier and a skorch regressor share to keep scikit-learn's contract.

Samples, targets and weights of any kind enter; rows that skorch trains on and a loss of them leave. What targets are is
the subclass's.
"""

import warnings
from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from skorch.dataset import get_len
from skorch.utils import is_dataset

from ._callbacks import CallbacksMixin, fit_report, reported
from ._parameter_checks import check_flags
from ._rows import RowDataset, WeightedRows, as_array, check_sample_shape
from ._skorch_sklearn import SklearnNetMixin
from ._training_checks import check_trained, check_training_parameters, told
from .gradients import counted_from, is_out_of_memory, to_device


def is_skorchs_own(X) -> bool:
    """Return whether `X` is a Dataset or a dictionary, which skorch takes and scikit-learn does not."""
    return is_dataset(X) or (isinstance(X, Mapping) and not sparse.issparse(X))  # a dok_array is a Mapping, too


class NetEstimator(CallbacksMixin, SklearnNetMixin):
    """Data, weights, loss and fits of a skorch net for any module; to the left of a skorch class.

    Parameters
    ----------
    module : Module class, instance or callable
        From (n, ...) to outputs of shape (n, n_outputs). A class or callable gets those of the data's sizes that it has
        arguments for, by their names; an instance is copied in `fit`, which begins at its weights.
    criterion : Module class
        Loss of outputs and targets.
    optimizer : Optimizer class
        Any of torch's.
    lr, max_epochs, batch_size
        As in skorch.
    random_state : int, RandomState or None
        Seed of initialization, order and dropout. Global random states are left alone.
    **kwargs : dict
        All else that a skorch net takes.
    """

    _fitting = False
    _unchecked = False  # in a fit, until its first outputs are checked
    _allow_nd = True
    class_weight = None  # a parameter of classifiers alone

    def __init__(
        self,
        module,
        *,
        criterion,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=30,
        batch_size=32,
        dataset=RowDataset,
        train_split=None,
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
        self.random_state = random_state
        self._drop_fitted_attributes()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    @property
    def _optimizer_class(self):
        return self.optimizer

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
        if (
            self._optimizer_class in (torch.optim.Adam, torch.optim.AdamW)
            and not {"foreach", "capturable"} & kwargs.keys()
        ):
            kwargs.setdefault("fused", True)
        return args, kwargs

    def check_data(self, X, y):
        """Do nothing: `fit` has checked the data.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples.
        y : array-like of shape (n_samples, ...)
            Targets.
        """

    @reported
    def fit(self, X, y=None, sample_weight=None, **fit_params):
        """Train the module from new, or on from where it is with `warm_start`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            Training data. Computation is in its precision.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, or the targets of a regressor.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the samples in the loss.
        **fit_params : dict
            Passed on as skorch does.

        Returns
        -------
        self : object
            The fitted net.
        """
        check_flags(self, "warm_start")
        fresh = not (self.warm_start and self.initialized_)
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._report = fit_report(self, fit_params.get("epochs", self.max_epochs), X=X, y=y, metadata=metadata)
        try:
            self._fit(X, y, None, sample_weight, fresh, fresh, "fit", fit_params)
            self._report.end(self)
        finally:
            del self._report
        return self

    def notify(self, method_name, **cb_kwargs):
        """Call a method of the net and of its callbacks, and at an epoch's begin and end scikit-learn's callbacks.

        Parameters
        ----------
        method_name : str
            Name of the method.
        **cb_kwargs : dict
            Passed on to it.
        """
        report = getattr(self, "_report", None)
        if report and method_name == "on_epoch_begin":
            report.begin_epoch(self)
        try:
            super().notify(method_name, **cb_kwargs)
        finally:  # skorch's early stopping leaves by an exception
            stops = report and method_name == "on_epoch_end" and report.end_epoch(self)
        if stops:
            raise KeyboardInterrupt  # skorch's way to end training

    def partial_fit(self, X, y=None, classes=None, sample_weight=None, **fit_params):
        """Train on, for `max_epochs` more epochs.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            Training data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        classes : None
            Not used; skorch's nets have it, classifier or not.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the samples in the loss.
        **fit_params : dict
            Passed on as skorch does.

        Returns
        -------
        self : object
            The fitted net.
        """
        return self._partial_fit(X, y, None, sample_weight, fit_params)

    def _partial_fit(self, X, y, classes, sample_weight, fit_params):
        reset = not hasattr(self, "_n_outputs")
        return self._fit(X, y, classes, sample_weight, reset, not self.initialized_, "partial_fit", fit_params)

    def _fit(self, X, y, classes, sample_weight, reset, initialize, method, fit_params):
        X, y = self._validate(X, y, classes, reset)
        if sample_weight is not None or self.class_weight is not None:
            X, y = self._with_weights(X, y, sample_weight)
        if reset:
            self._learn_targets(X, y)
        if not initialize:
            self._check_module_stays()
        random_state = self._random_state(fresh=initialize or not hasattr(self, "_rng_states"))
        with random_state, torch.inference_mode(False):
            if initialize:
                self.initialize()
            self._fitting = self._unchecked = True
            try:
                super().partial_fit(X, y, _routing_method=method, **fit_params)
            except (KeyError, ValueError) as error:
                known = told(error, self)
                if known is None:
                    raise
                raise known from error
            finally:
                del self._fitting
                vars(self).pop("_unchecked", None)
        if self.history:
            check_trained(self, self._constant_loss(X, y) if method == "fit" else None)
        return self

    def _constant_loss(self, X, y) -> float | None:
        """Return the training loss of the best constant prediction, or None where that is not known."""
        return None

    def forward_iter(self, X, training=False, device="cpu"):
        """Yield the module's outputs batch by batch; errors count rows from the first of all.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples.
        training : bool, default=False
            Whether the module is in training mode.
        device : str, default="cpu"
            Where the outputs are moved to.

        Yields
        ------
        outputs : Tensor
            Those of a batch.
        """
        start, batches = 0, super().forward_iter(X, training=training, device=device)
        while True:
            with counted_from(start):
                if (outputs := next(batches, None)) is None:
                    return
            yield outputs
            start += len(outputs[0] if isinstance(outputs, tuple) else outputs)

    def _check_module_stays(self) -> None:
        """Raise ValueError where a parameter was changed that the module, which is trained on, was made with."""
        for name, before in getattr(self, "_made_with", {}).items():  # files of older versions lack it
            now = getattr(self, name)
            one, other = (np.array(value, dtype=object).ravel() for value in (now, before))
            if not np.array_equal(one, other):
                raise ValueError(
                    f"{name}={now!r}, but the module was made with {name}={before!r}: warm_start and partial_fit go on "
                    f"with the module that is there. Keep {name}, or begin anew by fit with warm_start=False."
                )

    def _check_training_parameters(self) -> None:
        check_training_parameters(self)

    def _check_outputs(self, outputs: torch.Tensor) -> None:
        """Raise ValueError where a fit's first outputs cannot be those of a module for its loss."""

    def _validate(self, X, y, classes, reset):
        self._check_training_parameters()
        if y is None:
            if not is_dataset(X):
                raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
            if reset:
                self._learn_dataset(X, classes)
            return self._validate_X(X, reset), None
        X, y = self._validate_X(X, reset), self._validate_y(as_array(y), classes, reset)
        n_rows = get_len(X) if isinstance(X, Mapping) else X.shape[0]
        if len(y) != n_rows:
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: X has {n_rows}, y has {len(y)}."
            )
        return X, y

    def _validate_y(self, y, classes, reset: bool) -> np.ndarray:
        """Return the targets that skorch is to see; with `reset`, learn `_n_outputs` and what else they tell."""
        raise NotImplementedError

    def _learn_dataset(self, dataset, classes) -> None:
        """Learn from the targets of a Dataset what `_validate_y` learns from an array."""
        raise NotImplementedError

    def _learn_targets(self, X, y: np.ndarray | None) -> None:
        """Learn what depends on the weights as well, which `X` carries where there are some."""

    def _validate_X(self, X, reset):
        if is_skorchs_own(X):
            if reset:
                self._set_dtype(np.dtype(np.float32))
            return X
        dtype = [np.float64, np.float32] if reset else self._numpy_dtype
        X = as_array(X)
        if not reset:
            check_sample_shape(X, getattr(self, "_sample_shape", None))
        X = validate_data(self, X, reset=reset, accept_sparse="csr", dtype=dtype, allow_nd=self._allow_nd)
        if reset:
            self._set_dtype(X.dtype)
            self._sample_shape = X.shape[1:]
            self._n_inputs = prod(self._sample_shape)
        return X

    def _set_dtype(self, dtype: np.dtype) -> None:
        self._numpy_dtype, self._dtype = dtype, getattr(torch, dtype.name)

    def _check_new(self, X):
        """Return data to predict for, checked; inside `fit` it is."""
        if self._fitting:
            return X
        check_is_fitted(self, ["module_", "_n_outputs"])
        return self._validate_X(X, reset=False)

    def _checked_outputs(self, outputs: np.ndarray) -> np.ndarray:
        """Return outputs, or name the rows whose are not finite; inside `fit` the loss tells."""
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(1)
        if not (self._fitting or finite.all()):
            raise ValueError(
                f"predictions for rows {np.flatnonzero(~finite)[:10].tolist()} are not finite: these rows, or the "
                "weights, are too large for the net. Scale the input, or use a smaller lr."
            )
        return outputs

    def _with_weights(self, X, y, sample_weight):
        """Attach weights of mean 1; a row of weight 0 is left out, which is the same and keeps batches full."""
        if y is None or isinstance(X, Mapping):
            raise ValueError("sample_weight and class_weight need X and y as arrays, not a Dataset or a dictionary.")
        weight = _check_sample_weight(sample_weight, y, dtype=self._numpy_dtype, ensure_non_negative=True)
        if self.class_weight is not None:
            weight = weight * self._weights_by_class(y, weight)
        rows = np.flatnonzero(weight)
        if not len(rows):
            raise ValueError("sample_weight and class_weight: all weights are zero, so that nothing is left to fit.")
        weight = weight[rows]
        return WeightedRows(X[rows], (weight / weight.mean()).astype(self._numpy_dtype)), y[rows]

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the mean loss of a batch, weighted where `fit` was given weights.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_outputs)
            Outputs of the module.
        y_true : Tensor of shape (n,) or (n, n_outputs)
            Numbers of the classes, or targets.
        X : array-like
            The batch.
        training : bool, default=False
            Whether this is a step of training.

        Returns
        -------
        loss : Tensor of shape ()
            The loss.
        """
        y_pred = y_pred[0] if isinstance(y_pred, tuple) else y_pred  # as skorch predicts
        if not isinstance(y_pred, torch.Tensor):
            raise ValueError(f"module must return a Tensor, or a tuple of which it is the first, not {y_pred!r:.80}.")
        y_true = to_device(y_true, y_pred.device)
        if not self._unchecked:
            return self._batch_loss(y_pred, y_true, X, training)
        del self._unchecked
        self._check_outputs(y_pred)
        if isinstance(X, WeightedRows) and not hasattr(self.criterion_, "reduction"):
            raise ValueError(f"weights need a criterion with a reduction, which {self.criterion_} lacks.")
        try:
            return self._batch_loss(y_pred, y_true, X, training)
        except (RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"criterion={self.criterion!r} cannot be computed of outputs of shape {tuple(y_pred.shape)} and "
                f"targets of shape {tuple(y_true.shape)} and {y_true.dtype}: {error}"
            ) from error

    def _batch_loss(self, y_pred, y_true, X, training):
        if not isinstance(X, WeightedRows):
            return super().get_loss(y_pred, y_true, X=X, training=training)
        reduction, self.criterion_.reduction = self.criterion_.reduction, "none"
        try:
            losses = super().get_loss(y_pred, y_true, X=X, training=training)
        finally:
            self.criterion_.reduction = reduction
        losses = losses.reshape(len(losses), -1).mean(1)  # over the outputs of a regressor
        by_class = None if y_true.is_floating_point() else getattr(self.criterion_, "weight", None)
        total = len(losses) if by_class is None else by_class[y_true].sum()  # what torch's mean divides by
        return (losses * to_device(torch.from_numpy(X.weight), losses.device)).sum() / total

    def _restore(self) -> None:
        """Make all that skorch makes beside the module, which is there and stays as it is."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `fit` has given them
            self._initialize_virtual_params()
            self._initialize_callbacks()
            self._initialize_criterion()
            self._initialize_optimizer()
        self.initialized_ = True

    def _module_sizes(self) -> dict:
        return {"n_features": self._n_inputs, "n_outputs": self._n_outputs}
