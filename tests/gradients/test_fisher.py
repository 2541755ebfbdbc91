"""The Fisher metric equals its definition in NumPy, and whitens where its factors are exact."""

import pickle

import joblib
import numpy as np
import pytest
import reference
import torch
from asserts import assert_close
from cases import BY_NAME

from sklearn_gradspace.gradients import (
    FisherStatistics,
    GradientArray,
    GradientEngine,
    GradientFeatures,
    _fisher,
    _memory,
)

NAMES = ["mlp of two layers", "conv2d twice", "layer norm", "tied weights", "one logit", "embedding"]


def weighted_gradients(net, X):
    """Return √p_c g_c of shape (n, n_labels, n_params)."""
    return np.sqrt(reference.probabilities(net, X))[..., None] * reference.gradients(net, X)


def inverse_root(matrix):
    values, vectors = np.linalg.eigh(matrix + 1e-3 * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def whitened(net, train, new):
    """Return the whitened gradients of `new`, a matrix at a time."""
    weighted, gradients = weighted_gradients(net, train), reference.gradients(net, new)
    result, start = np.empty_like(gradients), 0
    for parameter in net.parameters():
        columns, shape = slice(start, start + parameter.numel()), tuple(parameter.shape)
        start += parameter.numel()
        part = weighted[..., columns].reshape(-1, parameter.numel())
        if len(shape) < 2:
            moment = (part**2).sum(0) / len(train)
            result[..., columns] = gradients[..., columns] / np.sqrt(moment + 1e-3 * moment.mean())
            continue
        matrices = [g.reshape(shape[0], -1) for g in part]
        left, right = (sum(matrices) / len(train) for matrices in zip(*((g @ g.T, g.T @ g) for g in matrices)))
        for index in np.ndindex(gradients.shape[:2]):
            g = gradients[index][columns].reshape(shape[0], -1)
            mapped = np.sqrt(np.trace(left)) * inverse_root(left) @ g @ inverse_root(right)
            result[index][columns] = mapped.ravel()
    return result


def fitted(engine, X, how, batch_size=2):
    statistics = FisherStatistics(how, engine.blocks)
    for batch in GradientArray(GradientFeatures(engine, batch_size=batch_size), X).batches():
        statistics.merge(statistics.of(batch))
    return statistics.scaler(engine.feature_dtype)


@pytest.mark.parametrize("name", NAMES)
def test_the_diagonal_equals_its_definition(name, device):
    case = BY_NAME[name]
    scaler = fitted(case.engine(device), case.X, "fisher")
    moment = (weighted_gradients(case.net(), case.X) ** 2).sum((0, 1)) / case.n
    expected = np.where(moment == 0, 1, np.sqrt(moment))
    assert_close(scaler.divisor, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_whitening_equals_its_definition(name, device):
    case = BY_NAME[name]
    engine = case.engine(device)
    new = case.X if case.indices else case.X[::-1] + 0.1
    features = GradientFeatures(engine, scaler=fitted(engine, case.X, "kronecker"))
    expected = whitened(case.net(), case.X, new)
    assert_close(features(new), expected, 1e-8)
    labels = torch.arange(case.n) % engine.n_labels
    assert_close(features(new, labels), expected[np.arange(case.n), labels], 1e-8)


@pytest.mark.parametrize("how", ["fisher", "kronecker"])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batches_do_not_show(how, batch_size, device):
    case = BY_NAME["conv2d twice"]
    engine = case.engine(device)
    gradients = engine(case.X)
    whole, parts = (fitted(engine, case.X, how, size)(gradients.clone()) for size in (case.n, batch_size))
    assert_close(parts, whole)


def layer_of_zeros(n_outputs=4, n_inputs=6):
    """Return a layer whose probabilities are equal, so that errors at its outputs do not depend on inputs."""
    layer = torch.nn.Linear(n_inputs, n_outputs, bias=False).double()
    torch.nn.init.zeros_(layer.weight)
    return layer


def test_gradients_are_white_where_the_metric_is_a_kronecker_product(device):
    net, X = layer_of_zeros(), np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
    engine = GradientEngine(net, X, device=device)
    features = GradientFeatures(engine, scaler=fitted(engine, X, "kronecker"))
    vectors = features(X).flatten(0, 1).cpu().numpy()  # labels are equally likely
    moment = vectors.T @ vectors / len(vectors)
    # Errors add up to zero over the labels: what is white is orthogonal to that.
    projection = np.kron(np.eye(4) - np.full((4, 4), 1 / 4), np.eye(6))
    assert np.abs(moment - projection).max() < 0.1
    inputs, errors = np.linalg.eigvalsh(X.T @ X), np.array([0, 1, 1, 1])
    damped = [values / (values + 1e-3 * values.mean()) for values in (errors, inputs)]
    assert_close(np.linalg.eigvalsh(moment), np.sort(np.outer(*damped).ravel()), 1e-8)


def test_whitened_products_do_not_depend_on_the_coordinates_of_the_inputs(device, monkeypatch):
    monkeypatch.setattr(_fisher, "_DAMPING", 1e-12)
    rng = np.random.default_rng(0)
    X, change = rng.normal(size=(30, 6)), rng.normal(size=(6, 6))
    products = []
    for inputs in (X, X @ change):
        engine = GradientEngine(layer_of_zeros(), inputs, device=device)
        vectors = GradientFeatures(engine, scaler=fitted(engine, inputs, "kronecker"))(inputs).flatten(0, 1)
        products.append(vectors @ vectors.T)
    assert_close(products[0], products[1], 1e-5)


@pytest.mark.parametrize("how", ["fisher", "kronecker"])
def test_what_is_always_zero_stays_zero(how, device):
    case = BY_NAME["unused layer"]
    engine = case.engine(device)
    scaler = fitted(engine, case.X, how)
    gradients = engine(case.X)
    zero = (gradients == 0).all(0).all(0)
    assert zero.any() and scaler.is_finite
    assert not scaler(gradients)[..., zero].any() and torch.isfinite(gradients).all()


def test_pickle_and_hash(device):
    case = BY_NAME["mlp of two layers"]
    engine = case.engine(device)
    whitening = fitted(engine, case.X, "kronecker")
    twin = pickle.loads(pickle.dumps(whitening)).to(engine.device)
    assert torch.equal(twin(engine(case.X)), whitening(engine(case.X)))
    assert joblib.hash(twin) == joblib.hash(whitening)


def test_single_precision_is_near_the_truth(device):
    case = BY_NAME["conv2d twice"]
    engine = GradientEngine(case.net().float(), case.X, "all", device)
    found = GradientFeatures(engine, scaler=fitted(engine, case.X, "kronecker"))(case.X)
    assert found.dtype == torch.float32
    assert_close(found, whitened(case.net(), case.X, case.X), 1e-4)


def test_factors_that_do_not_fit_are_refused(device, monkeypatch):
    case = BY_NAME["mlp of two layers"]
    monkeypatch.setattr(_memory, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"scale='kronecker' for '0.weight', with factors of 5 and 6 rows.*'fisher'"):
        FisherStatistics("kronecker", case.engine(device).blocks).require_memory(device)
