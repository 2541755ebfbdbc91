"""Whether two nets are rescaled twins."""

import torch
from torch import Tensor, nn

from ._balance import canonical_scales
from ._graph import ScaleGraph, check_module, difference_of, graph_of, scale_graph
from ._trace import trace, unwrapped


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
    difference = difference_of(*(unwrapped(check_module(module)) for module in (module_a, module_b)))
    if difference:
        raise ValueError(f"module_a and module_b differ: the parameter {difference}.")
    graph_a = scale_graph(module_a)
    graph_b = graph_of(module_b, graph_a)
    if _operations(module_a) != _operations(module_b):
        return False
    scales_a, scales_b = canonical_scales(graph_a), canonical_scales(graph_b)
    twins = [_canonical(graph_a, scales_a), _canonical(graph_b, scales_b)]
    return all(
        torch.allclose(a, twins[1][name], rtol=0, atol=rtol * float(a.abs().max()) if a.numel() else 0)
        for name, a in twins[0].items()
    )


def _canonical(graph: ScaleGraph, scales: Tensor) -> dict[str, Tensor]:
    """Return all parameters and buffers of the canonical twin."""
    tensors = {name: tensor.double().cpu() for name, tensor in graph.module.state_dict().items()}
    factors = {name: scales[edges.write] / scales[edges.read] for name, edges in graph.edges.items()}
    factors |= {name: scales[ids] ** power for name, (ids, power) in graph.statistics.items()}
    return {
        name: tensor * factors.get(name, 1)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def _operations(module: nn.Module) -> list[tuple]:
    """Return what a net does, in a form that can be compared."""
    module = unwrapped(check_module(module))
    layers = dict(module.named_modules())
    return [
        (
            node.op,
            str(node.target),
            str(node.args),
            str(node.kwargs),
            str(layers[node.target]) if node.op == "call_module" else "",
        )
        for node in trace(module)[0].nodes
    ]
