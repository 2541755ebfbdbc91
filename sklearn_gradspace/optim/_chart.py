"""A chart of equivalent-class space: the basis paths of one skeleton as coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..pathspace import ScaleGraph
from ..pathspace._skeleton import find_skeleton
from ._parameter_units import ParameterUnits


@dataclass(frozen=True)
class Chart:
    """Weights are functions of coordinates: of one number a chain of skeleton weights, one a weight outside of them.

    A chain is the units whose paths from the inputs share a moving weight. If rho is the value of that weight's path,
    over what it was when the chart was made, a weight's coordinate is itself times the rho of the chain of the unit it
    reads. Weights that the inner optimizer does not move follow from the chains alone: moving and held ones, and one a
    unit from which nothing leads on, whose coordinate stays. Each is its `start` times rho of `gains` over rho of
    `reads`. Tensors of chains have one entry more for what belongs to none.

    Parameters
    ----------
    chain : Tensor of shape (n_units + 1,)
        The chain of each unit, `n_chains` for none.
    following : dict of str to tuple of Tensor
        By parameter, where the weights are that follow from the chains.
    start : Tensor of shape (n_following,)
        These weights when the chart was made, parameter by parameter.
    gains, reads : Tensor of shape (n_following,)
        The chain that moves each of them, of a held one that of the unit that it reads; and the chain of the unit that
        it reads.
    value : Tensor of shape (n_chains,)
        Values of the moving weights' paths when the chart was made.
    identity : Tensor of shape (n_chains,)
        Number of the moving weight among all entries.
    length : Tensor of shape (n_chains,)
        Unit of length of a chain's coordinate, which is rho times it.
    reading, writing : Tensor of shape (n_units + 1,)
        Products of skeleton weights to the unit read and from the unit written, when the chart was made.
    sizes : tuple of int
        Number of chains in each group of parameters.
    raw : bool
        Whether coordinates are the path values themselves; else they are weights, at the start, and a chain's unit of
        length is that of the change of all weights that it moves.
    """

    chain: Tensor
    following: dict[str, tuple[Tensor, ...]]
    start: Tensor
    gains: Tensor
    reads: Tensor
    value: Tensor
    identity: Tensor
    length: Tensor
    reading: Tensor
    writing: Tensor
    sizes: tuple[int, ...]
    raw: bool

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return len(self.value)

    def lengths(self, units: ParameterUnits) -> tuple[Tensor | None, Tensor | None]:
        """Return what makes coordinates of a parameter's weights, but for rho, and path values of coordinates."""
        value = units.factor(self.reading, self.writing)
        return (value, None) if self.raw else (None, value)


def make_chart(graph: ScaleGraph, raw: bool, group_of: Mapping[str, int], n_groups: int, like: Tensor) -> Chart:
    """Return the chart of the skeleton of a net's largest weights.

    Parameters
    ----------
    graph : ScaleGraph
        The net's scale graph.
    raw : bool
        Whether coordinates are the path values themselves.
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

    owner = np.zeros(n_chains, int)  # the unit that the moving weight leads to
    is_owner = moved & (skeleton.entry_in == skeleton.moving)
    owner[chain[is_owner]] = np.flatnonzero(is_owner)
    ends, onward = skeleton.ends & ~skeleton.dead, (skeleton.entry_out >= 0) & ~skeleton.dead
    held, stays = skeleton.entry_out[onward], skeleton.entry_in[ends]
    start = skeleton.weight_in[owner]
    value = skeleton.products_in[skeleton.unit_in[owner]] * start * skeleton.products_out[owner]
    length = value if raw else np.sqrt(start**2 + _moved_squares(graph, parameters, chain, held, n_chains))

    following = np.concatenate([identity, held, stays])
    order = np.argsort(following)
    of_parameter, where = np.searchsorted(offsets, following[order], side="right") - 1, {}
    for i in np.unique(of_parameter):
        index = np.unravel_index(following[order][of_parameter == i] - offsets[i], parameters[names[i]].shape)
        where[names[i]] = tuple(_like(along, like, int) for along in index)
    starts = np.concatenate([start, skeleton.weight_out[onward], skeleton.weight_in[ends]])
    gains = np.concatenate([np.arange(n_chains), chain[onward], np.full(len(stays), n_chains)])
    reads = np.concatenate([chain[skeleton.unit_in[owner]], chain[onward], chain[skeleton.unit_in[ends]]])
    return Chart(
        _like(chain, like, int),
        where,
        _like(starts[order], like),
        _like(gains[order], like, int),
        _like(reads[order], like, int),
        _like(value, like),
        _like(identity, like, int),
        _like(length, like),
        _like(skeleton.products_in, like),
        _like(skeleton.products_out, like),
        tuple(np.bincount(group, minlength=n_groups).tolist()),
        raw,
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
        read = edges.read[(None,) * (squares.ndim - edges.read.ndim)]
        total.index_add_(0, torch.from_numpy(chain)[read.flatten()], squares.sum_to_size(read.shape).flatten())
    return total[:n_chains].numpy()
