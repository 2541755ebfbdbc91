"""Whether two nets are rescaled twins."""

from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor, nn

from .._parameter_checks import check_number
from ._balance import canonical_scales
from ._graph import ScaleGraph, check_module, difference_of, scale_graph
from ._record import constants_of, lines_of
from ._trace import trace, unwrapped


@torch.no_grad()
def equivalent(module_a: nn.Module, module_b: nn.Module, rtol: float = 1e-5) -> bool:
    """Return whether two nets of one architecture are rescaled twins of each other.

    Filters in front of a batch norm are compared as they are: for its `eps` rescaling them changes the function.

    Parameters
    ----------
    module_a, module_b : Module
        The nets.
    rtol : float, default=1e-5
        How much the canonical twins of the two may differ in each parameter, relative to its largest entry.

    Returns
    -------
    equivalent : bool
        Whether there are factors that turn one into the other.

    Raises
    ------
    ValueError
        If the two do not have the same parameters.

    Examples
    --------
    >>> import copy
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import equivalent, rescale
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> equivalent(net, rescale(copy.deepcopy(net), [0.1, 2, 30]))
    True
    """
    check_number(rtol, "rtol", min_val=0)
    module_a, module_b = (unwrapped(check_module(module)) for module in (module_a, module_b))
    difference = difference_of(module_a, module_b)
    if difference:
        raise ValueError(f"module_a and module_b differ: the parameter {difference}.")
    if not _compute_the_same(module_a, module_b):
        return False
    graph_a = scale_graph(module_a)
    graph_b = replace(graph_a, module=module_b)
    scales_a, scales_b = canonical_scales(graph_a), canonical_scales(graph_b)
    twins = [_canonical(graph_a, scales_a), _canonical(graph_b, scales_b)]
    if twins[0].keys() != twins[1].keys():  # of buffers
        return False
    return all(
        a.shape == twins[1][name].shape
        and torch.allclose(a, twins[1][name], rtol=0, atol=rtol * _largest(a), equal_nan=True)
        for name, a in twins[0].items()
    )


def _canonical(graph: ScaleGraph, scales: Tensor) -> dict[str, Tensor]:
    """Return all parameters and buffers of the canonical twin."""
    named = (*graph.module.named_parameters(), *graph.module.named_buffers())
    tensors = {name: tensor.double().cpu() for name, tensor in named}
    factors = {name: scales[edges.write] / scales[edges.read] for name, edges in graph.edges.items()}
    factors |= {name: scales[ids] ** power for name, (ids, power) in graph.statistics.items()}
    return {
        name: tensor * factors.get(name, 1)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def _largest(tensor: Tensor) -> float:
    """Return the largest finite size of an entry: a mask may be of infinities."""
    return float(tensor.nan_to_num(0, 0, 0).abs().max()) if tensor.numel() else 0.0


def _compute_the_same(module_a: nn.Module, module_b: nn.Module) -> bool:
    """Return whether two nets do the same with their parameters and buffers."""
    graph_a, graph_b = trace(module_a)[0], trace(module_b)[0]
    if lines_of(module_a, graph_a) != lines_of(module_b, graph_b):
        return False
    constants = zip_longest(constants_of(module_a, graph_a), constants_of(module_b, graph_b))
    return all(_is_same(a, b) for a, b in constants)


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    a, b = a.detach().cpu(), b.detach().cpu()
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN
