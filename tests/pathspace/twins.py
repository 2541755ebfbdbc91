"""Rescaled twins of the nets in the cases."""

import pytest
import torch

from sklearn_gradspace.pathspace import rescale, scale_graph


def random_factors(graph, size=1.0, seed=0):
    """Return factors 10^U(-size, size), one a unit."""
    generator = torch.Generator().manual_seed(seed)
    return 10 ** (size * (2 * torch.rand(graph.n_units, generator=generator, dtype=torch.float64) - 1))


def powers_of_two(graph, largest=10, seed=0):
    """Return factors 2^k with whole numbers k from -`largest` to `largest`."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 ** torch.randint(-largest, largest + 1, (graph.n_units,), generator=generator).double()


def twin(net, seed=0, factors=random_factors, approximate=False):
    """Rescale `net` in place, but for what a batch norm with eps normalises, and return it."""
    graph = scale_graph(net)
    found = factors(graph, seed=seed)
    return rescale(net, found if approximate else torch.where(graph.approximate, 1, found), graph)


def with_modes(cases):
    """Return parameters (case, training) for pytest: both modes of a net with batch norms."""
    return [
        pytest.param(case, training, id=f"{case.name}{' in training' if training else ''}")
        for case in cases
        for training in ((False, True) if case.has_batch_norm(case.net()) else (False,))
    ]
