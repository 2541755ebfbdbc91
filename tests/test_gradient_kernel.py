"""GradientKernel: kernel values, Nyström features, directions and projections, and what it leaves alone."""

import pickle

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from asserts import as_array, assert_close, random_state_untouched, untouched
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

from sklearn_gradspace import GradientKernel
from sklearn_gradspace._gradient_kernel import LogitDirections, _orthonormal, inverse_square_root
from sklearn_gradspace._random_projection import random_projection
from sklearn_gradspace.gradients import Block, _memory
from sklearn_gradspace.modules import MLP


def make_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(6, 4, (5,)).double()


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def cnn():
    return nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(12, 6))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(12, 1, 16)).astype(np.float32)


def slow(net, X, Y, **options):
    sizes = [30, 5, 20, 4]
    weights = np.repeat([True, False, True, False], sizes)
    found = [reference.gradients(net, rows, "logit")[..., weights] for rows in (X, Y)]
    return reference.kernel(*found, [30, 20], **options)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("normalize", [True, False, "layer"])
def test_equals_the_reference(net, X, degree, normalize, device):
    options = {"degree": degree, "normalize": normalize}
    kernel = GradientKernel(net, device=device, **options)
    expected = slow(make_net(), X, X, **options)
    assert_close(kernel.fit_transform(X[:8]), expected[:8, :8])
    assert_close(kernel.transform(X), expected[:, :8])
    assert_close(kernel.pairwise(X), expected)
    assert_close(kernel.pairwise(X[:3], X[4:]), expected[:3, 4:])


def test_working_memory_is_that_of_scikit_learn(net, X):
    with config_context(working_memory=1e-3):
        small = GradientKernel(net).fit(X)
    assert small.gram_.working_memory == 1048
    assert_close(small.transform(X), GradientKernel(net).fit_transform(X))


@pytest.mark.parametrize("products", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_nystrom_features_of_all_rows_reproduce_the_kernel(net, X, products, dtype, device):
    kernel = GradientKernel(net, n_components=50, products=products, dtype=dtype, degree=3, device=device)
    features = kernel.fit_transform(X)
    assert features.shape == (12, 12) and np.array_equal(kernel.landmarks_, X)
    assert_close(features @ features.T, kernel.pairwise(X), 1e-3 if products or dtype else 1e-8)


def test_nystrom_features_are_kernel_values_times_the_normalization(net, X, device):
    kernel = GradientKernel(net, n_components=5, random_state=0, device=device).fit(X)
    assert kernel.landmarks_.shape == (5, 6) and kernel.normalization_.shape == (5, 5)
    rows = [int(np.flatnonzero(np.all(landmark == X, 1))[0]) for landmark in kernel.landmarks_]
    assert sorted(set(rows)) == rows
    features = kernel.transform(X)
    assert_close(features, kernel.pairwise(X, kernel.landmarks_) @ kernel.normalization_)
    assert_close(features[rows] @ features[rows].T, kernel.pairwise(kernel.landmarks_), 1e-8)
    assert_close(kernel.normalization_ @ kernel.pairwise(kernel.landmarks_) @ kernel.normalization_, np.eye(5), 1e-8)
    assert not np.array_equal(GradientKernel(net, n_components=5, random_state=1).fit(X).landmarks_, kernel.landmarks_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_inverse_root_of_a_matrix_of_low_rank(dtype):
    factor = torch.randn(9, 3, dtype=torch.float64)
    gram = (factor @ factor.T).to(dtype)
    root = inverse_square_root(gram)
    assert root.dtype == dtype and torch.isfinite(root).all()
    assert_close(root.T, root, 1e-4)
    assert_close(gram @ root @ root @ gram, gram, 1e-3 if dtype == torch.float32 else 1e-8)


def test_all_directions_are_all_logits(net, X, device):
    whole = GradientKernel(net, degree=1, normalize=False, device=device).fit_transform(X)
    for n_directions in (4, 5, 100):
        kernel = GradientKernel(net, degree=1, normalize=False, n_directions=n_directions, device=device).fit(X)
        assert kernel.gram_.engine.n_labels == 4
        assert_close(kernel.transform(X), whole)


def test_fewer_directions_are_deterministic_and_right_on_average(net, X):
    options = {"degree": 1, "normalize": False}
    whole = GradientKernel(net, **options).fit_transform(X)

    def of(seed):
        return GradientKernel(net, n_directions=2, random_state=seed, **options).fit_transform(X)

    assert np.array_equal(of(0), of(0)) and not np.array_equal(of(0), of(1))
    found = np.array([of(seed) for seed in range(49)])
    # The mean of 49 draws is within five of its standard errors, for each of 78 values.
    assert (np.abs(found.mean(0) - whole) < 5 * found.std(0) / 7 + 1e-12).all()


@pytest.mark.parametrize("n_directions", [1, 3, 4, 9])
def test_directions_are_orthonormal(n_directions):
    with random_state_untouched():
        matrix = LogitDirections(n_directions, seed=5)(torch.eye(4, dtype=torch.float64))
    assert matrix.shape == (4, min(n_directions, 4))
    assert_close(matrix.T @ matrix, np.eye(min(n_directions, 4)))


def test_directions_are_the_same_each_time_and_may_be_differentiated():
    _orthonormal.cache_clear()
    directions = LogitDirections(2, seed=5)
    with torch.inference_mode():
        first = directions(torch.eye(4))
    outputs = torch.eye(4, requires_grad=True)
    directions(outputs).sum().backward()
    assert_close(outputs.grad, first.clone().sum(1).expand(4, -1), 1e-6)
    assert torch.equal(directions(torch.eye(4)), first) and _orthonormal.cache_info().misses == 1
    assert_close(directions(torch.eye(4, dtype=torch.float64)), first.clone(), 1e-6)
    assert not torch.equal(LogitDirections(2, seed=6)(torch.eye(4)), first)
    assert directions(torch.eye(3)).shape == (3, 2)


def test_a_kernel_is_finite_whatever_its_sum():
    X = np.full((5, 1), 3.6e9)  # whose kernel values are 1.7e38, half of the largest number
    net = torch.nn.Linear(1, 1, bias=False)
    kernel = GradientKernel(net, normalize=False).fit(X).pairwise(X)
    assert kernel.dtype == np.float32 and kernel.min() > np.finfo(np.float32).max / kernel.size
    assert_close(kernel, np.full((5, 5), 3.6e9**4), 1e-5)
    for wrong in (1e10, -1e10):
        with pytest.raises(ValueError, match="the gradient kernel is not finite"):
            GradientKernel(net, normalize=False).fit(X).pairwise(np.full((2, 1), wrong))


def test_projection_errs_by_the_root_of_its_dimensions(cnn, images, device):
    exact = GradientKernel(cnn, degree=1, device=device).fit_transform(images)
    for dimensions in (30, 120):
        found = [
            GradientKernel(cnn, degree=1, projection=dimensions, random_state=seed, device=device).fit_transform(images)
            for seed in range(5)
        ]
        errors = np.array(found) - exact
        assert 0 < np.abs(errors).max() < 5 * dimensions**-0.5
        assert np.sqrt((errors**2).mean()) < 1.5 * dimensions**-0.5


def test_projection_is_the_same_for_any_tiles_and_drawn_by_the_random_state(cnn, images):
    kernel = GradientKernel(cnn, projection=20, random_state=0)
    whole = kernel.fit_transform(images)
    assert np.array_equal(clone(kernel).fit_transform(images), whole)
    assert not np.array_equal(clone(kernel).set_params(random_state=1).fit_transform(images), whole)
    with config_context(working_memory=1e-3):
        small = clone(kernel).fit(images)
        assert_close(small.transform(images), whole, 1e-5)
        assert_close(small.transform(images[::-1])[::-1], whole, 1e-5)
    assert np.array_equal(pickle.loads(pickle.dumps(kernel)).transform(images), kernel.transform(images))


def test_projection_is_of_the_gradients_of_all_scalars_one_after_the_other(cnn, images):
    kernel = GradientKernel(cnn, projection=20, random_state=0, degree=1, normalize=False, dtype="float64").fit(images)
    projection = kernel.gram_.projection
    assert [source.name for source in projection.sources] == ["0.weight", "2.weight"]  # the last layer's are factored
    total, start = 0, 0
    gradients = kernel.gram_.engine(images)
    for block in kernel.gram_.engine.blocks:
        part = as_array(gradients[..., block.slice].flatten(1))
        if start < 2:
            part = part @ as_array(projection.matrices[start].to_dense()).T
        total, start = total + part @ part.T / 4, start + 1
    assert_close(kernel.transform(images), total)


def test_gradients_that_are_not_formed_are_not_projected(net, X, monkeypatch):
    whole = GradientKernel(net).fit_transform(X)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2000)  # too few for a matrix
    assert_close(GradientKernel(net, projection=2).fit(X).transform(X), whole)
    with pytest.raises(MemoryError, match=r"projection=10, a sparse matrix"):
        GradientKernel(net, projection=10, views=lambda X: [X, X]).fit(X)


@pytest.mark.parametrize("entries", [1, 4, 100])
def test_columns_of_projections_have_few_entries(entries):
    blocks = [Block("large", (4000,), 0), Block("small", (10,), 4000)]
    drawn = random_projection(blocks, 50, np.random.RandomState(0), torch.float64, entries)
    matrix = drawn.matrices[0].to_dense()
    assert drawn.matrices[1] is None and matrix.shape == (50, 4000)
    mean = (matrix != 0).double().mean(1).sum().item()
    assert abs(mean - min(entries, 50)) < 0.05 * entries
    assert abs((matrix**2).sum(0).mean().item() - 1) < 0.05  # lengths are kept


def test_views_average_gradients(net, X):
    views = GradientKernel(net, views=lambda X: [X, -X], degree=1, normalize=False).fit_transform(X)
    engine = GradientKernel(net).fit(X).gram_.engine
    mean = as_array((engine(X) + engine(-X)) / 2).reshape(12, -1)
    assert_close(views, mean @ mean.T / 4)


def test_pipelines(net, X):
    digits, y = load_digits(n_class=4, return_X_y=True)
    digits, y = digits[:300].astype(np.float32) / 16, y[:300]
    base = MLP(64, 4, (12,))
    nystrom = make_pipeline(GradientKernel(base, n_components=100, random_state=0), RidgeClassifier(0.01))
    exact = make_pipeline(GradientKernel(base), SVC(kernel="precomputed", C=10))
    for model in (nystrom, exact):
        assert model.fit(digits[:200], y[:200]).score(digits[200:], y[200:]) > 0.9
    grid = {"gradientkernel__degree": [1, 2], "gradientkernel__layers": ["weights", "layers.3.*"]}
    search = GridSearchCV(nystrom, grid, cv=2, error_score="raise").fit(digits[:100], y[:100])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_[0].module_ is base


@pytest.mark.parametrize("n_components", [None, 5])
@pytest.mark.parametrize("random_state", [0, None])
def test_leaves_the_net_the_data_and_random_states_alone(net, X, n_components, random_state):
    before = X.copy()
    if random_state is None and n_components is not None:
        random_state = np.random.RandomState(0)  # what is drawn without a seed is drawn from NumPy's
    with untouched(net), random_state_untouched():
        GradientKernel(net, n_components=n_components, random_state=random_state).fit_transform(X)
        GradientKernel(net, n_directions=2, projection=3, views=lambda X: [X, X], random_state=0).fit(X).transform(X)
    assert np.array_equal(X, before)


@pytest.mark.parametrize("options", [{}, {"n_components": 5}, {"n_directions": 2, "projection": 3}])
def test_clone_and_pickle(net, X, options):
    kernel = GradientKernel(net, random_state=0, **options).fit(X)
    expected = kernel.transform(X)
    assert np.array_equal(pickle.loads(pickle.dumps(kernel)).transform(X), expected)
    assert np.array_equal(clone(kernel).fit(X).transform(X), expected)


def test_data_frames_raise_no_warning(net, X):
    frame = pd.DataFrame(X, columns=list("abcdef"))
    assert np.array_equal(GradientKernel(net).fit_transform(frame), GradientKernel(net).fit_transform(X))


def test_names_and_containers(net, X):
    kernel = GradientKernel(net, n_components=5).fit(X)
    assert list(kernel.get_feature_names_out()) == [f"gradientkernel{i}" for i in range(5)]
    assert list(kernel.set_output(transform="pandas").transform(X).columns) == list(kernel.get_feature_names_out())
    assert [rule.rule for rule in kernel.engine_report_] == ["closed_form"] * 2
    tensor = GradientKernel(net).fit_transform(torch.from_numpy(X))
    assert np.array_equal(tensor, GradientKernel(net).fit_transform(X))


def test_precision_is_that_of_the_net(X):
    assert GradientKernel(make_net().float()).fit_transform(X).dtype == np.float32
    assert GradientKernel(make_net().float(), dtype="float64").fit_transform(X).dtype == np.float64


def test_a_matrix_that_does_not_fit_says_how_many_rows_would(net, X, monkeypatch):
    kernel = GradientKernel(net).fit(X)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 8 * 100)
    with pytest.raises(MemoryError, match=r"shape \(12, 12\) .*Use fewer rows, 10 would fit, or landmarks: n_comp"):
        kernel.pairwise(X)
    with pytest.raises(MemoryError, match=r"shape \(9, 12\) .*Use fewer rows, 8 would fit"):
        kernel.transform(X[:9])
    assert kernel.transform(X[:8]).shape == (8, 12)


def test_landmarks_that_do_not_fit(net, X, monkeypatch):
    kernel = GradientKernel(net, n_components=5).fit(X)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 8 * 50)
    with pytest.raises(MemoryError, match=r"a matrix of features of shape \(12, 5\) .*Transform fewer rows"):
        kernel.transform(X)
    with pytest.raises(MemoryError, match=r"the inverse root of a kernel matrix of shape \(5, 5\) .*a smaller n_comp"):
        kernel.fit(X)


@pytest.mark.parametrize("n_components", [None, 5])
def test_in_inference_mode(net, X, n_components):
    expected = GradientKernel(net, n_components=n_components, random_state=0).fit_transform(X)
    with torch.inference_mode():
        found = GradientKernel(net, n_components=n_components, random_state=0).fit_transform(X)
    assert np.array_equal(found, expected)


def test_products_that_overflow_are_refused(X):
    net = make_net()
    with torch.no_grad():
        net.layers[-1].weight.mul_(1e200)
    with pytest.raises(ValueError, match=r"the gradient kernel is not finite.*normalize=True"):
        GradientKernel(net, normalize=False).fit_transform(X)


def test_landmarks_in_single_precision_are_the_kernel(X):
    many = np.concatenate([X, X + 0.1, X - 0.1]).astype(np.float32)
    net = make_net().float()
    features = GradientKernel(net, n_components=len(many), random_state=0).fit_transform(many)
    assert_close(features @ features.T, GradientKernel(net).fit_transform(many), 2e-4)
