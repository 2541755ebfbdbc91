"""Order statistics of an outer product equal those of the formed one, to the bit."""

import numpy as np
import pytest
import torch

from sklearn_gradspace.gradients import _products
from sklearn_gradspace.gradients._products import kth_product


def factors(kind, n_out, n_in, n=2, k=2):
    """Return deltas of shape (n, k, n_out) and inputs of shape (n, n_in) in float32."""
    rng = np.random.default_rng(n_out + n_in)
    shapes = (n, k, n_out), (n, n_in)
    normal = [rng.normal(size=shape) for shape in shapes]
    made = {
        "normal": lambda: normal,
        "ties": lambda: [np.round(values) for values in normal],
        "sparse": lambda: [np.maximum(values, 0) * (rng.random(values.shape) < 0.3) for values in normal],
        "one not zero": lambda: [np.where(np.arange(values.shape[-1]) == 0, 1.5, 0 * values) for values in normal],
        "zeros": lambda: [normal[0], 0 * normal[1]],
        "equals": lambda: [np.full(shape, 0.3) for shape in shapes],
        "two values": lambda: [np.where(values > 0.5, 1e-3, -1e3) for values in normal],
        "powers of two": lambda: [2.0 ** rng.integers(-9, 9, size=shape) for shape in shapes],
        "tiny": lambda: [1e-22 * values for values in normal],  # products below what float32 has
        "tiny times huge": lambda: [1e-44 * values for values in normal[:1]] + [1e37 * normal[1]],
        "huge": lambda: [values * 1.8e19 / np.abs(values).max() for values in normal],  # products of up to 3.2e38
        "of every scale": lambda: [values * 10 ** rng.uniform(-18, 18, size=values.shape) for values in normal],
        "half-way": lambda: [1 + rng.integers(0, 2**12, size=shape) * 2.0**-12 for shape in shapes],
    }
    return [torch.tensor(np.asarray(values, dtype=np.float32)) for values in made[kind]()]


KINDS = [
    "normal", "ties", "sparse", "one not zero", "zeros", "equals", "two values", "powers of two", "tiny",
    "tiny times huge", "huge", "of every scale", "half-way",
]  # fmt: skip


def formed(deltas, inputs):
    """Return the magnitudes of the product, in order."""
    return (deltas.unsqueeze(3) * inputs[:, None, None]).abs().flatten(2).sort(2).values


def assert_same(found, expected):
    assert found.dtype == torch.float32
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_out, n_in", [(1, 1), (1, 9), (9, 1), (7, 5), (5, 9)])
def test_every_rank_of_a_small_product(kind, n_out, n_in):
    deltas, inputs = factors(kind, n_out, n_in)
    expected = formed(deltas, inputs)
    for rank in range(n_out * n_in):
        assert_same(kth_product(deltas, inputs, rank), expected[..., rank])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_out, n_in", [(60, 80), (300, 200), (3, 5000), (5000, 2)])
def test_ranks_of_a_large_product(kind, n_out, n_in):
    deltas, inputs = factors(kind, n_out, n_in)
    expected = formed(deltas, inputs)
    size = n_out * n_in
    for rank in {0, 1, size // 100, size // 2, int(0.85 * (size - 1)), size - 1025, size - 2, size - 1}:
        assert_same(kth_product(deltas, inputs, rank), expected[..., rank])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guesses", [(0.0, 0.0), (0.0, 1e-30), (1e30, 1e30), (1e-30, 1e30)], ids=str)
def test_a_sample_that_misleads_changes_nothing(kind, guesses, monkeypatch):
    monkeypatch.setattr(_products, "_sampled", lambda *args: np.array(guesses))
    deltas, inputs = factors(kind, 60, 80)
    expected = formed(deltas, inputs)
    for rank in (0, 100, 2400, 4080, 4799):
        assert_same(kth_product(deltas, inputs, rank), expected[..., rank])


def test_every_row_and_scalar_has_its_own():
    deltas, inputs = factors("normal", 40, 30, n=3, k=4)
    deltas = deltas * torch.logspace(-20, 10, 12).view(3, 4, 1)
    for rank in (0, 600, 1020, 1199):
        assert_same(kth_product(deltas, inputs, rank), formed(deltas, inputs)[..., rank])
