"""Three ways to the products of windows give the same, in parts of any size."""

import numpy as np
import pytest
import torch
from asserts import assert_close
from torch import nn

from sklearn_gradspace.gradients import _convolution
from sklearn_gradspace.gradients._convolution import padded, window_products
from sklearn_gradspace.gradients._scratch import Scratch

N = 3
LAYERS = {
    "conv1d": (nn.Conv1d(3, 5, 3, 2, padding=1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 5, (3, 2), padding=1), (3, 7, 6)),
    "conv2d strided": (nn.Conv2d(3, 5, 3, (2, 3)), (3, 8, 8)),  # the last positions are of no window
    "conv2d dilated": (nn.Conv2d(3, 5, 2, dilation=(2, 1)), (3, 5, 5)),
    "conv2d few positions": (nn.Conv2d(3, 5, 2), (3, 3, 3)),
    "conv2d groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 4)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 5, 4)),
    "conv3d strided": (nn.Conv3d(3, 5, 2, stride=3, dilation=(1, 2, 1)), (3, 7, 7, 6)),
    "conv3d": (nn.Conv3d(3, 5, 2, stride=(1, 2, 1)), (3, 3, 4, 3)),
}
each = pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS)


def normal(*shape):
    return torch.tensor(np.random.default_rng(1).normal(size=shape))


def products(layer, inputs, points):
    """Return what is written into a slice of a larger buffer."""
    shape = layer.weight.shape
    buffer = torch.full((*points.shape[:2], shape.numel() + 2), torch.nan, dtype=points.dtype)
    place = buffer[..., 1:-1].unflatten(2, shape)
    window_products(layer, padded(layer, inputs), points, place, Scratch())
    assert buffer[..., [0, -1]].isnan().all()
    return place


def assert_equals_the_sum(layer, shape, k):
    """Assert that ``sum over q of points_q windows_q^T`` is the product with the Jacobian of the layer."""
    layer, inputs = layer.double(), normal(N, *shape)
    points = normal(N, k, *layer(inputs).shape[1:])
    truth = [
        [torch.autograd.grad(layer(row), layer.weight, point)[0] for point in of_row]
        for row, of_row in zip(inputs, points)
    ]
    assert_close(products(layer, inputs, points), torch.stack([torch.stack(of_row) for of_row in truth]))


@each
@pytest.mark.parametrize("k", [1, 2, 12])  # twelve times the channels are more than the positions
@pytest.mark.parametrize("window_bytes", [1, 1500, 2**30])
@pytest.mark.parametrize("threads", [1, 2])  # NumPy copies, or torch
def test_windows_in_parts(layer, shape, k, window_bytes, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_convolution, "_WINDOW_BYTES", window_bytes)
    monkeypatch.setattr(_convolution, "_suits_groups", lambda *args: False)
    assert_equals_the_sum(layer, shape, k)


@pytest.mark.parametrize("k", [1, 12])
@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_is_not_asked_for_numbers_that_it_lacks(k, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, inputs = nn.Conv2d(2, 3, 2), torch.randint(4, (N, 2, 4, 4)).bfloat16()
    points = torch.randint(4, (N, k, 3, 3, 3)).bfloat16()  # sums of small integers are exact
    assert torch.equal(products(layer, inputs, points), products(layer, inputs.double(), points.double()).bfloat16())


@each
def test_one_scalar_at_a_time(layer, shape, monkeypatch):
    monkeypatch.setattr(_convolution, "_STACKED_BYTES", 1)
    assert_equals_the_sum(layer, shape, 3)


@each
@pytest.mark.parametrize("k", [1, 2])
def test_one_group_for_each_sample(layer, shape, k, monkeypatch):
    monkeypatch.setattr(_convolution, "_suits_groups", lambda *args: True)
    assert_equals_the_sum(layer, shape, k)


@pytest.mark.parametrize("side", [15, 16, 17])
@pytest.mark.parametrize("channels", [1, 2, 8, 15, 16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2])
def test_at_the_sizes_where_the_way_changes(side, channels, stride, k):
    assert_equals_the_sum(nn.Conv2d(channels, 2, 2, stride), (channels, side + 1, side + 1), k)
    assert_equals_the_sum(nn.Conv2d(channels, 2 * channels, 2, stride, groups=channels), (channels, 8, 8), k)


@pytest.mark.parametrize("channels", [16, 17])
def test_at_the_number_of_channels_where_the_way_changes_with_depth(channels):
    assert_equals_the_sum(nn.Conv3d(channels, 2, 2, (1, 2, 3)), (channels, 4, 4, 5), 2)


@pytest.mark.parametrize("positions", [4, 5, 6])
def test_at_the_number_of_positions_where_the_order_changes(positions):
    assert_equals_the_sum(nn.Conv1d(3, 5, 2), (3, positions + 1), 1)


def test_padding_is_that_of_the_layer():
    inputs = normal(N, 2, 4, 3)
    for mode in ("zeros", "circular"):
        layer = nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode=mode).double()
        unpadded = nn.Conv2d(2, 3, 3).double()
        unpadded.load_state_dict(layer.state_dict())
        assert_close(unpadded(padded(layer, inputs)).detach(), layer(inputs).detach())
    assert padded(unpadded, inputs) is inputs
