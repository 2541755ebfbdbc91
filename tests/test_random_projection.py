"""Random projections are scikit-learn's, of each parameter, and keep products in expectation."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from asserts import assert_close
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
from sklearn_gradspace.gradients import Projection, _engine, _memory
from sklearn_gradspace.modules import MLP

SIZES = (20 * 6, 3 * 20)  # of the weights


@pytest.fixture
def net():
    return MLP(6, 3, (20,)).double()


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(12, 6))


def components(n_components, random_state, sizes=SIZES):
    """Return the matrix that projects a view, block by block."""
    random_state, matrices = np.random.RandomState(random_state), []
    for size in sizes:
        n = n_components if isinstance(n_components, int) else int(np.ceil(n_components * size))
        projector = SparseRandomProjection(n, random_state=random_state)
        matrices.append(projector.fit(np.zeros((1, size))).components_.toarray() if n < size else np.eye(size))
    return sparse.block_diag(matrices).toarray()


@pytest.mark.parametrize("n_components", [1, 7, 60, 100, 120, 500, 0.1, 0.5])
@pytest.mark.parametrize("options", [{}, {"scale": "kronecker"}, {"scale": None, "power": None, "percentile": 100}])
def test_equal_those_of_scikit_learn(net, X, n_components, options, device):
    whole = GradientFeaturizer(net, output="dense", random_state=3, device=device, **options).fit_transform(X)
    matrix = components(n_components, 3)
    projected = GradientFeaturizer(
        net, projection=n_components, output="dense", random_state=3, device=device, **options
    ).fit_transform(X)
    expected = whole.reshape(12, 3, -1) @ matrix.T
    assert_close(projected, expected.reshape(12, -1))


@pytest.mark.parametrize("options", [{}, {"labels": "predicted"}, {"edges": {"layers.1.weight": np.tri(20, 6) > 0}}])
@pytest.mark.parametrize("part_bytes", [1, 2**24])
def test_representations_batches_and_views_agree(net, X, options, part_bytes, device, monkeypatch):
    monkeypatch.setitem(_engine._PART_BYTES, device.type, part_bytes)
    options = {"projection": 10, "random_state": 0, "device": device, **options}
    lazy, dense, csr = (
        GradientFeaturizer(net, output=output, **options).fit_transform(X) for output in ("lazy", "dense", "csr")
    )
    n_labels = 1 if "labels" in options else 3
    assert lazy.shape == dense.shape == csr.shape == (12, n_labels * 20)
    assert [(block.name, block.size) for block in lazy.blocks] == [("layers.1.weight", 10), ("layers.3.weight", 10)]
    np.testing.assert_array_equal(lazy.toarray(), dense)
    np.testing.assert_array_equal(csr.toarray(), dense)
    assert_close(lazy[3], dense[3])
    labels = torch.arange(12) % n_labels
    views = dense.reshape(12, n_labels, 20)
    assert_close(lazy.view(labels), views[np.arange(12), labels])
    assert_close(torch.cat([part.clone() for part in lazy.parts()]), views)
    for batches in ({"batch_size": 1}, {"batch_size": 5, "n_jobs": 2}):
        assert_close(GradientFeaturizer(net, output="dense", **options, **batches).fit_transform(X), dense)


def test_names_and_blocks(net, X):
    featurizer = GradientFeaturizer(net, projection=100, random_state=0).fit(X)
    names = featurizer.get_feature_names_out()
    assert len(names) == 3 * 160 and len(set(names)) == len(names)
    assert names[0] == "label0 layers.1.weight<0>" and names[99] == "label0 layers.1.weight<99>"
    assert names[100] == "label0 layers.3.weight[0,0]" and names[-1] == "label2 layers.3.weight[2,19]"
    assert GradientFeaturizer(net, projection=120).fit(X).features_.projection is None


def test_the_random_state_draws_the_matrices(net, X):
    first, again, other = (
        GradientFeaturizer(net, projection=5, random_state=seed, output="dense").fit_transform(X) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_products_are_kept_in_expectation(net, X):
    options = {"scale": "layer", "output": "dense"}
    whole = GradientFeaturizer(net, **options).fit_transform(X)
    truth, found = whole @ whole.T, []
    for seed in range(200):
        projected = GradientFeaturizer(net, projection=20, random_state=seed, **options).fit_transform(X)
        found.append(projected @ projected.T)
    found = np.array(found)
    # The mean of 200 draws is within four and a half of its standard errors, for each of 78 products.
    assert (np.abs(found.mean(0) - truth) < 4.5 * found.std(0) / np.sqrt(200)).all()
    assert (found.std(0) > 0).all()


def test_distances_are_kept_within_the_bound():
    net, X = MLP(60, 3, (200,)), np.random.default_rng(0).normal(size=(20, 60)).astype(np.float32)
    options = {"layers": "layers.1.weight", "percentile": 100, "power": None, "scale": None, "output": "dense"}
    n_components = int(johnson_lindenstrauss_min_dim(60, eps=0.3))
    whole, projected = (
        GradientFeaturizer(net, projection=n, random_state=0, **options).fit_transform(X).reshape(60, -1)
        for n in (None, n_components)
    )
    assert projected.shape[1] == n_components < whole.shape[1] / 10
    pairs = np.triu_indices(60, 1)
    before, after = (((f[pairs[0]] - f[pairs[1]]) ** 2).sum(1) for f in (whole, projected))
    apart = before > 1e-6 * before.max()
    assert apart.sum() > 1000
    assert (np.abs(after / before - 1) < 0.3)[apart].all()


def test_clone_pickle_joblib_and_search(net, X, tmp_path):
    y = np.arange(12) % 3
    featurizer = GradientFeaturizer(net, projection=10, random_state=0, output="dense").fit(X)
    expected = featurizer.transform(X)
    joblib.dump(featurizer, tmp_path / "featurizer.joblib")
    for twin in (pickle.loads(pickle.dumps(featurizer)), joblib.load(tmp_path / "featurizer.joblib", mmap_mode="r")):
        np.testing.assert_array_equal(twin.transform(X), expected)
    np.testing.assert_array_equal(clone(featurizer).fit_transform(X), expected)
    assert joblib.hash(featurizer) == joblib.hash(pickle.loads(pickle.dumps(featurizer)))
    pipeline = make_pipeline(GradientFeaturizer(net, output="csr", random_state=0), LogisticRegression())
    search = GridSearchCV(pipeline, {"gradientfeaturizer__projection": [None, 5, 0.2]}, cv=2, error_score="raise")
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()
    lazy = GradientFeaturizer(net, projection=10, random_state=0).fit_transform(X)
    assert GradNetClassifier(max_epochs=1).fit(lazy, y).predict(lazy).shape == (12,)


def test_only_a_part_of_the_gradients_exists_at_a_time():
    net, X = MLP(500, 2, (1000, 500)), np.random.default_rng(0).normal(size=(10, 500)).astype(np.float32)
    featurizer = GradientFeaturizer(net, projection=50, percentile=100, scale=None, random_state=0).fit(X)
    features, engine = featurizer.features_, featurizer.features_.engine
    assert engine.n_params > 10**6 and features.batch_size > 16
    beside = features.memory(1000) - engine.memory(1000, features=0)
    assert beside < 1000 * 2 * 150 * 4 + 6 * engine.part_rows(2) * 2 * engine.n_params * 4 < 2**28
    assert featurizer.transform(X).toarray().shape == (10, 2 * 150)


def test_matrices_that_do_not_fit_are_refused(net, X, monkeypatch):
    monkeypatch.setattr(_memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryError, match=r"projection=50, a sparse matrix .*are free. Project to fewer dimensions"):
        GradientFeaturizer(net, projection=50).fit(X)


def test_single_precision_gives_single_precision(X):
    lazy = GradientFeaturizer(MLP(6, 3), projection=10).fit_transform(X.astype(np.float32))
    assert isinstance(lazy.features.projection, Projection)
    assert lazy.dtype == lazy.toarray().dtype == np.float32
