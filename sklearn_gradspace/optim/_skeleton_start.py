"""Starts at skeleton weights of 1: the one of the authors of EC-Opt, and one nearer to the identity."""

import torch

from ..pathspace import ScaleGraph
from ..pathspace._skeleton import find_skeleton

_DEEP = 6  # layers, from which a plain net does not train from its usual start


@torch.no_grad()
def set_skeleton_to_one(graph: ScaleGraph, others: float = 1.0) -> None:
    """Set to 1, of each weight that reads or writes a unit, the diagonal: indices are modulo the narrower side.

    Parameters
    ----------
    graph : ScaleGraph
        Its module is changed in place. Of a convolution the central taps are set.
    others : float, default=1
        Factor of all other weights; biases are set to 0 if it is not 1.
    """
    for name, edges in graph.edges.items():
        parameter = graph.module.get_parameter(name)
        if not (edges.write.any() or edges.read.any()):
            continue
        if others != 1 and (parameter.ndim > 1 or edges.constant):  # the weights of a batch norm stay
            parameter.mul_(0 if edges.constant else others)
        if parameter.ndim > 1:
            n_first, n_second, *taps = parameter.shape
            i = torch.arange(max(n_first, n_second), device=parameter.device)
            parameter[(i % n_first, i % n_second, *(n // 2 for n in taps))] = 1  # type: ignore[index]


def set_near_identity(graph: ScaleGraph) -> None:
    """Set skeleton weights to 1, biases to 0, and divide all other weights by the number of layers."""
    set_skeleton_to_one(graph, 1 / _n_layers(graph))


def is_deep_and_plain(graph: ScaleGraph) -> bool:
    """Return whether some unit is more than six layers behind an input, a batch norm or a shortcut."""
    return _n_layers(graph) > _DEEP + 1


def _n_layers(graph: ScaleGraph) -> int:
    return len(find_skeleton(graph, dict(graph.module.named_parameters())).order_in) + 1
