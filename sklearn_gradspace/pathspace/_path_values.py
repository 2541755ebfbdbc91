"""Values of paths, which no rescaling changes, and their norms."""

import numpy as np
import torch
from torch import Tensor, nn

from ._balance import canonical_scales
from ._graph import ScaleGraph, check_module, graph_of
from ._layers import Geometry
from ._operations import interpret
from ._skeleton import Skeleton, find_skeleton
from ._trace import unwrapped


def path_values(module: nn.Module, graph: ScaleGraph | None = None) -> dict[str, Tensor]:
    """Return for each weight the value of the basis path through it, the product of the weights along that path.

    Rescaled twins have the same path values. The path leads from an input over skeleton weights, through the weight,
    and over skeleton weights to an output; the skeleton is that of the canonical twin's largest weights.

    Parameters
    ----------
    module : Module
        The net.
    graph : ScaleGraph, optional
        The net's scale graph, if it is at hand.

    Returns
    -------
    values : dict of str to Tensor
        One of the parameter's shape for each parameter, in double precision. Those of weights that lead on in the
        skeleton depend on the others.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import path_values, rescale
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> before, after = path_values(net), path_values(rescale(net, [0.1, 2, 30]))
    >>> bool((before["0.weight"] - after["0.weight"]).abs().max() < 1e-6)
    True
    """
    return _canonical_path_values(graph_of(module, graph))[0]


def basis_path_norm(module: nn.Module, graph: ScaleGraph | None = None) -> float:
    """Return the root of the sum of squares of the basis path values, over the weights that do not depend on others.

    Parameters
    ----------
    module : Module
        The net.
    graph : ScaleGraph, optional
        The net's scale graph, if it is at hand.

    Returns
    -------
    norm : float
        The same for all rescaled twins.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import basis_path_norm, rescale
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> before, after = basis_path_norm(net), basis_path_norm(rescale(net, [0.1, 2, 30]))
    >>> abs(after / before - 1) < 1e-5
    True
    """
    graph = graph_of(module, graph)
    values, skeleton = _canonical_path_values(graph)
    total = torch.cat([value.flatten() for value in values.values()])
    total[held_entries(skeleton)] = 0
    return float(total.norm())


def held_entries(skeleton: Skeleton) -> np.ndarray:
    """Return the entries that are held while all others change, one a unit that is not dead."""
    entries = np.where(skeleton.ends, skeleton.entry_in, skeleton.entry_out)[1:]
    return entries[entries >= 0]


@torch.no_grad()
def _canonical_path_values(graph: ScaleGraph) -> tuple[dict[str, Tensor], Skeleton]:
    scales, parameters = canonical_scales(graph), dict(graph.module.named_parameters())
    weights = {
        name: parameters[name].double().cpu() * (scales[edges.write] / scales[edges.read])
        for name, edges in graph.edges.items()
    }
    skeleton = find_skeleton(graph, weights)
    before, after = torch.from_numpy(skeleton.products_in), torch.from_numpy(skeleton.products_out)
    values = {name: before[edges.read] * weights[name] * after[edges.write] for name, edges in graph.edges.items()}
    return values, skeleton


class _NormDomain:
    """Entries are sums, over all paths to a channel, of the squared product of the weights along them."""

    fill = torch.ones((), dtype=torch.float64)

    def __init__(self) -> None:
        self.at_outputs: list[Tensor] = []

    def weighted(self, where: str, layer: nn.Module, geometry: Geometry, columns: Tensor) -> Tensor:
        weight = layer.weight.double().cpu()
        through = (weight**2 * columns[geometry.reads]).flatten()
        channels = geometry.writes.expand(weight.shape).flatten()
        total = torch.zeros(geometry.n_out, dtype=torch.float64).index_add_(0, channels, through)
        return total if layer.bias is None else total + layer.bias.double().cpu() ** 2

    def normalised(self, where: str, layer: nn.Module, entries: Tensor | None) -> Tensor:
        if layer.weight is None:
            return self.fill.expand(layer.num_features)
        return layer.weight.double().cpu() ** 2 + (0 if layer.bias is None else layer.bias.double().cpu() ** 2)

    def merged(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second

    def times(self, entries: Tensor, factor: float | None) -> Tensor:
        if factor is None:
            raise ValueError("path_norm: the net multiplies by a number that depends on its input's shape.")
        return entries * factor**2

    def pin(self, values, where: str, reason: str, *, no_matrix: bool = False) -> None:
        pieces = [piece for value in values for piece in value.pieces if piece is not None]
        if reason and pieces:
            raise ValueError(f"path_norm: there are no path values through {where}: {reason}.")
        self.at_outputs += pieces


@torch.no_grad()
def path_norm(module: nn.Module) -> float:
    """Return the root of the sum, over all paths from an input to an output, of the squared product of the weights.

    Parameters
    ----------
    module : Module
        The net. Paths go through channels: of a convolution each tap counts once, whatever the number of positions.
        Behind a batch norm paths start anew. A bias is a weight from an input of its own, and what is computed from
        inputs without weights is an input, too.

    Returns
    -------
    norm : float
        The same for all rescaled twins.

    Raises
    ------
    ValueError
        If the net has an operation through which there are no path values.

    References
    ----------
    .. [1] B. Neyshabur, R. Salakhutdinov, N. Srebro. "Path-SGD: Path-normalized optimization in deep neural networks".
       NeurIPS 2015.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import path_norm
    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> _ = torch.nn.utils.vector_to_parameters(torch.tensor([3.0, 4.0, 2.0]), net.parameters())
    >>> path_norm(net)  # of the paths 3 * 2 and 4 * 2
    10.0
    """
    domain = _NormDomain()
    interpret(unwrapped(check_module(module)), domain)
    return float(torch.cat([piece.flatten() for piece in domain.at_outputs] or [torch.zeros(1)]).sum().sqrt())
