"""Rescaling the units of a net, in place."""

import numpy as np
import torch
from torch import Tensor, nn

from ._graph import ScaleGraph, graph_of


def rescale(module: nn.Module, factors, graph: ScaleGraph | None = None) -> nn.Module:
    """Multiply what writes a unit by its factor, and divide what reads it, in place; the function stays the same.

    Parameters
    ----------
    module : Module
        The net. Running statistics of batch norms follow.
    factors : array-like of shape (n_units,)
        Positive factors, one a unit of the scale graph.
    graph : ScaleGraph, optional
        The net's scale graph, if it is at hand.

    Returns
    -------
    module : Module
        The net itself.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import rescale
    >>> net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double(), torch.ones(1, 2).double()
    >>> before = net(x)
    >>> bool(torch.isclose(rescale(net, [0.1, 2, 30])(x), before))
    True
    """
    graph = graph_of(module, graph)
    # A list of Python numbers is not rounded to single precision.
    if not isinstance(factors, Tensor):
        try:
            factors = torch.from_numpy(np.array(factors, dtype=float))
        except (TypeError, ValueError) as error:
            raise ValueError(f"factors must be {graph.n_units} real numbers, one a unit: {error}.") from error
    factors = factors.detach().to("cpu", torch.float64)
    if factors.shape != (graph.n_units,):
        raise ValueError(f"factors must have the shape ({graph.n_units},), one a unit; got {tuple(factors.shape)}.")
    bad = (~(torch.isfinite(factors) & (factors > 0))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"factors must be positive and finite; that of unit {graph.unit_names[bad[0]]!r} is {factors[bad[0]]:.3g}."
        )
    apply_scales(graph, torch.cat([torch.ones(1, dtype=torch.float64), factors]))
    return module


@torch.no_grad()
def apply_scales(graph: ScaleGraph, scales: Tensor) -> None:
    """Rescale the graph's module in place by `scales` of shape (n_units + 1,), the first of which is the root's 1."""
    parameters = dict(graph.module.named_parameters())
    for name, edges in graph.edges.items():
        parameters[name].copy_(
            parameters[name].double() * (scales[edges.write] / scales[edges.read]).to(parameters[name].device)
        )
    buffers = dict(graph.module.named_buffers())
    for name, (ids, power) in graph.statistics.items():
        buffers[name].mul_((scales[ids] ** power).to(buffers[name]))
