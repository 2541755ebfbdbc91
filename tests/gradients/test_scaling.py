"""Scaling equals its definition in NumPy, however the training rows come in batches."""

import numpy as np
import pytest
import reference
import torch

from sklearn_gradspace.gradients import SCALES, Block, ScaleStatistics

SIZES = (4, 1, 7)
BLOCKS = tuple(Block(f"{i}.weight", (size,), sum(SIZES[:i])) for i, size in enumerate(SIZES))
KINDS = [scale for scale in SCALES if scale is not None]


class Batch:
    """Gradients that are there already, in the place of a lazy array."""

    def __init__(self, gradients):
        self.gradients = torch.tensor(gradients)

    def parts(self):
        yield from self.gradients.clone().split(2)


def sparse_gradients(seed, n=9, dtype=np.float64):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n, 3, 12)) * rng.integers(0, 2, size=(n, 3, 12))
    gradients[..., 2] = 0  # a coordinate that is never selected
    gradients[..., 4] = 1.5  # a constant one, and a block by itself
    gradients[..., 5] = np.abs(gradients[..., 5]) + 1  # one that is always selected
    return gradients.astype(dtype)


def fitted(train, how, splits=()):
    statistics = ScaleStatistics(how, BLOCKS)
    for part in np.split(train, splits):
        statistics.merge(statistics.of(Batch(part)))
    return statistics.scaler(torch.tensor(train).dtype)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("seed", [0, 1], ids=["training rows", "new rows"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_equals_the_definition(how, seed, dtype, tolerance):
    train, new = sparse_gradients(0, dtype=dtype), sparse_gradients(seed, dtype=dtype)
    scaled = fitted(train, how)(torch.tensor(new)).numpy()
    assert scaled.dtype == dtype
    expected = reference.scale(train.astype(float), new.astype(float), how, SIZES)
    np.testing.assert_allclose(scaled, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("splits", [(1,), (3, 6), range(1, 9)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batches_do_not_show(how, splits, dtype):
    train = sparse_gradients(0, dtype=dtype)
    whole, parts = fitted(train, how), fitted(train, how, list(splits))
    np.testing.assert_allclose(parts.divisor, whole.divisor, rtol=1e-7 if dtype == np.float32 else 1e-15)
    if how == "minmax":
        assert torch.equal(parts.offset, whole.offset)


@pytest.mark.parametrize("how", KINDS)
def test_zeros_stay_zero_and_nothing_else_is_lost(how):
    train, new = sparse_gradients(0), sparse_gradients(1)
    scaled = fitted(train, how)(torch.tensor(new))
    assert (scaled[torch.tensor(new == 0)] == 0).all()
    if how != "minmax":
        assert torch.equal(scaled.sign(), torch.tensor(new).sign())


def test_ranges_of_the_training_rows():
    train = sparse_gradients(0)
    varying = [0, 1, 3, *range(6, 12)]
    minmax, maxabs = (fitted(train, how)(torch.tensor(train)).flatten(0, 1) for how in ("minmax", "maxabs"))
    assert torch.equal(minmax[:, varying].amax(0), torch.ones(len(varying), dtype=torch.float64))
    assert minmax.min() == 0
    assert torch.equal(maxabs[:, varying].abs().amax(0), torch.ones(len(varying), dtype=torch.float64))
    for how, blocks in (("rms", [slice(i, i + 1) for i in varying]), ("layer", [block.slice for block in BLOCKS])):
        scaled = fitted(train, how)(torch.tensor(train)).flatten(0, 1)
        for block in blocks:
            part = scaled[:, block]
            assert part[part != 0].square().mean() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_at_the_minimum_is_no_feature(dtype):
    train = sparse_gradients(0, dtype=dtype)
    scaler = fitted(train, "minmax")
    lowest = train.reshape(-1, 12).min(0)
    shaken = lowest * (1 + 4 * np.finfo(dtype).eps)
    assert not scaler(torch.tensor(shaken)).any()
    assert scaler(torch.tensor(lowest * dtype(1.01)))[[0, 1, 3]].all()


@pytest.mark.parametrize("how", KINDS)
def test_a_coordinate_without_a_range_divides_by_one(how):
    scaler = fitted(np.zeros((2, 3, 12)), how)
    assert torch.equal(scaler.divisor, torch.ones(12, dtype=torch.float64))
    new = sparse_gradients(1)
    np.testing.assert_array_equal(scaler(torch.tensor(new)), new)
