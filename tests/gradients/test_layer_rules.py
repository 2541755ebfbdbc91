"""The closed forms of single layers, over a grid of their options, equal autograd."""

from itertools import product

import numpy as np
import pytest
import torch
from asserts import assert_close
from torch import nn

from sklearn_gradspace.gradients import _layer_rules

N, K = 3, 2


def normal(*shape):
    return torch.tensor(np.random.default_rng(1).normal(size=shape))


def assert_equals_autograd(layer, inputs):
    """Assert that closed form and transform of `layer` are the products of its Jacobians with random cotangents."""
    layer = layer.double()
    output = layer(inputs)
    cotangents = normal(N, K, *output.shape[1:])
    names = [name for name, _ in layer.named_parameters()]
    by_transform = _layer_rules.transform(layer, names, inputs, cotangents)
    for name in names:
        truth = torch.stack(
            [
                torch.stack(
                    [torch.autograd.grad(layer(inputs[i : i + 1])[0], layer.get_parameter(name), c)[0] for c in of]
                )
                for i, of in enumerate(cotangents)
            ]
        )
        assert_close(by_transform[name], truth)
        rule = _layer_rules.exact_rule(layer)
        if rule is not None:
            assert_close(rule(layer, name, inputs, cotangents).detach(), truth)


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


@pytest.mark.parametrize("window_bytes", [1, 1500, 2**30])
def test_windows_in_chunks(window_bytes, monkeypatch):
    monkeypatch.setattr(_layer_rules, "_WINDOW_BYTES", window_bytes)
    assert_equals_autograd(nn.Conv2d(4, 6, 3, groups=2), normal(N, 4, 5, 4))


def test_channels_last():
    inputs = normal(N, 4, 5, 4).to(memory_format=torch.channels_last)
    assert_equals_autograd(nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), inputs)


@pytest.mark.parametrize("layer", [nn.LayerNorm((3, 4)), nn.GroupNorm(1, 3), nn.BatchNorm1d(3).eval(), nn.Linear(4, 2)])
def test_transform_takes_any_layer(layer):
    assert_equals_autograd(layer, normal(N, 3, 4))


def test_closed_forms_are_for_forwards_that_are_known():
    class Same(nn.Linear):
        pass

    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x.relu())

    assert _layer_rules.exact_rule(Same(2, 2)) is _layer_rules.linear
    assert _layer_rules.exact_rule(Own(2, 2)) is None
    assert _layer_rules.exact_rule(nn.ConvTranspose2d(2, 2, 1)) is None
