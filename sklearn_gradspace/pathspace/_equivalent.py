"""Whether two nets are rescaled twins."""

import torch
from torch import nn

from ._balance import canonical_scales
from ._graph import graph_of, scale_graph


@torch.no_grad()
def equivalent(module_a: nn.Module, module_b: nn.Module, rtol: float = 1e-5) -> bool:
    """Return whether two nets of one architecture are rescaled twins of each other.

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
    graph_a = scale_graph(module_a)
    graph_b = graph_of(module_b, graph_a)
    scales_a, scales_b = canonical_scales(graph_a), canonical_scales(graph_b)
    parameters_a, parameters_b = (dict(graph.module.named_parameters()) for graph in (graph_a, graph_b))
    for name, edges in graph_a.edges.items():
        a, b = (
            parameters[name].double().cpu() * (scales[edges.write] / scales[edges.read])
            for parameters, scales in ((parameters_a, scales_a), (parameters_b, scales_b))
        )
        if not torch.allclose(a, b, rtol=0, atol=rtol * float(a.abs().max()) if a.numel() else 0):
            return False
    return True
