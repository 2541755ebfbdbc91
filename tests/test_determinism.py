"""Two fits with one seed are the same bit by bit, on the CPU."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris

import sklearn_gradspace
from sklearn_gradspace import (
    ECOptClassifier,
    ECOptRegressor,
    EdgeImportance,
    GradientFeaturizer,
    GradientKernel,
    GradientKernelClassifier,
    GradNetClassifier,
    finetune,
)
from sklearn_gradspace.gradients import GradientArray
from sklearn_gradspace.modules import MLP

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
few = {"max_epochs": 3}
ESTIMATORS = [
    GradientFeaturizer(projection=9, scale="kronecker"),
    GradientFeaturizer(n_jobs=2, batch_size=20),
    GradNetClassifier(dropout=0.2, early_stopping=True, schedule="cosine", **few),
    GradientKernel(n_components=20, n_directions=2),
    GradientKernelClassifier(projection=20),
    EdgeImportance(labels="sampled", per_class=True),
    ECOptClassifier(**few),
    ECOptClassifier(method="balanced", optimizer="adam", **few),
    ECOptRegressor(path_penalty=1e-3, **few),
]


def results(fitted):
    """Return all numbers that a fitted estimator has or makes, as arrays."""
    arrays = {name: np.asarray(value) for name, value in vars(fitted).items() if isinstance(value, (np.ndarray, float))}
    arrays |= {name: p.detach().numpy() for name, p in fitted.module_.named_parameters()}
    for name in ("transform", "predict", "predict_proba"):
        if hasattr(fitted, name):
            found = getattr(fitted, name)(X)
            arrays[name] = found.toarray() if isinstance(found, GradientArray) else found
    for name in ("importances_", "standard_errors_", "class_importances_"):
        arrays |= {f"{name} {key}": value for key, value in getattr(fitted, name, {}).items()}
    return arrays


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=[type(estimator).__name__ for estimator in ESTIMATORS])
def test_two_fits_with_one_seed_are_equal(estimator):
    estimator = clone(estimator).set_params(random_state=7)
    fits = []
    for state in (1, 2):  # of the global generators, which have no part in it
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        fits.append(results(clone(estimator).fit(X, y)))
    fits.append(results(estimator.fit(X, y)))
    fits.append(results(estimator.fit(X, y)))
    for other in fits[1:]:
        assert other.keys() == fits[0].keys() and len(other) > 3
        for name, found in other.items():
            np.testing.assert_array_equal(found, fits[0][name], err_msg=name, strict=True)


def test_other_seeds_differ():
    one, two = (GradNetClassifier(random_state=seed, **few).fit(X, y).predict_proba(X) for seed in (0, 1))
    assert (one != two).any()


def test_fine_tuning_twice():
    net = MLP(4, 3, (6,))
    mask = {"layers.1.weight": torch.ones(6, 4, dtype=torch.bool)}
    one, two = (finetune(net, X, y, mask, max_epochs=2, random_state=3) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters()))


def test_all_estimators_are_here():
    named = [getattr(sklearn_gradspace, name) for name in sklearn_gradspace.__all__]
    estimators = {found for found in named if isinstance(found, type) and hasattr(found, "fit")}
    assert estimators == {type(estimator) for estimator in ESTIMATORS}
