"""What a skorch classifier does beside its steps: schedule, rows held out, early stopping, calibration.

`HeldOutMixin` stands to the left of a `NetClassifier` with the parameters schedule, early_stopping, validation_fraction
and n_iter_no_change; `temperature_` leaves.
"""

from numbers import Integral
from typing import Any

import numpy as np
import torch
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from ._calibration import fit_temperature
from ._parameter_checks import check_choices, check_flags, check_number
from ._rows import WeightedRows
from ._schedule import CosineSchedule


class _Stopping(EarlyStopping):
    def on_train_end(self, net, **kwargs) -> None:
        if net.history:  # without an epoch skorch finds no best one
            super().on_train_end(net, **kwargs)


class HeldOutMixin:
    """Schedule, early stopping and calibration, by skorch's callbacks and splits."""

    _held_out: Any

    def _check_held_out(self) -> None:
        check_choices(self, {"schedule": (None, "cosine")})
        check_flags(self, "early_stopping")
        if self.early_stopping:
            fraction = self.validation_fraction
            check_number(fraction, "validation_fraction", min_val=0, max_val=1, include_boundaries="neither")
            check_number(self.n_iter_no_change, "n_iter_no_change", Integral, min_val=1)

    def set_params(self, **params):
        """Set parameters of the net, its module, criterion, optimizer and callbacks.

        Parameters
        ----------
        **params : dict
            Names as :meth:`get_params` gives them.

        Returns
        -------
        self : object
            The net.
        """
        super().set_params(**params)
        if self.initialized_ and params.keys() & {"schedule", "early_stopping", "n_iter_no_change"}:
            self._initialize_callbacks()
        return self

    def _yield_callbacks(self):
        yield from super()._yield_callbacks()
        if self.schedule is not None:
            yield "schedule", CosineSchedule(), True
        if self.early_stopping:
            # The last of all: where it stops, those after it would not see the epoch.
            stopping = _Stopping(patience=self.n_iter_no_change, threshold=0, load_best=True)
            yield "early_stopping", stopping, True

    def get_split_datasets(self, X, y=None, **fit_params):
        """Return the rows to train on and those held out.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            All rows.
        y : array-like of shape (n_samples,)
            Numbers of their classes.
        **fit_params : dict
            Passed on to `train_split`.

        Returns
        -------
        dataset_train : Dataset
            The rows to train on.
        dataset_valid : Dataset or None
            The rows held out.
        """
        dataset, split = self.get_dataset(X, y), self.train_split
        if self.early_stopping and not split:
            # The seed of the whole fit: the same rows are held out when training goes on.
            split = ValidSplit(float(self.validation_fraction), stratified=True, random_state=torch.initial_seed())
        try:
            train, self._held_out = split(dataset, y, **fit_params) if split else (dataset, None)
        except ValueError as error:
            if self.train_split:
                raise
            raise ValueError(
                f"early_stopping cannot hold out validation_fraction={self.validation_fraction} of {len(dataset)} rows "
                f"of {len(self._labels)} classes: {error}"
            ) from error
        self.temperature_ = 1.0
        return train, self._held_out

    def _fit(self, *args):
        epochs = args[-1].get("epochs")
        self._held_out, self._epochs = None, self.max_epochs if epochs is None else epochs
        try:
            super()._fit(*args)
            if self._held_out is not None and isinstance(self.criterion_, nn.CrossEntropyLoss):
                self.temperature_ = self._temperature(self._held_out)
        finally:
            del self._held_out, self._epochs
        return self

    def _temperature(self, dataset) -> float:
        """Return the temperature that suits the rows of `dataset`, which have weights where `fit` got some."""
        logits, y, weight = [], [], []
        for batch in self.get_iterator(dataset, training=False):
            logits.append(self.evaluation_step(batch).cpu().numpy())
            y.append(np.asarray(batch[1]))
            weight.append(batch[0].weight if isinstance(batch[0], WeightedRows) else np.ones(len(y[-1])))
        return fit_temperature(np.concatenate(logits), np.concatenate(y), np.concatenate(weight))[0]

    def _get_predict_nonlinearity(self):
        nonlinearity, temperature = super()._get_predict_nonlinearity(), getattr(self, "temperature_", 1.0)
        if self.predict_nonlinearity is None:  # outputs as they are
            return nonlinearity
        return lambda logits: nonlinearity(logits / temperature)
