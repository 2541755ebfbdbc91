"""Tracing changes neither the net nor anything that it holds."""

import pytest
import torch
from asserts import random_state_untouched, untouched
from pathspace.nets import Net
from torch import nn

from sklearn_gradspace.pathspace import equivalent, path_norm, scale_graph
from sklearn_gradspace.pathspace._record import lines_of
from sklearn_gradspace.pathspace._trace import trace


def with_constants(function=lambda net, x: x):
    def forward(net, x):
        x = (x - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([1.0, 2.0, 3.0])
        return net.inner(function(net, net.first(x).relu()))

    inner = Net(lambda net, x: net.head(x) * torch.tensor([1.0, 2.0]), head=nn.Linear(4, 2))
    return Net(forward, first=nn.Linear(3, 4), inner=inner)


def counting(net, x):
    net.calls += 1
    net.steps += 1
    return x


def keeping(net, x):
    net.hidden = net.inner.last = x
    return x


def branching(net, x):
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize("function", [lambda net, x: x, counting, keeping, branching])
@pytest.mark.parametrize("work", [scale_graph, path_norm])
def test_nothing_is_left_on_the_net(function, work):
    net = with_constants(function)
    net.calls = 0
    net.register_buffer("steps", torch.zeros(()))
    held = dict(vars(net))
    with untouched(net):
        try:
            work(net)
        except ValueError as refused:
            assert function is branching or work is path_norm, refused
    assert vars(net) == held


def test_the_names_of_operations_do_not_depend_on_earlier_traces():
    net = with_constants()
    first, second = (lines_of(net, trace(net)[0]) for _ in range(2))
    assert first == second and len(first) == len(set(first))
    torch.fx.symbolic_trace(net)
    assert lines_of(net, trace(net)[0]) == first


def test_a_constant_in_a_submodule_that_cannot_be_traced():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), with_constants(branching), nn.Linear(2, 2))
    net[2].first = nn.Linear(3, 4)
    with untouched(net):
        graph = scale_graph(net)
    assert graph.pinned[0].layer == "2"


def test_constants_that_are_drawn():
    """They leave the generator as it was, and are the same in each trace."""
    net = Net(lambda net, x: net.head(x + torch.randn(3)), head=nn.Linear(3, 2))
    with random_state_untouched():
        assert equivalent(net, net)
