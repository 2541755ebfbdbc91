"""Selection equals NumPy's percentile, ties and tiny blocks included."""

from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from asserts import random_state_untouched

from sklearn_gradspace.gradients import Block
from sklearn_gradspace.gradients._selection import select_largest

PERCENTILES = [0.5, 1, 7, 15, 33.3, 50, 85, 99, 99.9, 100]
SIZES = [(40,), (1, 2, 3), (25, 1, 101), (4, 5)]


def blocks_of(sizes):
    return tuple(Block(f"{i}.weight", (size,), sum(sizes[:i])) for i, size in enumerate(sizes))


def selected(gradients, sizes, percentile):
    return select_largest(torch.tensor(gradients), blocks_of(sizes), percentile).numpy()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [None, 10, 1], ids=["no ties", "some ties", "many ties"])
def test_equals_percentile(sizes, percentile, dtype, ties):
    gradients = np.random.default_rng(0).normal(size=(3, 2, sum(sizes)))
    gradients = (gradients if ties is None else np.round(gradients * ties) / ties).astype(dtype)
    np.testing.assert_array_equal(
        selected(gradients, sizes, percentile), reference.select(gradients, sizes, percentile), strict=True
    )


@pytest.mark.parametrize("n", range(1, 42))
def test_every_percentage_of_an_even_grid(n):
    values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1)) * np.where(np.arange(n) % 2, 1, -1)
    for percentile in range(1, 100):
        threshold = 1 + Fraction((n - 1) * (100 - percentile), 100)  # the percentile of 1, ..., n, without rounding
        expected = np.where(np.abs(values) > threshold, values, 0)
        np.testing.assert_array_equal(selected(values, [n], percentile), expected)


def test_hundred_keeps_all():
    gradients = np.random.default_rng(0).normal(size=(2, 6))
    np.testing.assert_array_equal(selected(gradients, (1, 5), 100), gradients)


@pytest.mark.parametrize("percentile", [1, 50, 99.9])
def test_a_block_of_one_or_of_equals_keeps_nothing(percentile):
    np.testing.assert_array_equal(selected(np.array([[3.0, -2, 2, 2]]), (1, 3), percentile), np.zeros((1, 4)))


@pytest.mark.parametrize("percentile", [15, 50])
def test_writes_over_its_input_and_keeps_the_values(percentile):
    gradients = torch.tensor(np.random.default_rng(0).normal(size=(3, 50)))
    before = gradients.clone()
    with random_state_untouched():
        result = select_largest(gradients, blocks_of([50]), percentile)
    assert result is gradients
    kept = result != 0
    assert torch.equal(result[kept], before[kept])
    assert before[kept].abs().min() > before[~kept].abs().min()
    assert abs(kept.sum(1) - 50 * percentile / 100).max() <= 1
