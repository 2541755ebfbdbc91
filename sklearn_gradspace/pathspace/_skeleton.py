"""The skeleton: for each unit one weight that leads to it and one that leads on, from which basis paths are made.

A path that takes a single weight outside the skeleton, or none, is a basis path: in(r) w out(t), where in and out are
products of skeleton weights from an input to the unit read, and from the unit written to an output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ._graph import ScaleGraph

_SAME = 1 - 1e-6  # of weights that are as large as each other


@dataclass(frozen=True)
class Skeleton:
    """Skeleton weights of the units 1 to `n_units`; entry 0 of each array is the root's and means nothing.

    Entries of weights are counted through all parameters of the scale graph, in its order.

    Parameters
    ----------
    entry_in, entry_out : ndarray of shape (n_units + 1,)
        The weight that leads to a unit, and the one that leads on. -1 where there is none: nothing leads on from a
        filter in front of a batch norm, nor from a unit that only such filters read.
    unit_in, unit_out : ndarray of shape (n_units + 1,)
        The unit that `entry_in` reads, and the one that `entry_out` writes.
    weight_in, weight_out : ndarray of shape (n_units + 1,)
        The weights.
    order_in, order_out : tuple of ndarray
        The units, batch by batch: from the inputs on, and from the outputs back.
    """

    entry_in: np.ndarray
    entry_out: np.ndarray
    unit_in: np.ndarray
    unit_out: np.ndarray
    weight_in: np.ndarray
    weight_out: np.ndarray
    order_in: tuple[np.ndarray, ...]
    order_out: tuple[np.ndarray, ...]

    @property
    def dead(self) -> np.ndarray:
        """Whether no weight but zeros leads to a unit; bool of shape (n_units + 1,)."""
        return self._missing(self.entry_in)

    @property
    def ends(self) -> np.ndarray:
        """Whether nothing leads on from a unit; bool of shape (n_units + 1,)."""
        return self._missing(self.entry_out)

    def _missing(self, entries: np.ndarray) -> np.ndarray:
        return (entries < 0) & (np.arange(len(entries)) > 0)

    @cached_property
    def products_in(self) -> np.ndarray:
        """Product of skeleton weights from an input to each unit; of shape (n_units + 1,)."""
        product = np.ones(len(self.entry_in))
        for units in self.order_in:
            product[units] = product[self.unit_in[units]] * self.weight_in[units]
        return product

    @cached_property
    def products_out(self) -> np.ndarray:
        """Product of skeleton weights from each unit to an output; its inverse `products_in` where nothing leads on."""
        product = np.ones(len(self.entry_out))
        for units in self.order_out:
            product[units] = self.weight_out[units] * product[self.unit_out[units]]
        product[self.ends] = 1 / self.products_in[self.ends]
        return product

    @cached_property
    def moving(self) -> np.ndarray:
        """Entry of the moving weight of each unit's chain, -1 for none: the weight before the ones that are held.

        The weights that lead on are held, and so are those that lead to where nothing leads on.
        """
        held, moving = self.entry_out[self.entry_out >= 0], np.full(len(self.entry_in), -1)
        for units in self.order_in:
            follows = np.isin(self.entry_in[units], held)
            moving[units] = np.where(follows, moving[self.unit_in[units]], self.entry_in[units])
        moving[self.ends] = -1
        return moving


def find_skeleton(graph: ScaleGraph, weights: Mapping[str, Tensor]) -> Skeleton:
    """Return the skeleton of the largest weights.

    Parameters
    ----------
    graph : ScaleGraph
        The net's scale graph.
    weights : dict of str to Tensor
        Its parameters.

    Returns
    -------
    skeleton : Skeleton
        To each unit leads the largest of the weights on the shortest ways from the inputs, where biases are ways only
        if there is no other, and on lead the largest on the shortest ways to the outputs.
    """
    write, read, size, value, entry, constant = _candidates(graph, weights)
    n = graph.n_units + 1
    used = size > 0
    into, order_in = _tree(read, write, size, (used & ~constant, used), n)
    onward, order_out = _tree(write, read, size, (used,), n)

    def chosen(tree: np.ndarray, column: np.ndarray, missing) -> np.ndarray:
        return np.where(tree >= 0, column[tree] if len(column) else missing, missing)

    return Skeleton(
        chosen(into, entry, -1), chosen(onward, entry, -1), chosen(into, read, 0), chosen(onward, write, 0),
        chosen(into, value, 1.0), chosen(onward, value, 1.0), order_in, order_out,
    )  # fmt: skip


def _tree(start, end, size, allowed, n: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return for each unit the edge from a unit nearer to the root, and the units in their order from there."""
    parent, settled, order = np.full(n, -1), np.zeros(n, bool), []
    settled[0] = True
    for edges in map(np.flatnonzero, allowed):
        while len(new := edges[settled[start[edges]] & ~settled[end[edges]]]):
            largest = np.zeros(n)
            np.maximum.at(largest, end[new], size[new])
            new = new[size[new] >= _SAME * largest[end[new]]]  # of equal ones the last, whatever their rounding
            parent[end[new]] = new
            order.append(np.unique(end[new]))
            settled[order[-1]] = True
    return parent, tuple(order)


@torch.no_grad()
def _candidates(graph: ScaleGraph, weights: Mapping[str, Tensor]) -> tuple[np.ndarray, ...]:
    """Return the unit written, the unit read, size, weight, entry and whether constant: of the taps between two units
    the largest."""
    parts, offset = [], 0
    for name, edges in graph.edges.items():
        weight = weights[name].detach().double().cpu()
        write, read = (ids[(None,) * (weight.ndim - ids.ndim)] for ids in edges[:2])
        n_lead = max(
            (axis + 1 for axis in range(weight.ndim) if write.shape[axis] > 1 or read.shape[axis] > 1), default=0
        )
        lead = weight.shape[:n_lead]  # along the axes after these all entries belong to the same units
        taps = weight.reshape(lead.numel(), -1)
        size, tap = taps.abs().max(1)
        write, read = (ids.reshape(ids.shape[:n_lead]).expand(lead).flatten() for ids in (write, read))
        rows = torch.arange(len(taps))
        entry = offset + rows * taps.shape[1] + tap
        parts.append((write, read, size, taps[rows, tap], entry, torch.full((len(taps),), edges.constant)))
        offset += weight.numel()
    if not parts:
        return tuple(np.zeros(0, kind) for kind in (int, int, float, float, int, bool))
    return tuple(torch.cat(column).numpy() for column in zip(*parts))
