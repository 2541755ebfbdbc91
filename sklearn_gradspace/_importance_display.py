"""EdgeImportanceDisplay: looking at importances, in the convention of scikit-learn's displays.

A fitted EdgeImportance enters; a drawing on matplotlib's axes leaves.
"""

from collections.abc import Sequence
from inspect import signature
from numbers import Integral
from typing import Any

from ._importance import EdgeImportance, importances_of
from ._importance_drawings import DRAWINGS
from .gradients import masked_weight


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
    name, other_name : str, optional
        What the two are called.
    image_shape : (int, int), optional
        Height and width of samples that are images.
    sample_shape : tuple of int, optional
        Shape of a sample, with which ``kind="graph"`` makes sure that the net is a chain of layers.
    classes : array-like of shape (n_classes,), optional
        What the outputs of a graph are called.

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
        name=None,
        other_name=None,
        image_shape=None,
        sample_shape=None,
        classes=None,
    ):
        self.net = net
        self.importances = importances
        self.weights = weights
        self.kind = kind
        self.other = other
        self.name = name
        self.other_name = other_name
        self.image_shape = image_shape
        self.sample_shape = sample_shape
        self.classes = classes

    @classmethod
    def from_estimator(
        cls,
        estimator,
        *,
        kind="layers",
        other=None,
        label=None,
        name=None,
        other_name=None,
        image_shape=None,
        ax=None,
        **kwargs,
    ):
        """Draw the importances of a fitted estimator.

        Parameters
        ----------
        estimator : EdgeImportance
            Fitted.
        kind : {"layers", "graph", "filters", "agreement"}, default="layers"
            "layers": each parameter's share of the importance, as bars. "graph": the strongest edges of a net of linear
            layers, one after the other; other nets are refused. "filters": the filters of a convolution, or of a linear
            layer on images, the most important first. "agreement": the entries by two scores.
        other : EdgeImportance or dict of str to ndarray, optional
            What to compare with, for ``kind="agreement"``.
        label : object, optional
            A class, whose importances are drawn; it needs ``per_class=True``. Those of `other` are of that class as
            well if it has them by class.
        name, other_name : str, optional
            What the two are called; by default by their criterion.
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
        if not isinstance(estimator, EdgeImportance):
            raise TypeError(f"estimator must be an EdgeImportance, not a {type(estimator).__name__}.")
        importances, shape = importances_of(estimator, label), estimator.sample_shape_
        weights = {n: masked_weight(estimator.module_, n).cpu().double().numpy() for n in importances}
        by_class = hasattr(other, "class_importances_")
        display = cls(
            estimator.module_,
            importances,
            weights,
            kind=kind,
            other=other if other is None else importances_of(other, label if by_class else None),
            name=name or estimator.criterion,
            other_name=other_name or getattr(other, "criterion", None),
            image_shape=shape[-2:] if image_shape is None and len(shape) in (2, 3) else image_shape,
            sample_shape=shape,
            classes=getattr(estimator, "classes_", None),
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
        if not isinstance(self.kind, str) or self.kind not in DRAWINGS:
            raise ValueError(f"kind={self.kind!r} is none of {', '.join(map(repr, DRAWINGS))}.")
        draw: Any = DRAWINGS[self.kind]
        options = [*signature(draw).parameters][2:]
        if not kwargs.keys() <= set(options):
            raise TypeError(f"kind={self.kind!r} takes {', '.join(options) or 'no options'}, not {', '.join(kwargs)}.")
        shape = self.image_shape
        pair = isinstance(shape, Sequence) and len(shape) == 2
        if shape is not None and not (pair and all(isinstance(n, Integral) and int(n) > 0 for n in shape)):
            raise ValueError(f"image_shape={shape!r} is neither None nor a height and a width.")
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=_SIZES[self.kind], layout="constrained")[1]
        draw(self, ax, **kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self


_SIZES = {"graph": (9, 6), "filters": (9, 5), "layers": (6.5, 2.8), "agreement": (5.5, 4.5)}
