"""What a call has to do: give something that makes sense, or say what to do about it; and change nothing."""

import warnings
from contextlib import contextmanager

import numpy as np
import torch
from asserts import documented, random_state_untouched, untouched
from scipy import sparse
from sklearn.base import is_classifier

from sklearn_gradspace import (
    ECOptClassifier,
    ECOptRegressor,
    EdgeImportance,
    GradientFeaturizer,
    GradientKernel,
    GradientKernelClassifier,
    GradNetClassifier,
)
from sklearn_gradspace.modules import MLP

METHODS = ("transform", "predict", "predict_proba", "decision_function")


def estimators(net):
    """Return estimators by name, those that take a net with `net`."""
    return {
        "featurizer": GradientFeaturizer(net, random_state=0),
        "featurizer without net": GradientFeaturizer(random_state=0, output="csr", scale="kronecker"),
        "kernel": GradientKernel(net, random_state=0),
        "landmarks": GradientKernel(net, n_components=3, random_state=0),
        "kernel classifier": GradientKernelClassifier(net, base_output=False, random_state=0),
        "importance": EdgeImportance(net, random_state=0, per_class=True),
        "importance without net": EdgeImportance(random_state=0),
        "gradnet": GradNetClassifier(max_epochs=1, random_state=0),
        "class space classifier": ECOptClassifier((4,), max_epochs=1, random_state=0),
        "class space regressor": ECOptRegressor((4,), max_epochs=1, random_state=0),
    }


def small_net():
    """Return a net of six features and three labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP(6, 3, (4,))


@contextmanager
def fails_well():
    """Let errors pass that say what to do; no other, and no warning of NumPy's or torch's about numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            if not documented(error):
                raise


@contextmanager
def nothing_changes(net, *values):
    """Assert that a net, arrays and the global random states stay as they are, come what may."""
    arrays = [(value, value.copy()) for value in values if isinstance(value, np.ndarray)]
    with untouched(net), random_state_untouched():
        yield
    for value, before in arrays:
        np.testing.assert_array_equal(value, before)


def use(estimator, X, y):
    """Fit an estimator and call what it has; assert that what leaves makes sense."""
    estimator.fit(X, y)
    n = X.shape[0] if hasattr(X, "shape") else len(X)
    for name in METHODS:
        if not hasattr(estimator, name):
            continue
        returned = getattr(estimator, name)(X)
        values = returned.toarray() if sparse.issparse(returned) or hasattr(returned, "toarray") else returned
        values = np.asarray(values)
        assert len(values) == n
        assert values.dtype.kind not in "fc" or np.isfinite(values).all()
        if name == "predict" and is_classifier(estimator):
            assert np.isin(values, estimator.classes_).all()
        if name == "predict_proba":
            assert values.shape == (n, len(estimator.classes_)) and values.min() >= 0
            np.testing.assert_allclose(values.sum(1), 1, atol=1e-5)
    if isinstance(estimator, EdgeImportance):
        assert all(np.isfinite(values).all() for values in estimator.importances_.values())
        assert sum(int(kept.sum()) for kept in estimator.mask(0.5).values()) >= 1
