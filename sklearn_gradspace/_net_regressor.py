"""NetRegressor: a skorch regressor for any module that keeps scikit-learn's contract.

Samples and one or more targets enter; a regressor leaves, which learns targets of mean 0 and variance 1.
"""

import numpy as np
import torch
from sklearn.utils import check_array
from skorch import NeuralNetRegressor
from torch import nn

from ._net_estimator import NetEstimator
from ._parameter_checks import check_flags
from ._rows import WeightedRows


class NetRegressor(NetEstimator, NeuralNetRegressor):
    """A skorch regressor for any module, with scikit-learn's contract.

    Parameters
    ----------
    module : Module class, instance or callable
        From (n, ...) to outputs of shape (n, n_outputs), or (n,) for one. A class or callable gets those of
        `n_features` and `n_outputs` that it has arguments for; an instance is copied in `fit`.
    criterion : Module class
        Loss of outputs and targets.
    normalize_y : bool
        Whether the module learns targets less `y_mean_`, divided by `y_scale_`.
    **kwargs : dict
        Parameters of `NetEstimator`, and all else that a skorch net takes.
    """

    def __init__(self, module, *, criterion=nn.MSELoss, normalize_y=True, **kwargs):
        super().__init__(module, criterion=criterion, **kwargs)
        self.normalize_y = normalize_y

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _validate_y(self, y, classes, reset):
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if y.ndim not in (1, 2):
            raise ValueError(f"y must be of shape (n_samples,) or (n_samples, n_outputs), not {y.shape}.")
        if reset:
            self._one_target, self._n_outputs = y.ndim == 1, y[:1].size
        y = y.reshape(len(y), -1)
        if y.shape[1] != self._n_outputs:
            raise ValueError(f"y has {y.shape[1]} targets a row; the net was fitted to {self._n_outputs}.")
        return y

    def _check_training_parameters(self) -> None:
        super()._check_training_parameters()
        check_flags(self, "normalize_y")
        if self.class_weight is not None:
            raise ValueError("class_weight is a parameter of classifiers: pass sample_weight to fit.")

    def _constant_loss(self, X, y):
        if y is None or not self.normalize_y or not isinstance(self.criterion_, nn.MSELoss):
            return None
        weight = X.weight if isinstance(X, WeightedRows) else None
        return float(np.average(((y - self.y_mean_) / self.y_scale_) ** 2, axis=0, weights=weight).mean())

    def _learn_dataset(self, dataset, classes):
        first = np.asarray(dataset[0][1])
        self._one_target, self._n_outputs = first.ndim == 0, first.size

    def _learn_targets(self, X, y):
        self.y_mean_, self.y_scale_ = np.zeros(self._n_outputs), np.ones(self._n_outputs)
        if self.normalize_y and y is not None:
            weight = X.weight if isinstance(X, WeightedRows) else None
            self.y_mean_ = np.average(y, axis=0, weights=weight)
            deviation = np.sqrt(np.average((y - self.y_mean_) ** 2, axis=0, weights=weight))
            constant = deviation <= 10 * np.finfo(float).eps * np.abs(self.y_mean_)
            self.y_scale_ = np.where(constant, 1.0, deviation)

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the mean loss of a batch, in the units that the module learns in.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_outputs) or (n,)
            Outputs of the module.
        y_true : Tensor of shape (n, n_outputs) or (n,)
            Targets.
        X : array-like
            The batch.
        training : bool, default=False
            Whether this is a step of training.

        Returns
        -------
        loss : Tensor of shape ()
            The loss.
        """
        y_pred, y_true = y_pred.reshape(len(y_pred), -1), y_true.reshape(len(y_true), -1)
        if y_pred.shape != y_true.shape:
            raise ValueError(f"the module returns {y_pred.shape[1]} outputs a row; y has {y_true.shape[1]} targets.")
        y_true = (y_true.cpu() - torch.as_tensor(self.y_mean_)) / torch.as_tensor(self.y_scale_)
        return super().get_loss(y_pred, y_true.to(y_pred.dtype), X=X, training=training)

    @property
    def predict_proba(self):
        """Nothing: a regressor has no probabilities, and scikit-learn takes what has some for a classifier."""
        raise AttributeError(f"{type(self).__name__} has no probabilities: use predict.")

    def predict(self, X):
        """Return the predicted targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), sparse matrix or Dataset
            The samples.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Targets, of the shape that `y` had in `fit`.
        """
        outputs = self._checked_outputs(super().predict_proba(self._check_new(X)))
        y = (outputs.reshape(len(outputs), -1) * self.y_scale_ + self.y_mean_).astype(outputs.dtype)
        return y[:, 0] if self._one_target else y
