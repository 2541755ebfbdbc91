"""GradientFeaturizer: a trained net becomes a transformer, from samples to their gradient features.

Samples of any rank that the net takes enter; a matrix of shape (n_samples, n_labels * n_params) leaves, lazy, dense or
sparse. Daróczy, Aleksziew and Benczúr, arXiv:1807.06630.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from ._base_net import BaseNetMixin
from ._callbacks import reported_fit
from ._featurizer_checks import check_parameters, warn_of_small_percentile, warn_of_unused_directory
from ._labels import distinct
from ._net_labels import trained_classes
from ._random_projection import random_projection
from .gradients import (
    FISHER_SCALES,
    FisherStatistics,
    GradientArray,
    GradientEngine,
    GradientFeatures,
    Scaler,
    ScaleStatistics,
    Whitening,
    as_mask,
    by_torchs_names,
    over_batches,
    to_memmap,
)

_WHITENING_ROWS = 2000  # that are enough for the factors of a whitening, whose cost is high
_ENOUGH_BYTES = 2**28  # gradients in a batch from which larger ones are no faster


class GradientFeaturizer(BaseNetMixin, TransformerMixin, BaseEstimator):
    """Per-sample gradients of a trained net's loss in its weights, for every candidate label, as features.

    Column ``k * n_params + p`` of a row is the derivative of the cross-entropy of the row and candidate label k in
    parameter p, selected and scaled. Labels are candidates: the true one is never used.

    Parameters
    ----------
    net : Module, fitted skorch net, FrozenEstimator, callable or None, default=None
        The base net, which returns logits. A trained one is shared: its weights are neither copied nor changed. A
        callable ``net(X, y)``, which gets floats in single precision, returns a trained one in each `fit`. None trains
        a small MLP in `fit`. In a pickle a skorch net is its module alone.
    percentile : float in (0, 100], default=15
        Percentage of a layer's entries, those of largest magnitude, that stay for a sample and label; the others
        become 0. At 100 all stay.
    scale : {"minmax", "maxabs", "rms", "layer", "fisher", "kronecker"} or None, default="minmax"
        How selected entries are scaled, by statistics over all rows and labels of `fit`. "minmax": by a coordinate's
        minimum and range, zeros included. "maxabs": by its largest magnitude. "rms": by the root mean square of its
        entries that are not 0. "layer": by that of the whole layer. Zeros stay 0. "fisher": by the root of a
        coordinate's Fisher information ``E Σ_c p_c g_c²``, of gradients before selection and the probabilities p that
        the net predicts. "kronecker": gradients are whitened, before `edges` and selection, by the Kronecker-factored
        Fisher information of their parameter; see Notes.
    power : float or None, default=0.5
        Exponent p of the power norm ``sign(v) |v|^p``, applied to what is scaled. With p above 1, entries far above 1,
        as there are without `scale`, may become infinite in single precision.
    projection : int or float, optional
        Dimensions to which the features of each parameter are projected, after all else, by scikit-learn's
        SparseRandomProjection: a number, of which smaller parameters keep their own, or a share in (0, 1) of their
        own. Products between features are kept in expectation, and the gradients of few rows exist at a time.
    layers : {"weights", "all"}, pattern or list of patterns, default="weights"
        Parameters whose gradients are features. "weights" leaves biases out; a pattern such as ``"conv*.weight"`` is
        matched with parameter names as file names are. Frozen parameters have none.
    edges : dict of str to bool array, or bool array of shape (n_params,), optional
        Entries of the gradients that are features, the same for all rows and labels; the others have no columns. A dict
        has arrays of the parameters' shapes by their names; a parameter that it leaves out is kept as a whole. The
        percentile is of the entries that are kept.
    output : {"lazy", "dense", "csr", "memmap"}, default="lazy"
        Representation of what `transform` returns; the numbers are the same. "lazy" computes rows when they are asked
        for and passes through scikit-learn and skorch as a matrix would. "memmap" writes dense features to a file of
        `output_dir`, for models that read them more often than it is cheap to compute them. These two tell
        GradNetClassifier which columns belong to which label and layer; beside the others, give that `n_labels` and
        `blocks`.
    output_dir : str or path, optional
        Directory of the files of ``output="memmap"``. A file is named by a fingerprint of the rows, the net and all
        that the features depend on, so that it is found again and never mixed with others; but of functions and of a
        net's `forward` the name counts, not the code. A run that was killed goes on where it was, to the same bytes.
        The files stay until you remove them.
    scalar : {"cross_entropy", "log_probability", "logit"} or callable, default="cross_entropy"
        What is differentiated, once for each candidate label. "cross_entropy" and "log_probability" of the label, where
        a net with one output has its logit of the second of two labels. "logit": each output of the net, whatever it
        means, as for regression. A callable maps outputs of shape (n, n_outputs) to scalars of shape (n, n_labels).
    labels : {"all", "predicted"}, default="all"
        Candidate labels of a row. "predicted": only the one that the net itself predicts, that of its largest logit, or
        label 1 where a single logit is positive. The columns are then those of one label, for models that know nothing
        of views.
    net_output : callable, optional
        Picks the outputs from what the net returns, where that is a tuple or the like.
    selection : {"exact", "sampled"}, default="exact"
        How the percentile is found. "sampled" takes that of 4,096 entries of a layer; `selection_error_` says how many
        entries that gets wrong.
    batch_size : int or "auto", default="auto"
        Rows computed at a time. "auto" takes as many as fit scikit-learn's ``working_memory``, but no more than have
        256 MiB of gradients, and one at least. When memory runs out all the same, batches are halved. The numbers
        depend on it by rounding alone, which decides where entries are equally large to rounding.
    device : str or device, optional
        Where to compute; by default where the net is.
    dtype : {"float64", "float32", "bfloat16", "tf32"}, optional
        Precision of the gradients; by default the net's. "bfloat16" and "tf32" are faster on CUDA devices, and inexact:
        `rounding_error_` says how much.
    augment : callable, optional
        ``augment(X, generator)`` takes an array of rows and a NumPy generator and returns other rows of the same shape.
        The lazy array that `fit_transform` returns carries it, and GradNetClassifier then trains on views of augmented
        rows, drawn anew each time. Nothing else is augmented: neither the statistics of `scale` nor what `transform`
        returns.
    compile : bool, default=False
        Whether `torch.compile` makes one kernel of scaling and power: several times as fast once it is made, which
        takes seconds and, on a CPU, a C++ compiler.
    n_jobs : int, optional
        Jobs, as in joblib, that share the batches of a pass over the data.
    random_state : int, RandomState or None, default=None
        Seed of the net that `net=None` trains, of `projection`, and of the rows that ``scale="kronecker"`` draws where
        there are more than 2,000.
    verbose : int, default=0
        Whether passes over the data show a progress bar.

    Attributes
    ----------
    module_ : Module
        The base net.
    features_ : GradientFeatures
        The map from rows to features.
    n_labels_ : int
        Number of views of a row: of candidate labels, or 1 for that of the predicted one.
    blocks_ : tuple of Block
        Columns of each parameter within a candidate label.
    engine_report_ : tuple of ParameterRule
        How each parameter's gradients are computed, and why so; it prints as a table.
    rounding_error_ : float or None
        With an inexact `dtype` the largest error of a parameter's gradients, relative to the largest entry.
    selection_error_ : float
        Share of the entries of the first rows that "sampled" selection keeps or drops wrongly; 0 if it is exact.
    n_features_in_ : int
        Size of the samples' first axis.
    sample_shape_ : tuple of int
        Shape of a sample.

    Notes
    -----
    A net that was trained on rows that are now cross-validated makes the scores optimistic: the features of those rows
    are better than those of new ones. Keep the base net's training rows out, or pass a callable, which trains a net on
    the training part of each fold.

    With ``scale="kronecker"`` a parameter's gradient, as a matrix G of its first axis and all others, becomes
    ``√t (L + εI)^(-1/2) G (R + εI)^(-1/2)``, where ``L = E G Gᵀ``, ``R = E Gᵀ G`` and ``t = E ‖G‖²`` are expectations
    over rows and over the labels that the net predicts, and ε is a thousandth of a matrix's mean eigenvalue. Vectors
    are divided by their entries' root mean squares, damped likewise. Of more than 2,000 rows, 2,000 drawn at random are
    enough for it. It costs, a gradient, two products of G with matrices of its sides.

    References
    ----------
    J. Martens, R. Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv:1503.05671.

    A. R. Aleksziew, "Improving Neural Networks using Gradient Space"; B. Daróczy, R. Aleksziew, A. Benczúr,
    arXiv:1807.06630.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace import GradientFeaturizer
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> features = GradientFeaturizer(net).fit_transform([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    >>> features.shape, features.n_labels
    ((2, 126), 3)
    """

    def __init__(
        self,
        net=None,
        *,
        percentile=15,
        scale="minmax",
        power=0.5,
        projection=None,
        layers="weights",
        edges=None,
        output="lazy",
        output_dir=None,
        scalar="cross_entropy",
        labels="all",
        net_output=None,
        selection="exact",
        batch_size="auto",
        device=None,
        dtype=None,
        augment=None,
        compile=False,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.percentile = percentile
        self.scale = scale
        self.power = power
        self.projection = projection
        self.layers = layers
        self.edges = edges
        self.output = output
        self.output_dir = output_dir
        self.scalar = scalar
        self.labels = labels
        self.net_output = net_output
        self.selection = selection
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.augment = augment
        self.compile = compile
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @reported_fit
    def fit(self, X, y=None):
        """Take or train the base net, and learn the statistics that scale its gradients.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them.
        y : array-like of shape (n_samples,), optional
            Class labels, which training a base net needs. A trained net needs none: labels are only compared with its
            outputs, and with ``labels="predicted"`` may be those of another task.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        check_parameters(self)
        warn_of_small_percentile(self.percentile)
        warn_of_unused_directory(self)
        X, y = self._fit_net(X, y)
        engine = GradientEngine(
            self.module_, X, self.layers, self.device, scalar=self.scalar, output=self.net_output, dtype=self.dtype
        )
        self._check_labels(y, engine.n_labels)
        by_name = isinstance(self.edges, Mapping)
        edges = by_torchs_names(self.module_, self.edges, "edges") if by_name else self.edges
        mask = as_mask(edges, engine.blocks)
        unscaled = GradientFeatures(engine, self.percentile, selection=self.selection, labels=self.labels, mask=mask)
        unscaled = replace(unscaled, batch_size=self._batch_size(unscaled))
        scaler = None if self.scale is None else self._fit_scaler(unscaled, X)
        features = replace(unscaled, scaler=scaler, power=None if self.power is None else float(self.power))
        self.selection_error_ = features.selection_error(X[: min(8, unscaled.batch_size)])
        if self.projection is not None:
            random_state = check_random_state(self.random_state)
            projection = random_projection(features.blocks, self.projection, random_state, engine.feature_dtype)
            features = replace(features, projection=projection)
        self.features_ = replace(features, batch_size=self._batch_size(features), compile=self.compile)
        if self.augment is not None:
            self._lazy(X[:4], self.augment).augmented(np.random.default_rng(0))  # so that what is wrong shows now
        return self

    def _fit_scaler(self, unscaled: GradientFeatures, X: np.ndarray) -> Scaler | Whitening:
        engine = unscaled.engine
        statistics: FisherStatistics | ScaleStatistics
        if self.scale in FISHER_SCALES:
            statistics = FisherStatistics(self.scale, engine.blocks)
            statistics.require_memory(engine.device)
            features = GradientFeatures(engine)
            features = replace(features, batch_size=self._batch_size(features))
        else:
            statistics, features = ScaleStatistics(self.scale, unscaled.blocks), unscaled
        if self.scale == "kronecker" and len(X) > _WHITENING_ROWS:
            rows = check_random_state(self.random_state).choice(len(X), _WHITENING_ROWS, replace=False)
            X = X[np.sort(rows)]
        array = GradientArray(features, X)
        for of_batch in over_batches(statistics.of, array, self.n_jobs, self.verbose, "statistics"):
            statistics.merge(of_batch)  # type: ignore[arg-type]
        scaler = statistics.scaler(engine.feature_dtype)
        if not scaler.is_finite:
            for batch in array.batches():
                engine.outputs(batch.X)  # names the rows
            raise ValueError("gradients of net overflow: they are not finite although its outputs are.")
        if self.scale == "fisher" and isinstance(scaler, Scaler):
            return Scaler(scaler.divisor[unscaled.columns])
        return scaler

    def fit_transform(self, X, y=None):
        """Fit to samples and return their features, which in a lazy array are augmented when they are trained on.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them.
        y : array-like of shape (n_samples,), optional
            Class labels, as in `fit`.

        Returns
        -------
        features : GradientArray, ndarray, csr_array or GradientMemmap of shape (n_samples, n_labels * n_params)
            The features, as of `transform`.
        """
        features = self.fit(X, y).transform(X)
        return features if self.augment is None else self._lazy(features.X, self.augment)

    def transform(self, X):
        """Return the gradient features of samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as in `fit`. A lazy array refers to them, it holds no copy.

        Returns
        -------
        features : GradientArray, ndarray, csr_array or GradientMemmap of shape (n_samples, n_labels * n_params)
            The features, in the representation of `output`.
        """
        check_is_fitted(self)
        check_parameters(self)
        array = self._lazy(self._validated(X))
        if self.output == "dense":
            return array.toarray(self.n_jobs, self.verbose)
        if self.output == "csr":
            return array.tocsr(self.n_jobs, self.verbose)
        if self.output == "memmap":
            return to_memmap(array, self.output_dir, self.n_jobs, self.verbose)
        return array

    def set_output(self, *, transform=None):
        """Choose the container of dense output.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            The container; None leaves it as it is.

        Returns
        -------
        self : object
            The transformer.
        """
        if self.output in ("dense", "memmap"):
            return super().set_output(transform=transform)
        if transform not in (None, "default"):
            raise ValueError(
                f"set_output(transform={transform!r}) needs GradientFeaturizer(output='dense'): a data frame does not "
                f"hold output={self.output!r}."
            )
        return self

    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns, such as ``"label3 conv1.weight[0,2,4,4]"``.

        ``label3`` is the candidate label of the net's output 3, counted from 0, whatever the class is called.
        Those of projected features are ``"label3 conv1.weight<0>"`` and so on, and with ``labels="predicted"`` they
        begin with ``"predicted"``.

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of the input, which are only checked.

        Returns
        -------
        names : ndarray of str, of shape (n_labels * n_params,)
            A name a column.
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        entries = self.features_.feature_names()
        views = ["predicted"] if self.features_.labels == "predicted" else [f"label{k}" for k in range(self.n_labels_)]
        return np.array([f"{view} {entry}" for view in views for entry in entries], dtype=object)

    @property
    def n_labels_(self):
        """Number of views of a row."""
        return self._fitted_features("n_labels_").n_labels

    @property
    def blocks_(self):
        """Columns of each parameter within a candidate label."""
        return self._fitted_features("blocks_").blocks

    @property
    def engine_report_(self):
        """How each parameter's gradients are computed, and why so."""
        return self._fitted_features("engine_report_").engine.rules

    @property
    def rounding_error_(self):
        """Largest error of a parameter's gradients under an inexact dtype."""
        return self._fitted_features("rounding_error_").engine.rounding_error

    def _fitted_features(self, name: str) -> GradientFeatures:
        if not hasattr(self, "features_"):
            raise AttributeError(f"GradientFeaturizer has no attribute {name!r} before fit")
        return self.features_

    def _lazy(self, X: np.ndarray, augment: Callable | None = None) -> GradientArray:
        return GradientArray(self.features_, X, augment)

    def _check_labels(self, y, n_labels: int) -> None:
        if y is None or self.labels == "predicted" or self.scalar not in ("cross_entropy", "log_probability"):
            return
        if np.ndim(y) > 1 or type_of_target(y) == "continuous":
            raise ValueError(
                f"y of shape {np.shape(y)} holds no class labels, of which scalar={self.scalar!r} is: for a regression "
                "net use scalar='logit', which is the output itself, or a function."
            )
        labels = distinct(y, "y")
        known = trained_classes(self.net, n_labels)
        unknown = np.setdiff1d(labels, known) if known is not None else labels[n_labels:]
        if len(unknown):
            raise ValueError(
                f"y holds labels unknown to the base net: {unknown[:10].tolist()}. "
                + (
                    f"It has {n_labels} outputs, so it knows {n_labels} labels."
                    if known is None
                    else f"It was fitted to {known[:10].tolist()}. If y has other names for these, pass its module_."
                )
            )

    def _batch_size(self, features: GradientFeatures) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        budget = get_config()["working_memory"] * 2**20
        row_bytes = features.n_labels * features.n_features * features.engine.feature_dtype.itemsize
        return int(np.clip(_ENOUGH_BYTES // row_bytes, 1, min(1024, features.affordable_rows(budget))))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


# Data frames hold dense output alone; a global transform_output="pandas" lets the other representations pass. Assigned
# here, since the base class sets the attribute on every subclass that is made.
GradientFeaturizer._sklearn_auto_wrap_output_keys = property(
    lambda self: {"transform"} if self.output in ("dense", "memmap") else set()
)
