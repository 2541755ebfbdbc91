"""A chart of equivalent-class space: the basis paths of one skeleton as coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..pathspace import ScaleGraph
from ..pathspace._skeleton import find_skeleton


class Entries(NamedTuple):
    """Some entries of one parameter.

    Parameters
    ----------
    index : tuple of Tensor
        Where they are.
    chain : Tensor of shape (n,)
        The chain that each moves, or whose ratio it is divided by; `n_chains` for none.
    """

    index: tuple[Tensor, ...]
    chain: Tensor


@dataclass(frozen=True)
class Chart:
    """Weights are functions of coordinates: of one number a chain of skeleton weights, one a weight outside of them.

    A chain is the units whose paths from the inputs share a moving weight. If rho is the value of that weight's path,
    over what it was when the chart was made, a weight's coordinate is itself times the rho of the chain of the unit it
    reads.

    Parameters
    ----------
    chain : Tensor of shape (n_units + 1,)
        The chain of each unit, `n_chains` for none.
    moving : dict of str to Entries
        The weights that a chain's number moves; by parameter.
    held : dict of str to Entries
        The weights that stay.
    frozen : dict of str to Entries
        The weights whose coordinate stays, one a unit from which nothing leads on.
    start, value : Tensor of shape (n_chains,)
        The moving weights when the chart was made, and the values of their paths.
    parent : Tensor of shape (n_chains,)
        The chain of the unit that the moving weight reads.
    identity : Tensor of shape (n_chains,)
        Number of the moving weight among all entries.
    length : Tensor of shape (n_chains,)
        Unit of length of a chain's coordinate, which is rho times it.
    reading, writing : Tensor of shape (n_units + 1,)
        Unit of length of the other coordinates: the product of that of the unit read and that of the unit written.
    values_in, values_out : Tensor of shape (n_units + 1,)
        Products of skeleton weights when the chart was made, by which coordinates become path values.
    sizes : tuple of int
        Number of chains in each group of parameters.
    """

    chain: Tensor
    moving: dict[str, Entries]
    held: dict[str, Entries]
    frozen: dict[str, Entries]
    start: Tensor
    value: Tensor
    parent: Tensor
    identity: Tensor
    length: Tensor
    reading: Tensor
    writing: Tensor
    values_in: Tensor
    values_out: Tensor
    sizes: tuple[int, ...]

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return len(self.start)


def make_chart(graph: ScaleGraph, raw: bool, group_of: Mapping[str, int], n_groups: int, like: Tensor) -> Chart:
    """Return the chart of the skeleton of a net's largest weights.

    Parameters
    ----------
    graph : ScaleGraph
        The net's scale graph.
    raw : bool
        Whether coordinates are the path values themselves; else they are weights, at the start, and a chain's unit of
        length is that of the change of all weights that it moves.
    group_of : dict of str to int
        Number of each parameter's group; chains are ordered by it.
    n_groups : int
        Number of groups.
    like : Tensor
        What the chart's tensors are like.

    Returns
    -------
    chart : Chart
        The chart.
    """
    parameters = dict(graph.module.named_parameters())
    skeleton = find_skeleton(graph, parameters)
    names = list(graph.edges)
    offsets = np.cumsum([0, *(parameters[name].numel() for name in names)])

    identity = np.unique(skeleton.moving[skeleton.moving >= 0])
    group = np.array([group_of.get(name, 0) for name in names])[np.searchsorted(offsets, identity, side="right") - 1]
    identity = identity[np.argsort(group, kind="stable")]
    n_chains = len(identity)
    sorter = np.argsort(identity)
    chain = np.full(len(skeleton.moving), n_chains)
    moved = skeleton.moving >= 0
    chain[moved] = sorter[np.searchsorted(identity, skeleton.moving[moved], sorter=sorter)]

    def entries(which: np.ndarray, chains: np.ndarray) -> dict[str, Entries]:
        of_parameter, found = np.searchsorted(offsets, which, side="right") - 1, {}
        for i in np.unique(of_parameter):
            here = of_parameter == i
            index = np.unravel_index(which[here] - offsets[i], parameters[names[i]].shape)
            found[names[i]] = Entries(tuple(_like(i, like, int) for i in index), _like(chains[here], like, int))
        return found

    owner = np.zeros(n_chains, int)  # the unit that the moving weight leads to
    is_owner = moved & (skeleton.entry_in == skeleton.moving)
    owner[chain[is_owner]] = np.flatnonzero(is_owner)
    ends, onward = skeleton.ends & ~skeleton.dead, (skeleton.entry_out >= 0) & ~skeleton.dead
    start = skeleton.weight_in[owner]
    values_in, values_out = skeleton.products_in, skeleton.products_out
    held = entries(skeleton.entry_out[onward], chain[onward])
    value = values_in[skeleton.unit_in[owner]] * start * values_out[owner]
    length = value if raw else np.sqrt(start**2 + _moved_squares(graph, parameters, chain, held, n_chains))
    ones = np.ones(len(chain))
    return Chart(
        _like(chain, like, int),
        entries(identity, np.arange(n_chains)),
        held,
        entries(skeleton.entry_in[ends], chain[skeleton.unit_in[ends]]),
        _like(start, like),
        _like(value, like),
        _like(chain[skeleton.unit_in[owner]], like, int),
        _like(identity, like, int),
        _like(length, like),
        _like(values_in if raw else ones, like),
        _like(values_out if raw else ones, like),
        _like(values_in, like),
        _like(values_out, like),
        tuple(np.bincount(group, minlength=n_groups).tolist()),
    )


def _like(values: np.ndarray, like: Tensor, kind=None) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64 if kind is int else like.dtype, device=like.device)


@torch.no_grad()
def _moved_squares(graph: ScaleGraph, parameters, chain: np.ndarray, held, n_chains: int) -> np.ndarray:
    """Return the sum of squares of the weights that each chain's ratio divides."""
    total = torch.zeros(n_chains + 1, dtype=torch.float64)
    for name, edges in graph.edges.items():
        if not edges.read.any():
            continue
        squares = parameters[name].double().cpu() ** 2
        if name in held:
            squares[tuple(i.cpu() for i in held[name].index)] = 0
        read = edges.read.reshape((1,) * (squares.ndim - edges.read.ndim) + tuple(edges.read.shape))
        total.index_add_(0, torch.from_numpy(chain)[read.flatten()], squares.sum_to_size(read.shape).flatten())
    return total[:n_chains].numpy()
