"""GradNet as a module, against its formula."""

import pytest
import torch
from asserts import assert_close

from sklearn_gradspace.modules import MLP, GradNet, GradNetCNN


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", torch.relu), ("square", lambda z: z**2), ("tanh", torch.tanh), ("identity", lambda z: z)],
)
def test_it_is_a_linear_layer_on_activated_groups(activation, function):
    net = GradNet([[slice(0, 4)], [slice(2, 4), slice(6, 9)]], 3, [5, 2], activation).double()
    features = torch.randn(7, 9, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    first, second = net.hidden
    hidden = [
        features[:, :4] @ first.weight.T + first.bias,
        features[:, [2, 3, 6, 7, 8]] @ second.weight.T + second.bias,
    ]
    expected = function(torch.cat(hidden, 1)) @ net.output.weight.T + net.output.bias
    assert_close(net(features), expected)


def test_a_zero_output_layer_returns_zeros_and_learns():
    net = GradNet([[slice(0, 4)]], 3, [5], zero_output=True)
    outputs = net(torch.randn(7, 4))
    assert (outputs == 0).all()
    outputs[:, 0].sum().backward()
    assert net.output.weight.grad[0].any()


def test_sizes_of_the_authors_net():
    net = GradNetCNN()
    assert sum(p.numel() for name, p in net.named_parameters() if name.endswith("weight")) == 130240
    assert net(torch.zeros(2, 3, 24, 24)).shape == (2, 10)


def test_mlp_flattens():
    assert MLP(12, 3)(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
