"""Products at the steps of differentiation that use a parameter: the gradients of parameters without a layer's rule.

Outputs, parameters and a number of rows enter. What a step multiplied the parameter with, and what comes back to the
step, each with a row a sample, leave; their products are the parameter's per-sample gradient. So attention, recurrent
layers, and parameters that are added to or multiplied with something need no closed form of their own.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ._steps import before

# Steps that a parameter goes through on its way to the one that uses it, and keeps its entries in order.
_RESHAPES = ("ViewBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0", "AliasBackward0", "ReshapeAliasBackward0")
_TRANSPOSES = "TBackward0"
_BROADCASTS = ("AddBackward0", "SubBackward0", "MulBackward0", "ExpandBackward0", "RepeatBackward0")


class How(NamedTuple):
    """What is known of a step from the rows that decided on the rules, and has to hold for others.

    Parameters
    ----------
    kind : str
        The step's name.
    place : int
        Which of the step's inputs the parameter is.
    turned : bool
        Whether as a transposed matrix.
    alone : bool
        Whether a sample has a single row of the matrix that the step makes.
    """

    kind: str
    place: int
    turned: bool
    alone: bool


Ways = Mapping[str, tuple[int, frozenset[How]]]  # which axis of a parameter's steps belongs to the samples; their kinds


class Step(NamedTuple):
    """A step that uses a parameter.

    Parameters
    ----------
    how : How
    edge : GradientEdge, optional
        Where what comes back to the step arrives.
    axis : {0, 1}
        Which axis of the step's output, as :meth:`by_row` cuts it, belongs to the samples.
    n : int
        Number of samples.
    shape : tuple of int
        That of the parameter as the step got it, beside the output without its samples; empty for matrix products.
    factor : Tensor of shape (n, ...), optional
        What the parameter was multiplied with.
    times : float
        What the product is multiplied with.
    deltas : Tensor of shape (n, k, ...), optional
        The cotangents of the step's output.
    """

    how: How
    edge: GradientEdge | None
    axis: int
    n: int
    shape: tuple[int, ...]
    factor: Tensor | None
    times: float
    deltas: Tensor | None = None

    @property
    def is_product(self) -> bool:
        """Whether the parameter is a factor of a matrix product, or the bias of one."""
        return self.how.kind not in _BROADCASTS

    def by_row(self, tensor: Tensor) -> Tensor:
        """Return what has the shape of the step's output, or of its factor, with the samples' axis first."""
        if self.is_product:
            tensor = tensor.unflatten(0, (self.n, -1) if self.axis == 0 else (-1, self.n))
        return tensor.movedim(self.axis, 0)

    def rows(self, part: slice) -> "Step":
        """Return the step for some of the samples."""
        factor = None if self.factor is None else self.factor[part]
        return self._replace(factor=factor, deltas=None if self.deltas is None else self.deltas[part])


Steps = dict[str, list[Step] | None]


def steps_of(outputs: Tensor, parameters: Mapping[str, Tensor], axes: Mapping[str, int], n: int) -> Steps:
    """Return the steps that use each of `parameters`, or None where one of these is not understood.

    Parameters
    ----------
    outputs : Tensor
        What is differentiated; its graph is still there.
    parameters : dict of str to Tensor
    axes : dict of str to {0, 1}
        Which axis belongs to the samples in the steps of each.
    n : int
        Number of samples.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, list[Step | None]] = {name: [] for name in parameters}
    for node in before([outputs.grad_fn]):
        if type(node).__name__ in (*_RESHAPES, _TRANSPOSES):
            continue  # seen from the step that it leads to
        for place, (source, _) in enumerate(node.next_functions):
            leaf, shape, ways = _origin(source)
            if id(leaf) in names:
                name = names[id(leaf)]
                found[name].append(_step(node, place, shape, ways, axes[name], n))
    return {name: None if None in steps or not steps else steps for name, steps in found.items()}


def _origin(source: Node | None) -> tuple[Tensor | None, tuple[int, ...], list[str]]:
    """Return the parameter that a step gets, its shape there, and the steps that it went through."""
    ways, shape = list[str](), None
    while source is not None and type(source).__name__ in (*_RESHAPES, _TRANSPOSES):
        shape = tuple(source._input_metadata[0].shape) if shape is None else shape
        ways.append(type(source).__name__)
        source = source.next_functions[0][0]
    leaf = getattr(source, "variable", None)
    return leaf, tuple(leaf.shape) if shape is None and leaf is not None else shape or (), ways


def _step(node: Node, place: int, shape: tuple[int, ...], ways: list[str], axis: int, n: int) -> Step | None:
    kind, output = type(node).__name__, tuple(node._input_metadata[0].shape)
    edge, turned = GradientEdge(node, 0), ways == [_TRANSPOSES]
    if kind in _BROADCASTS:
        if _TRANSPOSES in ways or len(output) <= axis or output[axis] != n:
            return None
        shape = (1,) * (len(output) - len(shape)) + shape
        own, beside = shape[axis], shape[:axis] + shape[axis + 1 :]
        if own != 1 or any(size not in (1, of_output) for size, of_output in zip(beside, _without(output, axis))):
            return None
        factor, times = None, 1.0
        if kind == "MulBackward0":
            factor = _saved(node, "other") if place == 0 else _saved(node, "self")
        elif place == 1 and kind in ("AddBackward0", "SubBackward0"):
            times = _saved(node, "alpha") if kind == "AddBackward0" else -_saved(node, "alpha")
        step = Step(How(kind, place, False, False), edge, axis, n, beside, None, times)
        return step if factor is None else step._replace(factor=step.by_row(factor.detach().expand(output)))
    if not output or output[0] % n or len(output) != 2:
        return None
    alone = output[0] == n
    step = Step(How(kind, place, turned, alone), edge, 0 if alone else axis, n, (), None, 1.0)
    if kind == "AddmmBackward0" and place == 0 and not ways and shape == output[1:]:
        return step._replace(times=_saved(node, "beta"))
    if kind == "AddmmBackward0" and place == 2 and ways in ([], [_TRANSPOSES]):
        factor, times = _saved(node, "mat1"), _saved(node, "alpha")
    elif kind == "MmBackward0" and place == 1 and ways in ([], [_TRANSPOSES]):
        factor, times = _saved(node, "self"), 1.0
    else:
        return None
    return step._replace(factor=step.by_row(factor.detach()), times=times)


def _saved(node: Node, name: str):
    """Return what a step keeps for the way back."""
    return getattr(node, f"_saved_{name}")


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def write_products(steps: Sequence[Step], out: Tensor) -> None:
    """Write the gradients of one parameter.

    Parameters
    ----------
    steps : sequence of Step
        All that use it, with what came back to them.
    out : Tensor of shape (n, k, *parameter.shape)
    """
    alike: dict[tuple, list[Step]] = {}
    for step in steps:
        form = step.is_product, step.factor is None, step.how.turned, step.times, step.shape
        alike.setdefault(form, []).append(step)
    for i, group in enumerate(alike.values()):
        place = torch.empty_like(out) if i else out
        _write(group, place)
        if i:
            out.add_(place)


def _write(steps: Sequence[Step], out: Tensor) -> None:
    """Write the sum over steps of the same form; matrix products are one over all of their rows."""
    step = steps[0]
    if not step.is_product:
        summed = [2 + i for i, size in enumerate(step.shape) if size == 1]
        parts = [s.deltas if s.factor is None else s.deltas * s.factor.unsqueeze(1) for s in steps]
        for i, part in enumerate(parts):
            part = (part.to(out.dtype).sum(summed) if summed else part).reshape(out.shape)
            out.add_(part) if i else out.copy_(part)
    else:
        deltas = torch.cat([s.deltas for s in steps], 2).to(out.dtype)
        if step.factor is None:
            out.copy_(deltas.sum(2).reshape(out.shape))
        else:
            factor = torch.cat([s.factor for s in steps], 1).to(out.dtype)
            for j in range(out.shape[1]):
                left, right = (deltas[:, j], factor) if step.how.turned else (factor, deltas[:, j])
                torch.bmm(left.mT, right, out=out[:, j])
    if step.times != 1:
        out.mul_(step.times)
