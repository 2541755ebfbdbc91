"""Whether two nets are rescaled twins."""

import copy

import pytest
import torch
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import mlp
from pathspace.twins import twin
from torch import nn

from sklearn_gradspace.pathspace import equivalent, rescale

some_cases = pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)


@some_cases
def test_twins_are_and_others_are_not(case):
    net, other = case.net(), twin(case)
    before = copy.deepcopy(other.state_dict())
    assert equivalent(net, other, rtol=1e-11) is True
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    largest = max(other.parameters(), key=lambda p: p.numel()).data.view(-1)
    largest[largest.abs().argmax()] *= 1.001
    assert equivalent(net, other) is False
    assert equivalent(other, net, rtol=0.1) is True


def test_the_sign_counts():
    net = mlp(3, 4, 2).double()
    other = copy.deepcopy(net)
    other[0].weight.data[1] *= -1
    other[0].bias.data[1] *= -1
    other[2].weight.data[:, 1] *= -1
    assert not equivalent(net, other)


def test_in_single_precision(device):
    case = BY_NAME["residual with batch norm"]
    assert equivalent(case.net(torch.float32).to(device), twin(case, net=case.net(torch.float32)))


def test_dead_units():
    net = mlp(3, 4, 2).double()
    net[0].weight.data[1], net[0].bias.data[1] = 0, 0
    net[2].weight.data[:, 2] = 0
    assert equivalent(net, rescale(copy.deepcopy(net), [1, 2, 3, 4]))


@pytest.mark.parametrize("other", [mlp(3, 5, 2), mlp(3, 4, 4, 2), mlp(3, 4, 2, bias=False)])
def test_another_architecture_is_an_error(other):
    with pytest.raises(ValueError, match=r"^module_a and module_b differ: the parameter '\d\.(weight|bias)' is"):
        equivalent(mlp(3, 4, 2), other)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.LeakyReLU, nn.Identity])
def test_the_same_weights_in_another_function_are_no_twin(activation):
    net = mlp(3, 4, 2)
    other = mlp(3, 4, 2, activation=activation)
    other.load_state_dict(net.state_dict())
    try:
        assert not equivalent(net, other) and not equivalent(other, net)
    except ValueError as refused:
        assert "differ" in str(refused)


def test_running_statistics_count():
    """In evaluation mode they are part of the function."""
    net = BY_NAME["batch norm"].net().eval()
    other = copy.deepcopy(net)
    other[1].running_mean += 1
    assert not equivalent(net, other)
