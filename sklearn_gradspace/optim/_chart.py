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
        The chain that a moving weight is of, and of other weights that of the unit that they read.
    place : Tensor of shape (n,)
        Their places among all entries of their kind.
    """

    index: tuple[Tensor, ...]  # type: ignore[assignment]
    chain: Tensor
    place: Tensor


@dataclass(frozen=True)
class Chart:
    """Weights are functions of coordinates: of one number a chain of skeleton weights, one a weight outside of them.

    A chain is the units whose paths from the inputs share a moving weight. If rho is the value of that weight's path,
    over what it was when the chart was made, a weight's coordinate is itself times the rho of the chain of the unit it
    reads. Tensors of chains have one entry more for what belongs to none.

    Parameters
    ----------
    chain : Tensor of shape (n_units + 1,)
        The chain of each unit, `n_chains` for none.
    skeleton : dict of str to Entries
        By parameter, the weights that follow from the chains' numbers: first the moving ones, then those that are held.
    frozen : dict of str to Entries
        The weights whose coordinate stays, one a unit from which nothing leads on.
    start, held : Tensor of shape (n_chains,) and (n_held,)
        The moving weights when the chart was made, and the weights that are held.
    value : Tensor of shape (n_chains,)
        Values of the moving weights' paths when the chart was made.
    parent : Tensor of shape (n_chains,)
        The chain of the unit that the moving weight reads.
    identity : Tensor of shape (n_chains,)
        Number of the moving weight among all entries.
    length : Tensor of shape (n_chains,)
        Unit of length of a chain's coordinate, which is rho times it.
    reading, writing : Tensor of shape (n_units + 1,)
        Products of skeleton weights to the unit read and from the unit written, when the chart was made.
    sizes : tuple of int
        Number of chains in each group of parameters.
    """

    chain: Tensor
    skeleton: dict[str, Entries]
    frozen: dict[str, Entries]
    start: Tensor
    held: Tensor
    value: Tensor
    parent: Tensor
    identity: Tensor
    length: Tensor
    reading: Tensor
    writing: Tensor
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
            here = np.flatnonzero(of_parameter == i)
            index = np.unravel_index(which[here] - offsets[i], parameters[names[i]].shape)
            index = tuple(_like(along, like, int) for along in index)
            found[names[i]] = Entries(index, _like(chains[here], like, int), _like(here, like, int))
        return found

    owner = np.zeros(n_chains, int)  # the unit that the moving weight leads to
    is_owner = moved & (skeleton.entry_in == skeleton.moving)
    owner[chain[is_owner]] = np.flatnonzero(is_owner)
    ends, onward = skeleton.ends & ~skeleton.dead, (skeleton.entry_out >= 0) & ~skeleton.dead
    held = skeleton.entry_out[onward]
    start = skeleton.weight_in[owner]
    value = skeleton.products_in[skeleton.unit_in[owner]] * start * skeleton.products_out[owner]
    length = value if raw else np.sqrt(start**2 + _moved_squares(graph, parameters, chain, held, n_chains))
    return Chart(
        _like(chain, like, int),
        entries(np.concatenate([identity, held]), np.concatenate([np.arange(n_chains), chain[onward]])),
        entries(skeleton.entry_in[ends], chain[skeleton.unit_in[ends]]),
        _like(start, like),
        _like(skeleton.weight_out[onward], like),
        _like(value, like),
        _like(chain[skeleton.unit_in[owner]], like, int),
        _like(identity, like, int),
        _like(length, like),
        _like(skeleton.products_in, like),
        _like(skeleton.products_out, like),
        tuple(np.bincount(group, minlength=n_groups).tolist()),
    )


def _like(values: np.ndarray, like: Tensor, kind=None) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64 if kind is int else like.dtype, device=like.device)


@torch.no_grad()
def _moved_squares(graph: ScaleGraph, parameters, chain: np.ndarray, held: np.ndarray, n_chains: int) -> np.ndarray:
    """Return the sum of squares of the weights that each chain's ratio divides."""
    total, offset = torch.zeros(n_chains + 1, dtype=torch.float64), 0
    for name, edges in graph.edges.items():
        squares = parameters[name].double().cpu().flatten() ** 2
        squares[held[(held >= offset) & (held < offset + len(squares))] - offset] = 0
        offset += len(squares)
        squares = squares.reshape(parameters[name].shape)
        read = edges.read.reshape((1,) * (squares.ndim - edges.read.ndim) + tuple(edges.read.shape))
        total.index_add_(0, torch.from_numpy(chain)[read.flatten()], squares.sum_to_size(read.shape).flatten())
    return total[:n_chains].numpy()
