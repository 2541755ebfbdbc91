"""Selection equals NumPy's percentile, ties and tiny blocks included, by whichever way it is found."""

from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from asserts import random_state_untouched

from sklearn_gradspace.gradients import Block, _selection
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


def of_kind(kind, shape, dtype, seed=0):
    """Return gradients on which a partition, a bracket or a comparison may fail."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=shape)
    values = {
        "normal": lambda: normal,
        "ties": lambda: np.round(normal, 1),
        "integers": lambda: rng.integers(-3, 4, size=shape),
        "mostly zeros": lambda: normal * (rng.random(shape) < 0.1),
        "zeros": lambda: 0 * normal,
        "equals": lambda: np.where(normal > 0, 2.5, -2.5),
        "two values": lambda: np.where(normal > 1, 1e-3, -1e3),
        "tiny": lambda: normal * {np.float32: 1e-42, np.float64: 1e-310}[dtype],
        "of every scale": lambda: normal * 10 ** rng.uniform(-30, 8, size=shape),
        "rows of every scale": lambda: normal * 10 ** rng.uniform(-30, 30, size=(*shape[:-1], 1)),
        "ascending": lambda: np.arange(np.prod(shape)).reshape(shape),
        "one outlier": lambda: np.where(np.arange(shape[-1]) == shape[-1] // 3, 1e9, normal),
    }
    return values[kind]().astype(dtype)


KINDS = [
    "normal", "ties", "integers", "mostly zeros", "zeros", "equals", "two values", "tiny", "of every scale",
    "rows of every scale", "ascending", "one outlier",
]  # fmt: skip
LARGE = [(8191,), (8192,), (8193,), (65535, 3), (65537,), (9000, 20, 8500)]


def by_sorting(gradients, sizes, percentile):
    """Keep what is strictly above the order statistic of the percentile, which is an exact fraction."""
    kept, ends = gradients.copy(), np.cumsum(sizes)
    for size, end in zip(sizes, ends):
        block = kept[..., end - size : end]
        rank = int((size - 1) * (100 - Fraction(str(percentile))) / 100)
        threshold = np.sort(np.abs(block), -1)[..., rank, None]
        block[np.abs(block) <= threshold] = 0
    return kept


@pytest.mark.parametrize("sizes", LARGE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_blocks_equal_sorting(sizes, kind, dtype):
    gradients = of_kind(kind, (2, 2, sum(sizes)), dtype)
    for percentile in (0.01, 15, 50, 99.99):
        expected = by_sorting(gradients, sizes, percentile)
        np.testing.assert_array_equal(selected(gradients, sizes, percentile), expected, strict=True)


POSITIONS = {
    "the first": lambda size, device: torch.arange(_selection._SAMPLE),
    "the last": lambda size, device: torch.arange(size - _selection._SAMPLE, size),
    "one": lambda size, device: torch.full((_selection._SAMPLE,), size // 2),
    "two": lambda size, device: torch.arange(_selection._SAMPLE) % 2 * (size - 1),
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("kind", ["ascending", "normal", "ties", "two values", "mostly zeros", "one outlier"])
def test_a_sample_that_misleads_changes_nothing(positions, kind, monkeypatch):
    monkeypatch.setattr(_selection, "_positions", positions)
    gradients = of_kind(kind, (1, 2, 10_000), np.float32)
    for percentile in (0.01, 15, 50, 85, 99.99):
        expected = by_sorting(gradients, (10_000,), percentile)
        np.testing.assert_array_equal(selected(gradients, (10_000,), percentile), expected)


@pytest.mark.parametrize("kind", ["normal", "ties", "mostly zeros", "two values", "of every scale"])
@pytest.mark.parametrize("shape", [(256, 256), (255, 257), (300, 250), (3, 40_000)], ids=str)
def test_factors_give_the_same(kind, shape):
    n_out, n_in = shape
    deltas, inputs = (torch.tensor(of_kind(kind, size, np.float32, 1)) for size in ((2, 3, n_out), (2, n_in)))
    gradients = (deltas.unsqueeze(3) * inputs[:, None, None]).flatten(2)
    blocks = (Block("weight", shape, 0),)
    for percentile in (0.01, 15, 99):
        with_factors = select_largest(gradients.clone(), blocks, percentile, {"weight": (deltas, inputs)})
        assert torch.equal(with_factors, select_largest(gradients.clone(), blocks, percentile))
        np.testing.assert_array_equal(with_factors, by_sorting(gradients.numpy(), (n_out * n_in,), percentile))


@pytest.mark.parametrize("size", [50, 8192, 8193])
@pytest.mark.parametrize("place", [np.s_[:, :2], np.s_[:, 1:, 1:], np.s_[::2], np.s_[..., 1:-1], np.s_[:, :1]], ids=str)
def test_what_is_a_part_of_something_is_written_to_in_place(size, place):
    whole = torch.tensor(of_kind("normal", (4, 3, size + 2), np.float64))
    before = whole.clone()
    part = whole[place]
    expected = by_sorting(part.numpy(), (part.shape[-1],), 15)
    assert select_largest(part, blocks_of([part.shape[-1]]), 15) is part
    np.testing.assert_array_equal(whole[place], expected)
    whole[place] = before[place]
    assert torch.equal(whole, before)


@pytest.mark.parametrize("selection", _selection.SELECTIONS)
def test_selection_is_the_same_each_time(selection):
    gradients = torch.tensor(of_kind("normal", (2, 2, 20_000), np.float32))
    with random_state_untouched():
        first, second = (
            select_largest(gradients.clone(), blocks_of([15_000, 5000]), 15, selection=selection) for _ in range(2)
        )
    assert torch.equal(first, second)


@pytest.mark.parametrize("sizes", [(4096,), (1, 4096, 300), (40,)], ids=str)
@pytest.mark.parametrize("percentile", [0.5, 15, 99.9])
def test_a_sample_of_small_blocks_is_all_of_them(sizes, percentile):
    gradients = of_kind("ties", (2, 3, sum(sizes)), np.float32)
    found = select_largest(torch.tensor(gradients), blocks_of(sizes), percentile, selection="sampled")
    np.testing.assert_array_equal(found, by_sorting(gradients, sizes, percentile))


@pytest.mark.parametrize("kind", ["normal", "ties", "mostly zeros", "of every scale", "zeros"])
@pytest.mark.parametrize("percentile", [0.5, 15, 99])
def test_sampled_selection_is_above_the_percentile_of_a_sample(kind, percentile):
    size = 50_000
    gradients = of_kind(kind, (2, 2, size), np.float32)
    found = select_largest(torch.tensor(gradients), blocks_of([size]), percentile, selection="sampled").numpy()
    sample = np.abs(gradients[..., _selection._positions(size, torch.device("cpu"))])
    rank = int((sample.shape[-1] - 1) * (100 - Fraction(str(percentile))) / 100)
    threshold = np.sort(sample, -1)[..., rank, None]
    np.testing.assert_array_equal(found, np.where(np.abs(gradients) > threshold, gradients, 0))


def test_a_sample_is_of_distant_positions():
    for size in (4097, 10_000, 10**6):
        positions = _selection._positions(size, torch.device("cpu"))
        assert len(positions) == 4096 and positions.min() >= 0 and positions.max() < size
        assert len(positions.unique()) > 4096 * 0.6
        counts = torch.histc(positions.double(), 8, 0, size)
        assert counts.min() > 0.8 * counts.mean()
