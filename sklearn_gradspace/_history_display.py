"""HistoryDisplay: losses and scores over the epochs of a fit, in the convention of scikit-learn's displays.

A fitted skorch net, or a pipeline that ends with one, enters; a drawing on matplotlib's axes leaves.
"""

from numbers import Real

from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping

_LABELS = {"train_loss": "training", "valid_loss": "validation"}
_COLORS = {"train": "C0", "valid": "C1"}


class HistoryDisplay:
    """Losses and scores over the epochs of a fit; make it by :meth:`from_estimator`.

    Parameters
    ----------
    epochs : list of int
        Numbers of the epochs.
    losses, scores : dict of str to list of float
        Values of each column of the history, one an epoch; None where an epoch has none.
    best_epoch : int, optional
        The epoch whose weights early stopping went back to.

    Attributes
    ----------
    axes_ : list of Axes
        The axes of losses and, below them, those of scores if there are any.
    lines_ : dict of str to Line2D
        The line of each column.
    figure_ : Figure
        The figure around them.

    See Also
    --------
    sklearn.model_selection.LearningCurveDisplay : Scores over the number of rows.
    sklearn.model_selection.ValidationCurveDisplay : Scores over a parameter.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import ECOptClassifier, HistoryDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = ECOptClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> display = HistoryDisplay.from_estimator(classifier)
    >>> len(display.epochs), [*display.losses]
    (5, ['train_loss'])
    """

    def __init__(self, epochs, losses, scores, *, best_epoch=None):
        self.epochs = epochs
        self.losses = losses
        self.scores = scores
        self.best_epoch = best_epoch

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, **kwargs):
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        estimator : NeuralNet or Pipeline
            A fitted skorch net, such as a GradNetClassifier or an ECOptClassifier, or a pipeline that ends with one.
        ax : Axes or sequence of two Axes, optional
            As of :meth:`plot`.
        **kwargs : dict
            As of :meth:`plot`.

        Returns
        -------
        display : HistoryDisplay
            What was drawn.

        Raises
        ------
        TypeError
            If there is no skorch net.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_gradspace import ECOptRegressor, HistoryDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> regressor = ECOptRegressor(max_epochs=2, random_state=0).fit(X[:, :3], X[:, 3])
        >>> HistoryDisplay.from_estimator(regressor).epochs
        [1, 2]
        """
        net = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        if not isinstance(net, NeuralNet):
            raise TypeError(f"estimator has no history: it is a {type(net).__name__}, and no skorch net.")
        check_is_fitted(net)
        history = [row for row in net.history if "train_loss" in row]  # an interrupted epoch has none
        names = dict.fromkeys(name for row in history for name in sorted(row) if _is_curve(name, row[name]))
        columns = {name: [row.get(name) for row in history] for name in names}
        losses = {name: column for name, column in columns.items() if name.endswith("loss")}
        scores = {name: column for name, column in columns.items() if name not in losses}
        display = cls([row["epoch"] for row in history], losses, scores, best_epoch=_best_epoch(net))
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw.

        Parameters
        ----------
        ax : Axes or sequence of two Axes, optional
            Where to draw the losses, or losses and scores; by default on new axes. On a single one scores are not
            drawn.
        **kwargs : dict
            Passed on to matplotlib's ``plot`` for every line.

        Returns
        -------
        display : HistoryDisplay
            This display, with `axes_`, `lines_` and `figure_`.

        Examples
        --------
        >>> from sklearn_gradspace import HistoryDisplay
        >>> display = HistoryDisplay([1, 2], {"train_loss": [1.0, 0.5]}, {}).plot(color="C3")
        >>> display.lines_["train_loss"].get_ydata().tolist()
        [1.0, 0.5]
        """
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            import matplotlib.pyplot as plt

            n = 2 if self.scores else 1
            ax = plt.subplots(n, 1, sharex=True, squeeze=False, figsize=(6, 1 + 2.2 * n), layout="constrained")[1][:, 0]
        self.axes_ = list(ax) if hasattr(ax, "__len__") else [ax]
        self.figure_, self.lines_ = self.axes_[0].figure, {}
        for axes, columns, label in zip(self.axes_, (self.losses, self.scores), ("loss", "score")):
            for name, column in columns.items():
                shown, color = _LABELS.get(name, name), _COLORS.get(name.partition("_")[0])
                values = [float("nan") if value is None else value for value in column]
                style = {"label": shown, "color": color, "marker": "o", "markersize": 3} | kwargs
                (self.lines_[name],) = axes.plot(self.epochs, values, **style)
            if self.best_epoch is not None:
                axes.axvline(self.best_epoch, color="0.5", linestyle=":", label="best epoch")
            axes.set_ylabel(label)
            locator = axes.xaxis.get_major_locator()
            if isinstance(locator, MaxNLocator):  # unless the axes were given another one
                locator.set_params(integer=True, min_n_ticks=1)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        self.axes_[-1].set_xlabel("epoch")
        return self


def _is_curve(name, value) -> bool:
    """Return whether a column of a history is to be drawn: numbers, but no bookkeeping of skorch."""
    own = name in ("epoch", "dur", "batches") or name.endswith(("_best", "_batch_count")) or name.startswith("event_")
    return not own and isinstance(value, Real) and not isinstance(value, bool)


def _best_epoch(net) -> int | None:
    """Return the epoch that early stopping went back to, if it did."""
    # A net from a file has callbacks that have seen no epoch.
    found = [getattr(c, "best_epoch_", None) for _, c in net.callbacks_ if isinstance(c, EarlyStopping) and c.load_best]
    return found[-1] if found else None
