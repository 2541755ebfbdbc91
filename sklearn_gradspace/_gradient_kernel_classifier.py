"""GradientKernelClassifier: the exact separator on gradient space, fitted to what the base net gets wrong.

Samples that a net takes and labels enter; a classifier leaves.
"""

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ._base_net import trained_classes
from ._calibration import fit_temperature
from ._callbacks import reported_fit
from ._gradient_kernel import GradientGramMixin, gram_matrix, inverse_square_root
from ._labels import checked_labels
from ._parameter_checks import check_flags
from .gradients import KernelRidge, NotPositiveDefiniteError, label_probabilities, refuse_probabilities

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
        Penalties to choose from, beside kernel values of 1 for a row with itself, by the squared error of leave-one-out
        predictions. Each costs ``2 n³ / 3`` operations for n rows, and no more memory.
    base_output : bool, default=True
        Whether to begin at the base net's probabilities, which needs a class for each of its outputs, or at the
        frequencies of the classes.
    n_components : int, optional
        Number of random rows whose kernel makes Nyström features for ridge regression; by default all rows count, and
        the matrix of all with all is held.
    products, device, dtype, random_state, verbose
        As of :class:`GradientKernel`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    alpha_ : float
        The penalty chosen.
    loo_errors_ : ndarray of shape (n_alphas,)
        Mean squared error of leave-one-out predictions for each penalty; NaN where the matrix was not positive definite
        to rounding.
    loo_score_ : float
        Accuracy of the leave-one-out predictions with the penalty chosen.
    loo_decision_function_ : ndarray of shape (n_samples, n_classes)
        Scores of each row of `fit`, predicted without its label, unless the base net was trained on it. A low score of
        the label that a row was given makes the label suspicious.
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
        base_output=True,
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
        self.n_components = n_components
        self.products = products
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    @reported_fit
    def fit(self, X, y):
        """Fit the separator to the residual of the base net.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples as the net takes them. Without `n_components` they are referred to, not copied.
        y : array-like of shape (n_samples,)
            Class labels.

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
        check_flags(self, "base_output")
        y = checked_labels(y)
        X = self._fit_gram(X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds only one class, {self.classes_.item()!r}; a classifier needs two at least.")
        outputs = self.gram_.outputs(X[:10])
        if self.base_output:
            refuse_probabilities(self.module_, outputs, "cross_entropy")
        known = trained_classes(self.net, label_probabilities(outputs).shape[1])
        unknown = np.setdiff1d(self.classes_, self.classes_ if known is None else known)
        if self.base_output and (len(unknown) or (known is not None and not np.array_equal(known, np.unique(known)))):
            raise ValueError(
                f"base_output=True begins with the probabilities of the base net, which does not know the labels "
                f"{unknown[:10].tolist()} of y, or knows labels in another order than theirs. Use base_output=False."
            )
        self._frequencies = np.bincount(codes) / len(codes)
        start = self._start(X)
        targets = torch.eye(len(self.classes_), dtype=start.dtype, device=start.device)[torch.from_numpy(codes)] - start
        fitted = self._fit_exactly if self.n_components is None else self._fit_landmarks
        residuals = fitted(X, targets, alphas)
        self.loo_decision_function_ = (start + targets - residuals).cpu().numpy()
        self.loo_score_ = float((self.loo_decision_function_.argmax(1) == codes).mean())
        self.temperature_ = fit_temperature(self.loo_decision_function_, codes, bounds=_TEMPERATURES)
        return self

    def _fit_exactly(self, X: np.ndarray, targets: Tensor, alphas: np.ndarray) -> Tensor:
        """Set coefficients, and return the leave-one-out residuals of the best penalty."""
        self._held = self.gram_.held(X)
        ridge = KernelRidge(gram_matrix(self.gram_, self._held))
        errors, best = [], None
        for alpha in alphas.tolist():
            try:
                with self.gram_.engine.computing(exact=True):
                    coefficients, residuals = ridge.solve(alpha, targets)
            except NotPositiveDefiniteError:
                errors.append(np.nan)
                continue
            errors.append(residuals.square().mean().item())
            if np.isfinite(errors[-1]) and (best is None or errors[-1] < best[0]):
                best = errors[-1], alpha, coefficients, residuals
        if best is None:
            raise ValueError(
                f"the kernel matrix is not positive definite to rounding with any of alphas={self.alphas}: add a "
                "larger one, or compute with dtype='float64'."
            )
        _, self.alpha_, coefficients, residuals = best
        self.loo_errors_ = np.array(errors)
        self.landmarks_, self.dual_coef_ = X, coefficients.cpu().numpy()
        return residuals

    def _fit_landmarks(self, X: np.ndarray, targets: Tensor, alphas: np.ndarray) -> Tensor:
        self.landmarks_ = self._landmarks(X)
        self._held = self.gram_.held(self.landmarks_)
        whitening = inverse_square_root(gram_matrix(self.gram_, self._held))
        features = self.gram_.dot(X, self._held, whitening).cpu().numpy()
        from sklearn.linear_model import RidgeCV  # which takes long to import

        ridge = RidgeCV(alphas, fit_intercept=False, scoring="neg_mean_squared_error", store_cv_results=True)
        targets_ = targets.cpu().numpy()
        ridge.fit(features, targets_)
        predictions = ridge.cv_results_.reshape(*targets_.shape, len(alphas))
        self.loo_errors_ = np.square(predictions - targets_[..., None]).mean((0, 1))
        self.alpha_ = float(ridge.alpha_)
        chosen = int(np.flatnonzero(alphas == self.alpha_)[0])
        self.dual_coef_ = whitening.cpu().numpy() @ ridge.coef_.T.astype(features.dtype)
        return targets - torch.from_numpy(predictions[..., chosen]).to(targets)

    def _start(self, X: np.ndarray) -> Tensor:
        """Return the scores of shape (n, n_classes) that the regression is added to."""
        engine = self.gram_.engine
        if not self.base_output:
            return torch.from_numpy(self._frequencies).to(engine.device, engine.feature_dtype).expand(len(X), -1)
        probabilities = label_probabilities(self.gram_.outputs(X).to(engine.feature_dtype))
        if probabilities.shape[1] != len(self.classes_):
            raise ValueError(
                f"base_output=True begins at the probabilities of {probabilities.shape[1]} labels that the net knows, "
                f"but y holds {len(self.classes_)} classes: use base_output=False, or give rows of all classes."
            )
        return probabilities

    def _scores(self, X) -> np.ndarray:
        check_is_fitted(self)
        X = self._validated(X)
        coefficients = torch.from_numpy(self.dual_coef_).to(self.gram_.engine.device)
        landmarks = getattr(self, "_held", self.landmarks_)
        return (self._start(X) + self.gram_.dot(X, landmarks, coefficients)).cpu().numpy()

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
