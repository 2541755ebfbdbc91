"""Rescaled twins of the nets in the cases."""

from functools import cache

import pytest
import torch

from sklearn_gradspace.pathspace import balance, rescale, scale_graph


def random_factors(graph, size=1.0, seed=0):
    """Return factors 10^U(-size, size), one a unit."""
    generator = torch.Generator().manual_seed(seed)
    return 10 ** (size * (2 * torch.rand(graph.n_units, generator=generator, dtype=torch.float64) - 1))


def powers_of_two(graph, largest=10, seed=0):
    """Return factors 2^k with whole numbers k from -`largest` to `largest`."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 ** torch.randint(-largest, largest + 1, (graph.n_units,), generator=generator).double()


@cache
def graph_of(case):
    """Return the scale graph of a case, of a net of its own."""
    return scale_graph(case.net())


def twin(case, seed=0, factors=random_factors, net=None):
    """Return a new net of a case, or `net`, rescaled in place, but for what a batch norm with eps normalises."""
    graph, net = graph_of(case), case.net() if net is None else net
    return rescale(net, torch.where(graph.approximate, 1, factors(graph, seed=seed)), graph)


def balanced(case, net=None):
    """Return the canonical twin of a new net of a case, or of `net`, which is changed in place."""
    return balance(case.net() if net is None else net, graph_of(case))


def with_modes(cases):
    """Return parameters (case, training) for pytest: both modes of a net with batch norms."""
    return [
        pytest.param(case, training, id=f"{case.name}{' in training' if training else ''}")
        for case in cases
        for training in ((False, True) if case.has_batch_norm(case.net()) else (False,))
    ]
