"""The canonical one among all rescaled twins of a net.

A scale graph enters; one scale a unit leaves, which twins do not change but for rounding. Units are first normalised
one after the other, in the order in which the net writes them: from there twins are the same. Then the sum of all
squared weights is minimised, a convex function of the scales' logarithms.
"""

from itertools import groupby, pairwise

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn

from ._graph import ScaleGraph, graph_of
from ._rescale import apply_scales

_MAX_STEPS = 1000  # of Newton's method, which takes some ten, and more where weights differ by many orders


def balance(module: nn.Module, graph: ScaleGraph | None = None) -> nn.Module:
    """Replace a net by its canonical twin, in place; the function stays the same.

    All rescaled twins of a net have the same canonical twin, the one of the smallest sum of squared weights. Filters in
    front of a batch norm, whose scale nothing reads, are kept as they are for the sake of its `eps`; where that is next
    to nothing, they get norm 1, and the sum is the smallest of those with filters in the proportions that they have
    when each layer is normalised after the ones before it.

    Parameters
    ----------
    module : Module
        The net.
    graph : ScaleGraph, optional
        The net's scale graph, if it is at hand.

    Returns
    -------
    module : Module
        The net itself.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import balance, rescale
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    >>> weight = balance(net)[0].weight.clone()
    >>> bool(torch.isclose(balance(rescale(net, [0.1, 2, 30]))[0].weight, weight).all())
    True
    """
    graph = graph_of(module, graph)
    apply_scales(graph, canonical_scales(graph))
    return module


def canonical_scales(graph: ScaleGraph) -> Tensor:
    """Return the scales that lead to the canonical twin, of shape (n_units + 1,) in double precision."""
    write, read, values, layer = _squares(graph)
    n = graph.n_units + 1
    fixed = np.concatenate([[True], graph.approximate.numpy()])
    private = np.concatenate([[False], graph.private.numpy()])
    scales = _normalised_in_order(write, read, values, layer, fixed)
    apart = write != read  # what reads and writes the same unit does not scale
    write, read, values = write[apart], read[apart], values[apart]
    squares = sparse.csr_array((values * (scales[write] / scales[read]) ** 2, (write, read)), shape=(n, n))
    squares.eliminate_zeros()
    logs = _of_least_norm(squares, fixed | private)
    norms = np.sqrt(squares @ np.exp(-2 * logs))
    again = private & ~fixed & (norms > 0)
    logs[again] = -np.log(norms[again])
    return torch.from_numpy(scales * np.exp(logs))


@torch.no_grad()
def _squares(graph: ScaleGraph) -> tuple[np.ndarray, ...]:
    """Return for all parameters, entry by entry, the unit written, the unit read, the squared weight and the layer.

    Entries of the same units are summed up.
    """
    parameters, parts = dict(graph.module.named_parameters()), []
    for i, (_, names) in enumerate(groupby(graph.edges, lambda name: name.rpartition(".")[0])):
        for name in names:
            edges, squares = graph.edges[name], parameters[name].double().cpu() ** 2
            if not squares.isfinite().all():
                raise ValueError(f"the parameter {name!r} is not finite, so that there is no canonical twin.")
            shape = torch.broadcast_shapes(edges.write.shape, edges.read.shape)
            squares = squares.sum_to_size((1,) * (squares.ndim - len(shape)) + shape).flatten()
            write, read = (ids.int().expand(shape).flatten() for ids in edges[:2])
            parts.append((write, read, squares, torch.full_like(write, i)))
    if not parts:
        return (np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, int))
    return tuple(torch.cat(column).numpy() for column in zip(*parts))


def _normalised_in_order(write, read, squares, layer, fixed) -> np.ndarray:
    """Return scales with which the weights of the first layer that writes a unit have norm 1."""
    scales, settled = np.ones(len(fixed)), fixed.copy()
    order = np.flatnonzero(np.diff(layer, prepend=-1, append=-1))
    for start, stop in pairwise(order):
        entries = slice(start, stop)
        # Units that no weight writes have no scale as yet: what reads them does not count.
        known = squares[entries] * settled[read[entries]] / scales[read[entries]] ** 2
        norms = np.sqrt(_sums(write[entries], known, len(scales)))
        new = (norms > 0) & ~settled
        scales[new], settled[new] = 1 / norms[new], True
    while True:  # they are normalised by what reads them, the last ones first
        norms = np.sqrt(_sums(read, squares * settled[write] * scales[write] ** 2, len(scales)))
        new = (norms > 0) & ~settled
        if not new.any():
            return scales
        scales[new], settled[new] = norms[new], True


def _sums(units: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(units, values, minlength=n)


def _of_least_norm(squares: sparse.csr_array, fixed: np.ndarray) -> np.ndarray:
    """Return the logarithms x of the scales that minimise the sum of squares[t, r] exp(2 (x[t] - x[r])).

    Newton's method with conjugate gradients. Units through which no path goes from what is fixed to what is fixed have
    no minimum, and stay.
    """
    logs = np.zeros(len(fixed))
    number = np.where(fixed, 0, np.arange(len(fixed), dtype=np.int32))
    weights = squares.tocoo()
    paths = sparse.csr_array((weights.data, (number[weights.row], number[weights.col])), shape=squares.shape)
    reached = [breadth_first_order(matrix, 0, return_predecessors=False) for matrix in (paths.T, paths)]
    free = np.setdiff1d(np.intersect1d(*reached), [0])
    del weights, paths
    if not len(free):
        return logs
    for _ in range(_MAX_STEPS):
        grown = np.exp(2 * logs)
        incoming, outgoing = (grown * (squares @ (1 / grown)))[free], ((squares.T @ grown) / grown)[free]
        total, gradient = incoming + outgoing, incoming - outgoing
        error = np.max(np.abs(gradient) / total)
        if error < 1e-14:
            break

        def hessian(step, grown=grown, total=total):
            full = np.zeros(len(fixed))
            full[free] = step
            coupled = grown * (squares @ (full / grown)) + (squares.T @ (grown * full)) / grown
            return 2 * (total * step - coupled[free])

        size = (len(free), len(free))
        step, _ = cg(
            LinearOperator(size, matvec=hessian, dtype=float),
            -gradient,
            rtol=min(0.1, error),
            M=sparse.diags_array(0.5 / total),
        )
        logs[free] += step / max(1, np.abs(step).max())
        if np.abs(step).max() < 1e-14:
            break
    return logs
