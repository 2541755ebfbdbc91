"""GradientKernel: the exact separator's kernel, as a transformer.

Samples that a net takes enter; kernel values with other samples leave, or Nyström features of them.
"""

from dataclasses import replace
from functools import lru_cache
from math import prod
from numbers import Integral

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ._base_net import BaseNetMixin
from ._callbacks import reported_fit
from ._parameter_checks import check_choices, check_number, check_seed, check_verbose
from ._random_projection import random_projection
from .gradients import (
    DTYPES,
    SCALARS,
    Block,
    GradientEngine,
    GradientGram,
    GradientTile,
    Projection,
    check_device,
    free_bytes,
    require_memory,
)

_COLUMN_ENTRIES = 4  # of the matrices of projections: more would be no better for gradients, in which nothing is alone
_LARGEST_DEGREE = 2**20  # of any use in single precision
_PRODUCTS = {None: None, "bfloat16": torch.bfloat16}


class LogitDirections:
    """Random orthonormal combinations of a net's outputs, as scalars to differentiate.

    Parameters
    ----------
    n_directions : int
        No more than there are outputs; more make no difference.
    seed : int
    """

    def __init__(self, n_directions: int, seed: int) -> None:
        self.n_directions, self.seed = n_directions, seed

    def __call__(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return combinations of shape (n, n_directions) of outputs of shape (n, n_outputs)."""
        n_outputs = outputs.shape[1]
        n = min(self.n_directions, n_outputs)
        return outputs @ _orthonormal(n_outputs, n, self.seed, outputs.dtype, outputs.device)


@lru_cache(maxsize=256)
def _orthonormal(n_rows: int, n: int, seed: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return n random orthonormal columns, the same each time."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(n_rows, n, dtype=torch.float64, generator=generator)
        return torch.linalg.qr(directions).Q.to(device, dtype)


class GradientGramMixin(BaseNetMixin):
    """Parameters of the gradient kernel, and what they make: a `GradientGram`."""

    def _fit_gram(self, X, y=None, sample_weight=None) -> np.ndarray:
        """Check everything, take or train the net, make ``gram_`` and return `X` as an array."""
        self._check_kernel_parameters()
        X, _ = self._fit_net(X, y, sample_weight)
        random_state, scalar = check_random_state(self.random_state), self.scalar
        if self.n_directions is not None:
            scalar = LogitDirections(self.n_directions, int(random_state.randint(2**31)))
        engine = GradientEngine(
            self.module_, X, self.layers, self.device, scalar=scalar, output=self.net_output, dtype=self.dtype
        )
        self.gram_ = GradientGram(
            engine,
            self.degree,
            self.normalize,
            self.views,
            dtype=_PRODUCTS[self.products],
            working_memory=int(get_config()["working_memory"] * 2**20),
            verbose=self.verbose,
        )
        if self.projection is not None:
            self.gram_ = replace(self.gram_, projection=self._projection(X[:1], random_state))
        return X

    def _projection(self, row: np.ndarray, random_state: np.random.RandomState) -> Projection | None:
        """Return a projection of those gradients that are formed."""
        engine, tile = self.gram_.engine, self.gram_.tile(row)
        stacked = [
            Block(b.name, (engine.n_labels * b.size,), engine.n_labels * b.start)
            for b in engine.blocks
            if len(tile.gradients[b.name]) == 1
        ]
        return random_projection(stacked, self.projection, random_state, engine.feature_dtype, _COLUMN_ENTRIES)

    @property
    def engine_report_(self):
        """How each parameter's gradients are computed, and why so."""
        check_is_fitted(self, "gram_")
        return self.gram_.engine.rules

    def _check_kernel_parameters(self) -> None:
        check_number(self.degree, "degree", Integral, min_val=1, max_val=_LARGEST_DEGREE)
        choices = {
            "normalize": (True, False, "layer"),
            "scalar": SCALARS,
            "dtype": DTYPES,
            "products": tuple(_PRODUCTS),
        }
        check_choices(self, choices)
        for name in ("n_components", "n_directions", "projection"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name, Integral, min_val=1)
        if self.n_directions is not None and self.scalar != "logit":
            raise ValueError(f"n_directions combines logits: it needs scalar='logit', not {self.scalar!r}.")
        for name in ("net_output", "views"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} is neither None nor a function.")
        check_device(self.device)
        check_seed(self.random_state)
        check_verbose(self.verbose)

    def _landmarks(self, X: np.ndarray) -> np.ndarray:
        """Return `n_components` random rows, all of them where there are fewer."""
        rows = check_random_state(self.random_state).permutation(len(X))[: self.n_components]
        return X[np.sort(rows)]


class GradientKernel(GradientGramMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The kernel of gradient space: inner products of the gradients of a trained net's outputs in its weights.

    ``Θ(x, x') = (Σ_layers mean_c ⟨∇ z_c(x), ∇ z_c(x')⟩)^degree``, normalised to ``Θ(x, x) = 1``. A linear model with a
    kernel of degree 2 is the quadratic separator on gradient space that GradNet stands for, found exactly. It is no
    model of the labels: nothing of `y` enters but where `net` is trained on it.

    Parameters
    ----------
    net : Module, fitted skorch net, FrozenEstimator, callable or None, default=None
        The base net, as of :class:`GradientFeaturizer`.
    degree : int, default=2
        Power to which the inner product is raised.
    normalize : bool or "layer", default=True
        Whether gradients are scaled to length 1, so that the kernel of a row with itself is 1. "layer": each
        parameter's gradients are, and the mean over parameters of their inner products is taken; of a row for which a
        parameter has none it is less than 1.
    layers : {"weights", "all"}, pattern or list of patterns, default="weights"
        Parameters whose gradients count.
    scalar : {"logit", "cross_entropy", "log_probability"} or callable, default="logit"
        What is differentiated. With all logits, K of them, everything takes K times as long as with one scalar. A
        callable maps outputs of shape (n, n_outputs) to scalars of shape (n, n_scalars).
    n_directions : int, optional
        Number of random orthonormal combinations of logits that are differentiated in place of all logits. Inner
        products have the same expectation, up to a factor, and cost so many times those of one scalar.
    net_output : callable, optional
        Picks the outputs from what the net returns, where that is a tuple or the like.
    views : callable, optional
        From rows of shape (n, ...) to a list of versions of them, of the same shape, such as images and their mirror
        images; gradients, and outputs, are averaged over them.
    projection : int, optional
        Dimensions D to which each parameter's gradients, those of all scalars together, are projected at random,
        sparsely. They take less memory, so that more of them are held and not computed anew, and a kernel value has a
        random error: of about ``D^(-1/2)``, beside values of 1 for a row with itself, before it is raised to `degree`.
        Linear layers are not projected where their gradients are not formed. By default nothing is.
    n_components : int, optional
        Number of random rows of `fit`, landmarks, to which the kernel is taken; features are then the Nyström map,
        whose inner products approximate the kernel. By default features are kernel values with all rows of `fit`.
    products : {"bfloat16"}, optional
        "bfloat16" rounds gradients to 8 bits before inner products, which are summed in single precision: what is held
        of them takes half the memory. The error of kernel values, beside 1, is about 0.001 times `degree`.
    device : str or device, optional
        Where to compute; by default where the net is.
    dtype : {"float64", "float32", "bfloat16", "tf32"}, optional
        Precision of the gradients; by default the net's.
    random_state : int, RandomState or None, default=None
        Seed of the landmarks, directions and projection, and of the net that `net=None` trains.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    module_ : Module
        The base net.
    landmarks_ : ndarray of shape (n_landmarks, ...)
        Rows of `fit`, all or `n_components` of them.
    normalization_ : ndarray of shape (n_landmarks, n_landmarks)
        Inverse square root of the landmarks' kernel; None without `n_components`.
    gram_ : GradientGram
        The kernel.
    engine_report_ : tuple of ParameterRule
        How each parameter's gradients are computed, and why so.
    n_features_in_ : int
        Size of the samples' first axis.
    sample_shape_ : tuple of int
        Shape of a sample.

    Notes
    -----
    About scikit-learn's ``working_memory`` is taken beside the kernel matrix. Gradients of all landmarks are held if
    they fit it; else those of some rows are computed anew for every other such part. Without several `views` the
    gradients of linear layers that see a vector are not formed: ``⟨a, a'⟩ ⟨δ, δ'⟩`` is their product.

    References
    ----------
    A. Jacot, F. Gabriel, C. Hongler, arXiv:1806.07572; A. R. Aleksziew, "Improving Neural Networks using Gradient
    Space"; C. Williams, M. Seeger, "Using the Nyström Method to Speed Up Kernel Machines", NIPS 2000.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import RidgeClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_gradspace import GradientKernel
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(GradientKernel(n_components=50, random_state=0), RidgeClassifier())
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True
    """

    def __init__(
        self,
        net=None,
        *,
        degree=2,
        normalize=True,
        layers="weights",
        scalar="logit",
        n_directions=None,
        net_output=None,
        views=None,
        projection=None,
        n_components=None,
        products=None,
        device=None,
        dtype=None,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.degree = degree
        self.normalize = normalize
        self.layers = layers
        self.scalar = scalar
        self.n_directions = n_directions
        self.net_output = net_output
        self.views = views
        self.projection = projection
        self.n_components = n_components
        self.products = products
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    @reported_fit
    def fit(self, X, y=None):
        """Take or train the base net, and the rows to which the kernel is taken.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them. Without `n_components` they are referred to, not copied.
        y : array-like of shape (n_samples,), optional
            Class labels, which only training a base net needs.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        X = self._fit_gram(X, y)
        self.landmarks_ = X if self.n_components is None else self._landmarks(X)
        self._n_features_out = len(self.landmarks_)
        self.normalization_ = None
        if self.n_components is not None:
            self.normalization_ = inverse_square_root(gram_matrix(self.gram_, self.landmarks_)).cpu().numpy()
        return self

    def transform(self, X):
        """Return kernel values with the rows of `fit`, or Nyström features.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as in `fit`.

        Returns
        -------
        features : ndarray of shape (n_samples, n_landmarks)
            The kernel of each sample with each landmark, or its map to features.
        """
        check_is_fitted(self)
        X = self._validated(X)
        if self.normalization_ is None:
            return gram_matrix(self.gram_, X, self.landmarks_).cpu().numpy()
        shape = len(X), len(self.landmarks_)
        require_memory(
            prod(shape) * self.normalization_.itemsize,
            f"a matrix of features of shape {shape}",
            "Transform fewer rows.",
        )
        normalization = torch.from_numpy(self.normalization_).to(self.gram_.engine.device)
        return finite(self.gram_.dot(X, self.landmarks_, normalization)).cpu().numpy()

    def fit_transform(self, X, y=None):
        """Fit, and return the features of the same rows, computing half of the symmetric kernel.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them.
        y : array-like of shape (n_samples,), optional
            Class labels, which only training a base net needs.

        Returns
        -------
        features : ndarray of shape (n_samples, n_landmarks)
            As of `transform`.
        """
        self.fit(X, y)
        if self.n_components is not None:
            return self.transform(X)
        return gram_matrix(self.gram_, self.landmarks_).cpu().numpy()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def pairwise(self, X, Y=None):
        """Return the kernel of each of the rows `X` with each of the rows `Y`.

        Parameters
        ----------
        X : array-like of shape (n, ...)
            Samples as in `fit`.
        Y : array-like of shape (m, ...), optional
            Other samples; by default the same ones.

        Returns
        -------
        kernel : ndarray of shape (n, m)
            The kernel matrix.
        """
        check_is_fitted(self)
        X, Y = self._validated(X), None if Y is None else self._validated(Y)
        return gram_matrix(self.gram_, X, Y).cpu().numpy()


def gram_matrix(gram: GradientGram, X: np.ndarray | GradientTile, Y: np.ndarray | None = None) -> torch.Tensor:
    """Return a kernel matrix, or say what would fit where it does not."""
    n, m, device = len(X), len(X if Y is None else Y), gram.engine.device
    itemsize, free = gram.engine.feature_dtype.itemsize, free_bytes(device) or 0
    fit = int((free / itemsize) ** 0.5) if n == m else int(free / itemsize / m)
    way_out = f"Use fewer rows, {fit} would fit, or landmarks: n_components=2000."
    require_memory(n * m * itemsize, f"a kernel matrix of shape {(n, m)}", way_out, device)
    return finite(gram(X, Y))


def finite(values: torch.Tensor) -> torch.Tensor:
    """Return kernel values, or what they are weights of, or say that they are not finite."""
    if not torch.isfinite(torch.stack(values.aminmax())).all():  # a sum of finite values may overflow
        raise ValueError(
            "the gradient kernel is not finite: gradients of net, or their products, overflow. Use normalize=True, a "
            "smaller degree or dtype='float64', and look at the outputs of net."
        )
    return values


def inverse_square_root(gram: torch.Tensor) -> torch.Tensor:
    """Return ``gram^(-1/2)``, where eigenvalues within the usual rounding error count as that large."""
    what = f"the inverse root of a kernel matrix of shape {tuple(gram.shape)}"  # four such matrices in double precision
    require_memory(32 * gram.numel(), what, "Use fewer landmarks: a smaller n_components.", gram.device)
    values, vectors = torch.linalg.eigh(gram.double())
    smallest = values[-1].clamp(min=torch.finfo(gram.dtype).tiny) * len(gram) ** 0.5 * torch.finfo(gram.dtype).eps
    return (vectors / values.clamp(min=smallest).sqrt() @ vectors.T).to(gram.dtype)
