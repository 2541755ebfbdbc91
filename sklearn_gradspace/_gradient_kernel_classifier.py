"""GradientKernelClassifier: the exact separator on gradient space, fitted to what the base net gets wrong.

Samples that a net takes and labels enter; a classifier leaves.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from ._calibration import fit_temperature
from ._callbacks import reported_fit
from ._gradient_kernel import GradientGramMixin, finite, gram_matrix, inverse_square_root
from ._labels import check_class_weight, checked_labels, distinct, weights_by_class
from ._net_labels import output_labels, warn_of_order
from ._parameter_checks import is_flag
from .gradients import KernelRidge, NotPositiveDefiniteError, label_probabilities, refuse_probabilities

Solver = Callable[[float], tuple[Tensor, Tensor]]  # from a penalty to coefficients and leave-one-out residuals

_SMALLEST_WEIGHT = 1e-30  # single precision holds its root, and the inverse
_ROWS = 2**11  # of features that are in double precision at a time
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the base net's probabilities among what the regression is added to
_TEMPERATURES = 0.02, 10.0  # scores are near 0 and 1: at 0.02 the larger has all of the probability


class GradientKernelClassifier(GradientGramMixin, ClassifierMixin, BaseEstimator):
    """Kernel ridge regression with the gradient kernel on the residual of the base net's probabilities.

    A row's scores are the base net's probabilities plus what the regression makes of the row; the class of the largest
    is taken. With ``degree=2`` that is a quadratic separator on gradient space, the exact one for the squared error.

    Parameters
    ----------
    net, degree, normalize, layers, scalar, n_directions, net_output, views, projection
        The kernel, as of :class:`GradientKernel`.
    alphas : sequence of float, default=(0.01, 0.03, 0.1, 0.3, 1.0)
        Penalties to choose from, beside kernel values of 1 for a row with itself (with ``normalize=False`` these are
        others, and so are penalties), by the cross-entropy of leave-one-out
        probabilities. Each costs ``2 n³ / 3`` operations for n rows, and no more memory.
    base_output : bool or "auto", default="auto"
        Whether to begin at the base net's probabilities or at the frequencies of the classes; "auto" mixes them with
        the share of probabilities, of 0, 1/4, 1/2, 3/4 and 1, that has the least cross-entropy of leave-one-out
        probabilities. A net that is sure of what is wrong is better begun with in part, or not at all.
    classes : array-like of shape (n_classes,), optional
        All labels, also those that `y` may lack; with `base_output` those of the net's outputs, in their order, or in
        any with ``net=None``. By default labels are those that a skorch net knows; of a module those of `y` in sorted
        order, if they are as many as the outputs, or else the numbers from 0 on; without `base_output` those of `y`,
        which suits labels of another kind than the net's, as of one class against the rest.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes, by which those of rows are multiplied.
    n_components : int, optional
        Number of random rows whose kernel makes Nyström features for ridge regression; by default all rows count, and
        the matrix of all with all is held.
    products, device, dtype, random_state, verbose
        As of :class:`GradientKernel`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in sorted order.
    alpha_ : float
        The penalty chosen.
    base_share_ : float
        The share of the base net's probabilities, beside the frequencies of the classes, that predictions begin at.
    loo_losses_ : ndarray of shape (n_alphas,)
        Cross-entropy, weighted, of leave-one-out probabilities for each penalty, with a temperature of its own; NaN
        where the matrix was not positive definite to rounding.
    loo_score_ : float
        Accuracy, weighted, of the leave-one-out predictions with the penalty chosen.
    loo_decision_function_ : ndarray of shape (n_samples, n_classes)
        Scores of each row of `fit`, predicted without its label, unless the base net was trained on it. A low score of
        the label that a row was given makes the label suspicious. A row of weight 0 is predicted by all others.
    temperature_ : float
        What scores are divided by in `predict_proba`: the number that gives leave-one-out predictions the least
        cross-entropy.
    landmarks_ : ndarray of shape (n_landmarks, ...)
        Rows whose kernel enters predictions.
    dual_coef_ : ndarray of shape (n_landmarks, n_classes)
        Weights of their kernel values.
    module_, gram_, engine_report_, n_features_in_, sample_shape_
        As of :class:`GradientKernel`.

    Notes
    -----
    The base net should not have been trained on the rows of `fit`: there it leaves less of a residual than on new rows.

    With weights ``w`` the regression minimises ``Σ_i w_i ‖e_y(i) - f(x_i)‖² + α ‖f‖²``. A row with a `sample_weight` of
    2 is a row that comes twice: leave-one-out predictions leave one of the two out. Where weights are not numbers of
    rows, divide them by the largest, and rows are left out whole.

    References
    ----------
    A. R. Aleksziew, "Improving Neural Networks using Gradient Space". Leave-one-out residuals in closed form:
    R. Rifkin, R. Lippert, "Notes on Regularized Least Squares", MIT-CSAIL-TR-2007-025.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import GradientKernelClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = GradientKernelClassifier(random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.9)
    True
    """

    _trains_in_double = True  # for weights to be repetitions to rounding
    _outputs_order: np.ndarray | slice = slice(None)  # of files and pickles that lack it

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
        alphas=(0.01, 0.03, 0.1, 0.3, 1.0),
        base_output="auto",
        classes=None,
        class_weight=None,
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
        self.alphas = alphas
        self.base_output = base_output
        self.classes = classes
        self.class_weight = class_weight
        self.n_components = n_components
        self.products = products
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    @reported_fit
    def fit(self, X, y, sample_weight=None):
        """Fit the separator to the residual of the base net.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them. Without `n_components` they are referred to, not copied.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the samples. A net that ``net=None`` trains is trained with them; a callable does not get them.

        Returns
        -------
        self : object
            The fitted classifier.
        """
        try:
            alphas = np.asarray(self.alphas, dtype=float)
        except (TypeError, ValueError):
            alphas = np.empty(0)
        if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas) & (alphas > 0)).all():
            raise ValueError(f"alphas={self.alphas!r} is not a sequence of positive numbers.")
        if y is None:
            raise ValueError("GradientKernelClassifier requires y to be passed, but the target y is None.")
        if not self._is_auto and not is_flag(self.base_output):
            raise ValueError(f"base_output={self.base_output!r} is none of True, False and 'auto'.")
        check_class_weight(self)
        y = checked_labels(y)
        if not len(y):
            raise ValueError("Found array with 0 sample(s) in y while a minimum of 2 is required.")
        repetitions = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        weight = self._row_weights(y, repetitions)
        plain = sample_weight is None and self.class_weight is None
        X = self._fit_gram(X, y, None if plain else weight)
        codes = self._learn_classes(X, y)
        share = 1 / np.maximum(repetitions, 1)  # of a row that is left out
        counted = weight > 0
        if counted.all():
            self.loo_decision_function_ = self._fit_rows(X, codes, weight, share, alphas)
            return self
        scores = self._fit_rows(X[counted], codes[counted], weight[counted], share[counted], alphas)
        self.loo_decision_function_ = np.empty((len(X), scores.shape[1]), scores.dtype)
        self.loo_decision_function_[counted] = scores
        self.loo_decision_function_[~counted] = self._scores(X[~counted])
        return self

    @property
    def _is_auto(self) -> bool:
        return isinstance(self.base_output, str) and self.base_output == "auto"

    def _row_weights(self, y: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
        """Return the weights of rows, of which their classes are part."""
        (seen, codes), by_class = np.unique(y, return_inverse=True), self.class_weight
        if isinstance(by_class, Mapping):  # which may name classes that y lacks
            by_class = {label: by_class[label] for label in seen.tolist() if label in by_class}
        weight = sample_weight * weights_by_class(by_class, seen, codes, sample_weight)
        weight[weight < _SMALLEST_WEIGHT] = 0
        if not weight.any() or weight.max() > 1 / _SMALLEST_WEIGHT:
            raise ValueError(
                f"sample_weight and class_weight make weights up to {weight.max():g}: at least one must be "
                f"{_SMALLEST_WEIGHT:g} or more, and none above {1 / _SMALLEST_WEIGHT:g}."
            )
        return weight

    def _learn_classes(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Set the classes, and which of the net's outputs belong to them; return the numbers of the rows' classes."""
        if len(np.unique(y)) < 2:
            raise ValueError(f"y holds only one class, {y[:1].tolist()[0]!r}; a classifier needs two at least.")
        if self.base_output:
            outputs = self.gram_.outputs(X[:10])
            refuse_probabilities(self.module_, outputs, "cross_entropy")
            known = output_labels(self.net, label_probabilities(outputs).shape[1], y, self.classes)
        else:
            known = distinct(y if self.classes is None else self.classes, "classes")
        self.classes_, self._outputs_order = np.unique(known, return_index=True)
        named = {*y.tolist()}.union(self.class_weight if isinstance(self.class_weight, Mapping) else ())
        unknown: list = sorted(named - {*self.classes_.tolist()}, key=str)
        if unknown:
            raise ValueError(
                f"y or class_weight hold the labels {unknown[:10]}, which are none of {known[:10].tolist()}. Name all "
                "by classes=[...], in the order of the net's outputs, or use base_output=False."
            )
        return np.searchsorted(self.classes_, y)

    def _fit_rows(
        self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray, share: np.ndarray, alphas: np.ndarray
    ) -> np.ndarray:
        """Fit to rows of positive weights, and return their scores without the share of them that is left out."""
        self._frequencies = np.bincount(codes, weight, len(self.classes_)) / weight.sum()
        shares = _SHARES if self._is_auto else (float(self.base_output),)
        starts = [self._start(X, end) for end in dict.fromkeys((shares[0], shares[-1]))]  # which others are mixed of
        if self.base_output:
            right = (starts[-1].argmax(1).cpu().numpy() == codes).mean()
            warn_of_order(right, len(X), self.classes_[np.argsort(np.asarray(self._outputs_order))])
        truth = torch.eye(len(self.classes_)).to(starts[0])[torch.from_numpy(codes)]
        roots = torch.from_numpy(np.sqrt(weight))[:, None].to(truth)  # a row of weight w counts as √w of itself
        targets = roots * torch.cat([truth - start for start in starts], 1)
        make = self._exact_solver if self.n_components is None else self._landmarks_solver
        solve = make(X, roots, targets, torch.from_numpy(share).to(roots))
        losses, best = [], None
        for alpha in alphas.tolist():
            try:
                coefficients, residuals = solve(alpha)
            except NotPositiveDefiniteError:
                losses.append(np.nan)
                continue
            of_shares = []
            for of_output in shares:
                scores = (truth - _mixed(residuals, of_output, len(starts)).to(roots) / roots).cpu().numpy()
                temperature, loss = fit_temperature(scores, codes, weight, _TEMPERATURES)
                of_shares.append(loss)
                if np.isfinite(loss) and (best is None or loss < best[0]):
                    best = loss, alpha, of_output, temperature, _mixed(coefficients, of_output, len(starts)), scores
            losses.append(min(of_shares))
        if best is None:
            raise ValueError(
                f"the kernel matrix is not positive definite to rounding with any of alphas={self.alphas}: add a "
                "larger one, or compute with dtype='float64'."
            )
        self.loo_losses_ = np.array(losses)
        _, self.alpha_, self.base_share_, self.temperature_, coefficients, scores = best
        self.dual_coef_ = coefficients.cpu().numpy()
        self.loo_score_ = float(np.average(scores.argmax(1) == codes, weights=weight))
        return scores

    def _exact_solver(self, X: np.ndarray, roots: Tensor, targets: Tensor, share: Tensor) -> Solver:
        """Return what solves for a penalty; rows of targets are scaled by `roots`."""
        self.landmarks_, self._held = X, self.gram_.held(X)
        ridge = KernelRidge(gram_matrix(self.gram_, self._held).mul_(roots).mul_(roots.T))

        def solve(alpha: float) -> tuple[Tensor, Tensor]:
            with self.gram_.engine.computing(exact=True):
                coefficients, residuals = ridge.solve(alpha, targets, share)
            return roots * coefficients, residuals

        return solve

    def _landmarks_solver(self, X: np.ndarray, roots: Tensor, targets: Tensor, share: Tensor) -> Solver:
        """Return what does so on Nyström features, along their principal axes and in double precision part by part."""
        self.landmarks_ = self._landmarks(X)
        self._held = self.gram_.held(self.landmarks_)
        whitening = inverse_square_root(gram_matrix(self.gram_, self._held))
        parts = self.gram_.dot(X, self._held, whitening).mul_(roots).split(_ROWS)
        variances, axes = torch.linalg.eigh(sum(part.T @ part for part in map(Tensor.double, parts)))
        for part in parts:
            part.copy_(part.double() @ axes)
        targets = targets.double()
        products = sum(part.double().T @ of_part for part, of_part in zip(parts, targets.split(_ROWS)))

        def solve(alpha: float) -> tuple[Tensor, Tensor]:
            inverse = 1 / (variances + alpha)
            coefficients = inverse[:, None] * products
            predictions = torch.cat([part.double() @ coefficients for part in parts])
            leverages = torch.cat([part.double().square() @ inverse for part in parts])
            residuals = (targets - predictions) / (1 - share * leverages)[:, None]
            return whitening @ (axes @ coefficients).to(whitening), residuals

        return solve

    def _start(self, X: np.ndarray, of_output: float) -> Tensor:
        """Return the scores of shape (n, n_classes) that the regression is added to."""
        engine = self.gram_.engine
        frequencies = torch.from_numpy(self._frequencies).to(engine.device, engine.feature_dtype).expand(len(X), -1)
        if not of_output:
            return frequencies
        probabilities = label_probabilities(self.gram_.outputs(X).to(engine.feature_dtype))[:, self._outputs_order]
        return probabilities if of_output == 1 else torch.lerp(frequencies, probabilities, of_output)

    def _scores(self, X) -> np.ndarray:
        check_is_fitted(self)
        X = self._validated(X)
        coefficients = torch.from_numpy(self.dual_coef_).to(self.gram_.engine.device)
        if not hasattr(self, "_held"):
            self._restore()
        of_output = getattr(self, "base_share_", float(self.base_output is True))  # files of older versions lack it
        return finite(self._start(X, of_output) + self.gram_.dot(X, self._held, coefficients)).cpu().numpy()

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        state.pop("_held", None)  # what can be computed anew
        return state

    def _restore(self) -> None:
        """Compute what was left out; predictions are then those of the classifier that was saved, bit by bit."""
        self._held = self.gram_.held(self.landmarks_)

    def decision_function(self, X):
        """Return the scores of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as in `fit`.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Estimates of the probability of each class, which may lie outside of [0, 1]; for two classes the difference.
        """
        scores = self._scores(X)
        return scores if scores.shape[1] > 2 else scores[:, 1] - scores[:, 0]

    def predict_proba(self, X):
        """Return the probability of each class, calibrated by leave-one-out predictions.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as in `fit`.

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`.
        """
        scores = self._scores(X)
        return softmax(scores / self.temperature_, axis=1)

    def predict(self, X):
        """Return the class with the largest score.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as in `fit`.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Class labels.
        """
        scores = self._scores(X)
        return self.classes_[scores.argmax(1)]


def _mixed(columns: Tensor, of_last: float, n_parts: int) -> Tensor:
    """Return the first part of the columns, or its mixture with the last."""
    first, *last = columns.tensor_split(n_parts, 1)
    return torch.lerp(first, last[0], of_last) if last else first
