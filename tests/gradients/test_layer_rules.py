"""The closed forms of single layers, over a grid of their options, equal autograd and write to their place alone."""

from itertools import product

import numpy as np
import pytest
import torch
from asserts import assert_close
from nets import ScaledLinear
from torch import nn

from sklearn_gradspace.gradients import _layer_rules
from sklearn_gradspace.gradients._forward import LayerCall
from sklearn_gradspace.gradients._scratch import Scratch

N = 3


def normal(*shape):
    return torch.tensor(np.random.default_rng(1).normal(size=shape))


def written(layer, name, inputs, deltas):
    """Return what the closed form of `layer` writes into a slice of a larger buffer, as the engine's places are."""
    shape = layer.get_parameter(name).shape
    buffer = torch.full((*deltas.shape[:2], shape.numel() + 3), torch.nan, dtype=deltas.dtype)
    place = buffer[..., 1:-2].unflatten(2, shape)
    with torch.no_grad():
        _layer_rules.exact_rule(layer)(layer, name, inputs, deltas, place, Scratch())
    assert buffer[..., [0, -2, -1]].isnan().all()
    return place


def assert_equals_autograd(layer, inputs, k=None):
    """Assert that closed form and transform of `layer` are the products of its Jacobians with random cotangents."""
    if k is None:
        assert_equals_autograd(layer, inputs, 1)
        assert_equals_autograd(layer, inputs, 2)
        return
    layer = layer.double()
    deltas = normal(N, k, *layer(inputs).shape[1:])
    names, call = [name for name, _ in layer.named_parameters()], LayerCall((inputs,), (), (True,), (0,), (deltas,))
    by_transform = {name: torch.empty(N, k, *layer.get_parameter(name).shape).double() for name in names}
    _layer_rules.transform(layer, call, by_transform, at_once=1 if k == 1 else 3)  # pairs of the N k
    for name in names:
        parameter = layer.get_parameter(name)
        truth = torch.stack(
            [
                torch.stack([torch.autograd.grad(layer(inputs[i : i + 1])[0], parameter, delta)[0] for delta in of_row])
                for i, of_row in enumerate(deltas)
            ]
        )
        assert_close(by_transform[name], truth)
        if _layer_rules.exact_rule(layer):
            assert_close(written(layer, name, inputs, deltas), truth)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [(), (1,), (4,), (2, 3)], ids=str)
def test_linear(axes, bias):
    assert_equals_autograd(nn.Linear(5, 4, bias=bias), normal(N, *axes, 5))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride, padding, dilation, groups", [*product([1, 2], [0, 1], [1, 2], [1, 2])])
def test_convolution(rank, stride, padding, dilation, groups):
    layer = getattr(nn, f"Conv{rank}d")(4, 6, 3, stride, padding, dilation, groups)
    assert_equals_autograd(layer, normal(N, 4, *(7, 6, 5)[:rank]))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same", "valid"], ids=str)
def test_padding(mode, padding):
    layer = nn.Conv2d(2, 3, 3, padding=padding, dilation=(1, 2), padding_mode=mode)
    assert_equals_autograd(layer, normal(N, 2, 7, 6))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's note on its speed
@pytest.mark.parametrize("kernel_size", [2, 4, (4, 3)], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_same_padding_that_is_longer_on_one_side(mode, kernel_size):
    assert_equals_autograd(nn.Conv2d(2, 3, kernel_size, padding="same", padding_mode=mode), normal(N, 2, 7, 6))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride, padding, dilation, groups", [*product([1, 2], [0, 1], [1, 2], [1, 2])])
def test_transposed_convolution(rank, stride, padding, dilation, groups):
    kind, longer = getattr(nn, f"ConvTranspose{rank}d"), max(stride, dilation) - 1
    layer = kind(4, 6, 3, stride, padding, longer, groups, True, dilation)
    assert_equals_autograd(layer, normal(N, 4, *(4, 3, 2)[:rank]))


@pytest.mark.parametrize("layer, shape", [
    (nn.BatchNorm1d(4), (4,)), (nn.BatchNorm1d(4), (4, 5)), (nn.BatchNorm2d(4, eps=0.1), (4, 3, 2)),
    (nn.BatchNorm3d(4), (4, 3, 2, 2)), (nn.InstanceNorm1d(4, affine=True), (4, 5)),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 2)),
    (nn.InstanceNorm3d(4, affine=True), (4, 3, 2, 2)), (nn.LayerNorm(4), (4,)), (nn.LayerNorm(4), (3, 4)),
    (nn.LayerNorm((3, 4), bias=False), (2, 3, 4)), (nn.RMSNorm(4), (4,)), (nn.RMSNorm((3, 4), 0.1), (2, 3, 4)),
    (nn.GroupNorm(2, 4), (4,)), (nn.GroupNorm(4, 4), (4, 3, 2)), (nn.GroupNorm(1, 4, eps=0.1), (4, 5)),
], ids=str)  # fmt: skip
def test_normalisation(layer, shape):
    for name, buffer in layer.named_buffers():
        if name.startswith("running"):
            buffer.uniform_(0.5, 2)
    assert_equals_autograd(layer.eval(), normal(N, *shape))


@pytest.mark.parametrize("axes", [(), (1,), (6,), (2, 4)], ids=str)
@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_embedding(axes, padding_idx):
    inputs = torch.tensor(np.random.default_rng(0).integers(4, size=(N, *axes)))  # six indices below 4 repeat one
    assert_equals_autograd(nn.Embedding(4, 2, padding_idx), inputs)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(4).eval()])
def test_channels_last(layer):
    layer = layer.double().to(memory_format=torch.channels_last)
    inputs = normal(N, 4, 5, 4).to(memory_format=torch.channels_last)
    deltas = normal(N, 2, *layer(inputs).movedim(1, -1).shape[1:]).movedim(-1, 2)
    for name, _ in layer.named_parameters():
        expected = written(layer, name, inputs.contiguous(), deltas.contiguous())
        assert_close(written(layer, name, inputs, deltas), expected, 1e-14)


class Squared(nn.Bilinear):
    def forward(self, x):
        return super().forward(x, x)


@pytest.mark.parametrize("layer", [Squared(4, 4, 2), ScaledLinear(4, 2)], ids=str)
def test_transform_takes_any_layer(layer):
    assert_equals_autograd(layer, normal(N, 3, 4))


KNOWN = {
    nn.Linear: (2, 2), nn.Conv1d: (2, 2, 1), nn.Conv3d: (2, 2, 1), nn.ConvTranspose2d: (2, 2, 1), nn.BatchNorm3d: (2,),
    nn.InstanceNorm2d: (2,), nn.LayerNorm: (2,), nn.RMSNorm: (2,), nn.GroupNorm: (1, 2),
    nn.Embedding: (2, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind, options", KNOWN.items(), ids=lambda of: getattr(of, "__name__", ""))
def test_closed_forms_are_for_forwards_that_are_known(kind, options):
    class Same(kind):
        pass

    class Own(kind):
        def forward(self, x):
            return super().forward(x.relu())

    assert _layer_rules.exact_rule(Same(*options)) is _layer_rules.exact_rule(kind(*options)) is not None
    assert _layer_rules.exact_rule(Own(*options)) is None
    assert _layer_rules.exact_rule(nn.Bilinear(2, 2, 2)) is None
