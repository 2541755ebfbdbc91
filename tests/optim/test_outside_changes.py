"""Weights that something else changes between steps, and weights that something else than their layer uses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from asserts import assert_close
from pathspace.nets import mlp
from torch import nn

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, scale_graph


@pytest.mark.parametrize("by_data", [False, True])
@pytest.mark.parametrize("units", ["q", "raw"])
def test_weights_that_are_loaded_between_steps_stay(units, by_data):
    torch.manual_seed(0)
    net, X, y = mlp(6, 12, 12, 3).double(), torch.randn(50, 6).double(), torch.randint(0, 3, (50,))
    optimizer = ECOptimizer(net, lr=0.05, momentum=0.9, units=units)

    def train(n_steps):
        for _ in range(n_steps):
            optimizer.zero_grad()
            F.cross_entropy(net(X), y).backward()
            optimizer.step()

    train(5)
    earlier = copy.deepcopy(net.state_dict())
    train(40)
    if by_data:  # as nn.utils.vector_to_parameters does
        for name, parameter in net.named_parameters():
            parameter.data = earlier[name]
    else:
        net.load_state_dict(earlier)
    outputs = net(X)
    optimizer.param_groups[0].update(lr=0.0, momentum=0.0)
    train(1)
    assert_close(net(X), outputs, 1e-12)


class Tied(nn.Module):
    """It uses a layer's weight once more, outside of the layer."""

    def __init__(self):
        super().__init__()
        self.encoder, self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.hidden(F.relu(self.encoder(x))))
        return self.head(F.linear(x, self.hidden.weight.t()))


class Rows(nn.Module):
    """It takes positions for samples."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.convolution(x).relu().view(-1, 4))


@pytest.mark.parametrize(("make", "shape"), [(Tied, (6,)), (Rows, (2, 5, 5))])
def test_what_cannot_be_told_is_pinned(make, shape):
    torch.manual_seed(0)
    net, X = make().double(), torch.randn(3, *shape).double()
    outputs = net(X)
    assert scale_graph(net).pinned
    assert_close(balance(net)(X), outputs, 1e-12)


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor"])
def test_optimizers_that_do_not_move_weights_by_entry_are_refused(name):
    with pytest.raises(ValueError, match="entry by entry"):
        ECOptimizer(mlp(4, 5, 3), getattr(torch.optim, name))


def test_an_optimizer_is_a_class():
    with pytest.raises(TypeError, match="class of optimizers"):
        ECOptimizer(mlp(4, 5, 3), "sgd")
