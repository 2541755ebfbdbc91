"""Whatever a net is made of, what the scale graph calls free is free."""

import copy

import pytest
import torch
from asserts import assert_close
from pathspace.random_nets import random_net
from pathspace.random_tokens import random_tokens
from pathspace.twins import random_factors

from sklearn_gradspace.pathspace import balance, rescale, scale_graph

SEEDS = range(40)
X = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", SEEDS)
def test_rescaled_twins_compute_the_same_and_balance_to_the_same(seed):
    net = random_net(seed)
    graph = scale_graph(net)
    for training in (False, True):
        net.train(training)
        one, other = copy.deepcopy(net), copy.deepcopy(net)
        expected = copy.deepcopy(net)(X)
        assert_close(rescale(other, random_factors(graph), graph)(X), expected, 1e-9)
        balance(one, graph)
        balance(other, graph)
        assert_close(one(X), expected, 1e-9)
        for mine, others in zip(one.parameters(), other.parameters()):
            assert_close(mine, others, 1e-10)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 4), (4, 4), (5, 4)], ids=str)
def test_rescaled_twins_compute_the_same_on_rows_and_on_sequences(shape):
    """A graph is not told which of them the inputs are."""
    X = torch.randn(6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n_free = 0
    for seed in range(60):
        net = random_tokens(seed, shape)
        graph, expected = scale_graph(net), copy.deepcopy(net)(X)
        n_free += graph.n_units > 0
        assert_close(rescale(net, random_factors(graph), graph)(X), expected, 1e-9)
    assert n_free > 15


def test_there_is_something_to_rescale():
    graphs = [scale_graph(random_net(seed)) for seed in SEEDS]
    assert sum(graph.n_units > 0 for graph in graphs) > 0.6 * len(graphs)
    assert sum(bool(graph.pinned) for graph in graphs) > 0.3 * len(graphs)
