"""scikit-learn's callbacks on a fit, beside skorch's: progress bars and monitors that a search hands on.

An estimator and its data enter; hooks of whatever `set_callbacks` registered are called. Before scikit-learn 1.9, which
brought them, nothing happens.
"""

from collections.abc import Callable
from functools import wraps

try:
    from sklearn.callback import CallbackSupportMixin as CallbacksMixin
    from sklearn.callback import with_callbacks as reported  # decorates a method that makes a report
except ImportError:

    class CallbacksMixin:  # type: ignore[no-redef]
        """Stands in for the mixin."""

    def reported(fit: Callable) -> Callable:
        """Stand in for the decorator."""
        return fit


class FitReport:
    """The tasks of one fit, told to scikit-learn's callbacks: the fit itself, and its epochs.

    Parameters
    ----------
    estimator : estimator
    max_subtasks : int
        Number of epochs at most.
    **data
        X, y and metadata of the fit, as it got them.
    """

    def __init__(self, estimator, max_subtasks: int = 0, **data) -> None:
        self._data = data
        self._context = estimator._init_callback_context(max_subtasks=max_subtasks)
        self._context.call_on_fit_task_begin(estimator=estimator, **data)

    def begin_epoch(self, estimator) -> None:
        """Tell that an epoch begins."""
        self._epoch = self._context.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(estimator=estimator, **self._data)

    def end_epoch(self, estimator) -> bool:
        """Tell that the epoch ended; return whether a callback wants to stop."""
        return self._end(self._epoch, estimator)

    def end(self, estimator) -> None:
        """Tell that the fit ended."""
        self._end(self._context, estimator)

    def _end(self, context, estimator) -> bool:
        # A copy of the estimator with this attribute predicts, also in the middle of a fit.
        attributes = {"_fitting": False} if hasattr(estimator, "_fitting") else {}
        return context.call_on_fit_task_end(estimator=estimator, reconstruction_attributes=attributes, **self._data)


class _NoReport:
    """Stands in for a FitReport where scikit-learn has no callbacks."""

    def __init__(self, *args, **data) -> None:
        pass

    def begin_epoch(self, estimator) -> None:
        pass

    def end_epoch(self, estimator) -> bool:
        return False

    def end(self, estimator) -> None:
        pass


def fit_report(estimator, max_subtasks: int = 0, **data) -> FitReport | _NoReport:
    """Begin the report of a fit."""
    make = FitReport if hasattr(estimator, "_init_callback_context") else _NoReport
    return make(estimator, max_subtasks, **data)


def reported_fit(fit: Callable) -> Callable:
    """Decorate ``fit(X, y)``, which may take `sample_weight`, to be one task of scikit-learn's callbacks."""

    @reported
    @wraps(fit)
    def run(self, X, y=None, sample_weight=None):
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        report = fit_report(self, X=X, y=y, metadata=metadata or None)
        fit(self, X, y, **metadata)
        report.end(self)
        return self

    return run
