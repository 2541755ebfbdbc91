"""Rescaling the units of a net, in place."""

import numpy as np
import torch
from torch import Tensor, nn

from ..gradients._user import warn_user
from ._domain import Edges
from ._graph import ScaleGraph, graph_of

_SMALL = 0.1  # of factors in front of a batch norm


def rescale(module: nn.Module, factors, graph: ScaleGraph | None = None) -> nn.Module:
    """Multiply what writes a unit by its factor, and divide what reads it, in place; the function stays the same.

    Where a batch norm normalises a unit, it stays the same but for the batch norm's `eps`: a small factor makes that
    count.

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
    small = [name for name, near, f in zip(graph.unit_names, graph.approximate, factors) if near and f < _SMALL]
    if small:
        warn_user(
            f"factors below {_SMALL} of {len(small)} units in front of a batch norm, such as {small[0]!r}, change what "
            "the net computes, since its eps does not scale; factors of 1 leave the units `graph.approximate` alone."
        )
    scales, parameters = torch.cat([torch.ones(1, dtype=torch.float64), factors]), dict(graph.module.named_parameters())
    for name, edges in graph.edges.items():
        if parameters[name].isfinite().all() and not _rescaled(parameters[name], edges, scales).isfinite().all():
            raise ValueError(f"factors would make entries of {name!r} larger than {parameters[name].dtype} can hold.")
    apply_scales(graph, scales)
    return module


@torch.no_grad()
def _rescaled(parameter: Tensor, edges: Edges, scales: Tensor) -> Tensor:
    ratio = scales[edges.write] / scales[edges.read]
    return (parameter.double() * ratio.to(parameter.device)).to(parameter.dtype)


@torch.no_grad()
def apply_scales(graph: ScaleGraph, scales: Tensor) -> None:
    """Rescale the graph's module in place by `scales` of shape (n_units + 1,), the first of which is the root's 1."""
    parameters = dict(graph.module.named_parameters())
    for name, edges in graph.edges.items():
        parameters[name].copy_(_rescaled(parameters[name], edges, scales))
    buffers = dict(graph.module.named_buffers())
    for name, (ids, power) in graph.statistics.items():
        buffers[name].mul_((scales[ids] ** power).to(buffers[name]))
