"""EdgeImportance: which parameters of a trained net matter, read off its gradients.

A net and rows of data enter; an importance of every entry of its parameters leaves, with a standard error over rows.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ._base_net import BaseNetMixin
from ._callbacks import reported_fit
from ._importance_checks import check_parameters, rank_correlation, warn_of_one_row
from ._net_labels import class_codes
from ._units import unit_sums
from .gradients import (
    GradientEngine,
    GradientFeatures,
    ScoreMoments,
    add_powers,
    add_survivals,
    masked_weight,
    plain_name,
    predicted_labels,
    progress,
    views,
)

_POWERS = {"gradient": 1, "sensitivity": 1, "fisher": 2}
_ENOUGH_BYTES = 2**26  # of a pass through the net, from which larger batches are no faster


class EdgeImportance(BaseNetMixin, BaseEstimator):
    """Importance of every weight of a trained classifier net, by its per-sample gradients.

    Parameters
    ----------
    net : Module, fitted skorch net, FrozenEstimator, callable or None, default=None
        The net, as of :class:`GradientFeaturizer`.
    criterion : {"sensitivity", "gradient", "fisher", "magnitude", "survival"}, default="sensitivity"
        What is averaged over rows, of a weight w and the derivative g of the loss in it. "sensitivity": ``|w g|``, the
        change of the loss, to first order, if the weight were 0. It is the same in nets that differ by a positive
        rescaling of ReLU units. "gradient": ``|g|``. "fisher": ``g²``, the diagonal of the Fisher information.
        "magnitude": ``|w|``, which no data enter. "survival": whether g survives the selection of
        :class:`GradientFeaturizer`; with ``labels="all"`` it is what GradNet sees.
    labels : {"auto", "true", "predicted", "sampled", "expected", "all"}, default="auto"
        Which label's loss is differentiated. "true": that of `y`. "predicted": the net's own. "sampled": one that is
        drawn from the probabilities of the net. "expected": all of them, each counting by its probability; with
        "fisher" this is the true Fisher information. "all": all of them alike, as GradNet has them. "auto": "true"
        where there is a `y`, else "expected". Several labels of a row cost a backward pass each.
    per_class : bool, default=False
        Whether importances are found for each class as well: means over the rows of a class, that of `y` or without `y`
        the predicted one.
    classes : array-like of shape (n_outputs,), optional
        Labels of the net's outputs, in their order, or in any with ``net=None``. By default those that a skorch net
        knows; of a module those of `y` in sorted order, if they are as many as the outputs, or else the numbers from 0
        on.
    percentile : float in (0, 100], default=15
        Percentage of a layer's entries that survive selection, for ``criterion="survival"``.
    layers : {"weights", "all"}, pattern or list of patterns, default="weights"
        Which parameters: without biases, all, or by name.
    net_output : callable, optional
        Picks the logits from what the net returns, where that is a tuple or the like.
    batch_size : int or "auto", default="auto"
        Rows of a pass through the net. "auto" takes as many as are quickly worked on.
    device : str or device, optional
        Where to compute; by default where the net is.
    random_state : int, RandomState or None, default=None
        Seed of ``labels="sampled"``, and of the net that ``net=None`` trains.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    importances_ : dict of str to ndarray
        The mean score of every entry, in float64, by the name of its parameter and of the parameter's shape. A shared
        parameter is there once, under its first name, with the gradients of all its uses added up. In a pruned net
        parameters keep the names that they had, and what is pruned away counts as 0.
    standard_errors_ : dict of str to ndarray
        The standard error of these means, rows being drawn at random; NaN for a single row.
    unit_importances_ : dict of str to ndarray of shape (n_units,)
        For each parameter the sums over the entries that enter a unit: a neuron, or an output channel.
    layer_importances_ : dict of str to float
        The sum over all entries of a layer.
    classes_ : ndarray of shape (n_classes,)
        The classes, with ``per_class=True``.
    class_importances_, class_standard_errors_ : dict of str to ndarray
        As `importances_` and `standard_errors_`, with a first axis for the classes, with ``per_class=True``; NaN for
        classes without rows.
    stability_ : float
        Spearman's rank correlation of importances from every other row and from the remaining rows.
    module_ : Module
        The net.
    engine_report_ : tuple of ParameterRule
        How each parameter's gradients are computed, and why so.
    n_samples_seen_ : int
        Number of rows.
    n_features_in_ : int
        Size of the samples' first axis.

    Notes
    -----
    Rows are streamed: memory is that of a batch, and of each entry 32 bytes in `fit` and as many in the attributes,
    times the number of classes with ``per_class=True``. Where a linear layer sees one vector a row, ``Σ |g|^p`` is the
    product ``(|δ|^p)ᵀ |a|^p`` of what enters the layer and what comes back to it, so that no gradient of a row is
    formed; in other layers those of a few rows are at a time. ``criterion="survival"`` forms and sorts all of them.

    References
    ----------
    A. R. Aleksziew, "Improving Neural Networks using Gradient Space"; P. Molchanov et al., arXiv:1611.06440; N. Lee, T.
    Ajanthan, P. Torr, "SNIP", arXiv:1810.02340; F. Kunstner, L. Balles, P. Hennig, "Limitations of the Empirical Fisher
    Approximation", arXiv:1905.12558.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import EdgeImportance
    >>> X, y = load_iris(return_X_y=True)
    >>> importance = EdgeImportance(random_state=0).fit(X, y)
    >>> {name: values.shape for name, values in importance.importances_.items()}
    {'layers.1.weight': (32, 4), 'layers.3.weight': (3, 32)}
    >>> {name: int(kept.sum()) for name, kept in importance.mask(keep=0.25, scope="layer").items()}
    {'layers.1.weight': 32, 'layers.3.weight': 24}
    """

    def __init__(
        self,
        net=None,
        *,
        criterion="sensitivity",
        labels="auto",
        per_class=False,
        classes=None,
        percentile=15,
        layers="weights",
        net_output=None,
        batch_size="auto",
        device=None,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.criterion = criterion
        self.labels = labels
        self.per_class = per_class
        self.classes = classes
        self.percentile = percentile
        self.layers = layers
        self.net_output = net_output
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @reported_fit
    def fit(self, X, y=None):
        """Take or train the net, and average the score over rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them.
        y : array-like of shape (n_samples,), optional
            Class labels, which ``labels="true"`` and training a net need.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        check_parameters(self, y)
        for of_another_fit in ("classes_", "class_importances_", "class_standard_errors_"):
            self.__dict__.pop(of_another_fit, None)
        X, y = self._fit_net(X, y)
        self.n_samples_seen_ = len(X)
        engine = GradientEngine(self.module_, X, self.layers, self.device, output=self.net_output)
        self.engine_report_ = engine.rules
        labels = ("expected" if y is None else "true") if self.labels == "auto" else self.labels
        codes = None
        if self.per_class or labels == "true":
            self.classes_, codes = class_codes(self.net, engine.n_labels, y, self.classes)
        warn_of_one_row(len(X), self.criterion)
        if self.criterion == "magnitude":
            values = {plain_name(self.module_, b.name): self._magnitude(b.name) for b in engine.blocks}
            self.standard_errors_ = {name: np.zeros_like(v) for name, v in values.items()}
            self._set_importances(values, (values, values))
        else:
            self._set_means(engine.blocks, self._moments(engine, X, labels, codes))
        return self

    def _moments(self, engine: GradientEngine, X: np.ndarray, labels: str, codes: np.ndarray | None) -> ScoreMoments:
        """Return the moments of the score, for each class apart if that is wanted, and for even and odd rows apart."""
        n_classes = len(self.classes_) if self.per_class else 1
        moments = ScoreMoments(engine.blocks, 2 * n_classes, engine.device, by_tap=self.criterion in _POWERS)
        uniform = check_random_state(self.random_state).uniform(size=len(X) if labels == "sampled" else 0)
        several = labels in ("expected", "all")
        if self.criterion in _POWERS:
            add = partial(add_powers, moments, engine, p=_POWERS[self.criterion])
        else:
            add = partial(add_survivals, moments, GradientFeatures(engine, self.percentile))
        size = self._batch_size(engine, engine.n_labels if several else 1)

        def compute(rows: slice) -> Iterator[tuple[int, None]]:
            batch, y = X[rows], None if codes is None else torch.from_numpy(codes[rows]).to(engine.device)
            groups = torch.arange(rows.start, rows.stop, device=engine.device) % 2
            if self.per_class:
                groups += 2 * (predicted_labels("cross_entropy", engine.outputs(batch)) if y is None else y)
            add(X=batch, of=views(labels, y, uniform[rows]), groups=groups)
            yield len(batch), None

        passes = engine.row_limit.passes(len(X), compute, size, engine.needed)
        with progress(len(X), "importance", self.verbose) as bar:
            for rows, _ in passes:
                bar.update(rows.stop - rows.start)
        return moments

    def _set_means(self, blocks, moments: ScoreMoments) -> None:
        """Set importances to the means of scores, times magnitudes where the score is the sensitivity."""
        names = {block.name: plain_name(self.module_, block.name) for block in blocks}
        factors = {name: self._magnitude(name) if self.criterion == "sensitivity" else 1.0 for name in names}

        def found(statistic, groups):
            return {plain: statistic(name, groups).cpu().numpy() * factors[name] for name, plain in names.items()}

        n_groups = len(moments.counts)
        self.standard_errors_ = found(moments.standard_error, range(n_groups))
        halves = [found(moments.mean, range(half, n_groups, 2)) for half in (0, 1)]
        self._set_importances(found(moments.mean, range(n_groups)), halves)
        if self.per_class:
            pairs = [(c, c + 1) for c in range(0, n_groups, 2)]
            means, errors = ([found(of, pair) for pair in pairs] for of in (moments.mean, moments.standard_error))
            self.class_importances_ = {name: np.stack([of[name] for of in means]) for name in means[0]}
            self.class_standard_errors_ = {name: np.stack([of[name] for of in errors]) for name in means[0]}

    def _set_importances(self, values: dict[str, np.ndarray], halves) -> None:
        for name, of_parameter in values.items():
            if not np.isfinite(of_parameter).all():
                raise ValueError(
                    f"importances of {name!r} are not finite: outputs of net, or gradients, are NaN or overflow. Look "
                    "at the outputs of net for these rows."
                )
        self.importances_, self._halves = values, halves
        self.unit_importances_ = {name: unit_sums(self.module_, name, v) for name, v in values.items()}
        self.layer_importances_: dict[str, float] = {}
        for name, of_parameter in values.items():
            layer = name.rpartition(".")[0]
            self.layer_importances_[layer] = self.layer_importances_.get(layer, 0.0) + float(of_parameter.sum())

    def _magnitude(self, name: str) -> np.ndarray:
        return masked_weight(self.module_, plain_name(self.module_, name)).abs().double().cpu().numpy()

    @property
    def stability_(self):
        """Rank correlation of importances from even and from odd rows."""
        if not hasattr(self, "_halves"):
            raise AttributeError("EdgeImportance has no attribute 'stability_' before fit")
        return rank_correlation(*self._halves)

    def _batch_size(self, engine: GradientEngine, k: int) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        budget = get_config()["working_memory"] * 2**20
        of_row = max(1, engine.row_bytes + k * engine.label_bytes)
        return int(np.clip(min(_ENOUGH_BYTES, budget - engine.memory(0)) // of_row, 1, 1024))

    def mask(self, keep=0.1, scope="global", label=None):
        """Choose the most important entries.

        Parameters
        ----------
        keep : float in (0, 1], default=0.1
            The share of entries to choose: of n entries, of a pruned net all that it had, ``round(keep * n)`` are, at
            least one. Of equal ones, such as many zeros, the first are.
        scope : {"global", "layer"}, default="global"
            Whether entries of all parameters compete, or those of each parameter by themselves.
        label : object, optional
            One of `classes_`, by whose importances to choose.

        Returns
        -------
        mask : dict of str to Tensor of bool
            By the name of a parameter, of its shape: for :func:`prune`, :func:`finetune` and `GradientFeaturizer`.
        """
        importances = importances_of(self, label)
        if isinstance(keep, bool) or not isinstance(keep, (int, float, np.number)) or not 0 < keep <= 1:
            raise ValueError(f"keep={keep!r} is not in (0, 1]: it is the share of entries that are chosen.")
        if scope not in ("global", "layer"):
            raise ValueError(f"scope={scope!r} is neither 'global' nor 'layer'.")
        groups = [list(importances)] if scope == "global" else [[name] for name in importances]
        chosen: dict[str, torch.Tensor] = {}
        for names in groups:
            values = np.concatenate([importances[name].ravel() for name in names])
            kept = np.zeros(len(values), bool)
            kept[np.argsort(-values, kind="stable")[: max(1, round(keep * len(values)))]] = True
            parts = np.split(kept, np.cumsum([importances[name].size for name in names])[:-1])
            chosen |= {n: torch.from_numpy(part.reshape(importances[n].shape).copy()) for n, part in zip(names, parts)}
        return chosen

    def importances_of(self, label):
        """Return the importances for one class.

        Parameters
        ----------
        label : object
            One of `classes_`.

        Returns
        -------
        importances : dict of str to ndarray
            As `importances_`.
        """
        check_is_fitted(self, "importances_")
        if not hasattr(self, "class_importances_"):
            raise ValueError("label needs importances by class: fit with per_class=True.")
        places = np.flatnonzero(self.classes_ == label) if np.ndim(label) == 0 else np.empty(0)
        if not len(places):
            raise ValueError(f"label={label!r} is none of the classes {self.classes_[:10].tolist()}.")
        found = {name: values[places[0]] for name, values in self.class_importances_.items()}
        if any(np.isnan(values).any() for values in found.values()):
            raise ValueError(f"label={label!r} has no rows in the data of fit, and so no importances.")
        return found

    def rank_correlation(self, other):
        """Return Spearman's rank correlation with other importances of the same entries.

        Parameters
        ----------
        other : EdgeImportance or dict of str to ndarray
            Fitted with another score, seed or data, or just importances.

        Returns
        -------
        correlation : float
            From -1 to 1; NaN where all importances are equal.
        """
        return rank_correlation(importances_of(self), importances_of(other))

    def to_frame(self):
        """Return a table of all entries, the most important first.

        Returns
        -------
        frame : DataFrame of shape (n_entries, 5)
            The columns parameter, index, weight, importance and standard_error.
        """
        check_is_fitted(self, "importances_")
        import pandas as pd

        frames = [
            pd.DataFrame(
                {
                    "parameter": name,
                    "index": list(np.ndindex(values.shape)),
                    "weight": masked_weight(self.module_, name).cpu().numpy().ravel(),
                    "importance": values.ravel(),
                    "standard_error": self.standard_errors_[name].ravel(),
                }
            )
            for name, values in self.importances_.items()
        ]
        return pd.concat(frames, ignore_index=True).sort_values(
            "importance", ascending=False, kind="stable", ignore_index=True
        )


def importances_of(of, label=None) -> Mapping[str, np.ndarray]:
    """Return the importances that a fitted EdgeImportance has, those of a class where it has them, or a dict itself."""
    if isinstance(of, Mapping):
        return of
    if not isinstance(of, EdgeImportance):
        raise TypeError(f"importances are those of a fitted EdgeImportance or a dict, not of a {type(of).__name__}.")
    check_is_fitted(of, "importances_")
    return of.importances_ if label is None else of.importances_of(label)
