"""The start of the authors of EC-Opt: a net whose skeleton weights are 1, near to an identity."""

import torch

from ..pathspace import ScaleGraph
from ..pathspace._skeleton import find_skeleton


@torch.no_grad()
def set_skeleton_to_one(graph: ScaleGraph) -> None:
    """Set to 1, of each weight that reads or writes a unit, the diagonal: indices are modulo the narrower side.

    Parameters
    ----------
    graph : ScaleGraph
        Its module is changed in place. Of a convolution the central taps are set.
    """
    for name, edges in graph.edges.items():
        parameter = graph.module.get_parameter(name)
        if parameter.ndim < 2 or not (edges.write.any() or edges.read.any()):
            continue
        n_first, n_second, *taps = parameter.shape
        i = torch.arange(max(n_first, n_second), device=parameter.device)
        parameter[(i % n_first, i % n_second, *(n // 2 for n in taps))] = 1


def is_deep_and_plain(graph: ScaleGraph) -> bool:
    """Return whether some unit is more than six layers behind an input, a batch norm or a shortcut."""
    return len(find_skeleton(graph, dict(graph.module.named_parameters())).order_in) > 6
