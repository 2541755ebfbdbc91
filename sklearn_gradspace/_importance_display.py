"""EdgeImportanceDisplay: looking at importances, in the convention of scikit-learn's displays.

A fitted EdgeImportance enters; a drawing on matplotlib's axes leaves.
"""

from collections.abc import Mapping

from sklearn.utils.validation import check_is_fitted

from ._importance_drawings import DRAWINGS


class EdgeImportanceDisplay:
    """Drawing of the important edges of a net; make it by :meth:`from_estimator`.

    Parameters
    ----------
    net : Module
        The net.
    importances : dict of str to ndarray
        Of the entries of its parameters.
    weights : dict of str to ndarray
        These entries.
    kind : {"layers", "graph", "filters", "agreement"}, default="layers"
        What to draw.
    other : dict of str to ndarray, optional
        Other importances of the same entries, for ``kind="agreement"``.
    rank_correlation : float, optional
        Between the two.
    name, other_name : str, optional
        What the two are called.
    image_shape : (int, int), optional
        Height and width of samples that are images.

    Attributes
    ----------
    ax_ : Axes
        What was drawn on.
    figure_ : Figure
        The figure around it.

    See Also
    --------
    EdgeImportance : Finds the importances.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import EdgeImportance, EdgeImportanceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> importance = EdgeImportance(random_state=0).fit(X, y)
    >>> display = EdgeImportanceDisplay.from_estimator(importance, kind="graph")  # doctest: +SKIP
    """

    def __init__(
        self,
        net,
        importances,
        weights,
        *,
        kind="layers",
        other=None,
        rank_correlation=None,
        name=None,
        other_name=None,
        image_shape=None,
    ):
        self.net = net
        self.importances = importances
        self.weights = weights
        self.kind = kind
        self.other = other
        self.rank_correlation = rank_correlation
        self.name = name
        self.other_name = other_name
        self.image_shape = image_shape

    @classmethod
    def from_estimator(cls, estimator, *, kind="layers", other=None, label=None, image_shape=None, ax=None, **kwargs):
        """Draw the importances of a fitted estimator.

        Parameters
        ----------
        estimator : EdgeImportance
            Fitted.
        kind : {"layers", "graph", "filters", "agreement"}, default="layers"
            "layers": each parameter's share of the importance, as bars. "graph": a net of linear layers, with the
            strongest edges. "filters": the filters of a convolution, or of a linear layer on images, the most important
            first. "agreement": the entries by two scores.
        other : EdgeImportance or dict of str to ndarray, optional
            What to compare with, for ``kind="agreement"``.
        label : object, optional
            A class, whose importances are drawn; it needs ``per_class=True``.
        image_shape : (int, int), optional
            Height and width of samples that are images; by default the last two axes of a sample, if it has them.
        ax : Axes, optional
            Where to draw; by default on new axes.
        **kwargs : dict
            As of :meth:`plot`.

        Returns
        -------
        display : EdgeImportanceDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "importances_")
        importances = estimator.importances_ if label is None else estimator.importances_of(label)
        weights = {n: estimator.module_.get_parameter(n).detach().cpu().double().numpy() for n in importances}
        shape = estimator.sample_shape_
        display = cls(
            estimator.module_,
            importances,
            weights,
            kind=kind,
            other=other if other is None or isinstance(other, Mapping) else other.importances_,
            rank_correlation=None if other is None else estimator.rank_correlation(other),
            name=estimator.criterion,
            other_name=getattr(other, "criterion", None),
            image_shape=shape[-2:] if image_shape is None and len(shape) in (2, 3) else image_shape,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; by default on new axes.
        **kwargs : dict
            ``n_edges=150`` edges of each layer in a graph; ``layer``, a name, and ``n_filters=32`` of filters.

        Returns
        -------
        display : EdgeImportanceDisplay
            This display, with `ax_` and `figure_`.
        """
        if self.kind not in DRAWINGS:
            raise ValueError(f"kind={self.kind!r} is none of {', '.join(map(repr, DRAWINGS))}.")
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=_SIZES[self.kind], layout="constrained")[1]
        DRAWINGS[self.kind](self, ax, **kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self


_SIZES = {"graph": (9, 6), "filters": (9, 5), "layers": (6.5, 2.8), "agreement": (5.5, 4.5)}
