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
_LAYER_NORM = "NativeLayerNormBackward0"
_BROADCASTS = ("AddBackward0", "SubBackward0", "MulBackward0", "ExpandBackward0", "RepeatBackward0", _LAYER_NORM)
_MATRICES = ("AddmmBackward0", "MmBackward0")
SUM, PRODUCT, MATRIX_PRODUCT = "sums", "products", "matrix products"


class How(NamedTuple):
    """What is known of a step from the rows that decided on the rules, and has to hold for others.

    Parameters
    ----------
    role : {"sums", "products", "matrix products"}
        What the parameter is a part of.
    turned : bool
        Whether as a transposed matrix.
    alone : bool
        Whether a sample has a single row of the matrix that the step makes, if it makes one.
    """

    role: str
    turned: bool = False
    alone: bool = False


# Which axis of a parameter's steps belongs to the samples, and how they use it; plain, for files.
Ways = Mapping[str, tuple[int, tuple[tuple, ...]]]


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
    shape : tuple of int, optional
        That of the parameter as the step got it, beside the output without its samples; None where that is a matrix.
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
    shape: tuple[int, ...] | None = None
    factor: Tensor | None = None
    times: float = 1.0
    deltas: Tensor | None = None

    def by_row(self, tensor: Tensor) -> Tensor:
        """Return what has the shape of the step's output, or of its factor, with the samples' axis first."""
        if self.shape is None:
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
            leaf, shape, through = _origin(source)
            if id(leaf) in names:
                name = names[id(leaf)]
                found[name].append(_step(node, place, shape, through, axes[name], n))
    return {name: None if None in steps or not steps else steps for name, steps in found.items()}


def _origin(source: Node | None) -> tuple[Tensor | None, tuple[int, ...], list[str]]:
    """Return the parameter that a step gets, its shape there, and the steps that it went through."""
    through, last = list[str](), source
    while source is not None and type(source).__name__ in (*_RESHAPES, _TRANSPOSES):
        through.append(type(source).__name__)
        source = source.next_functions[0][0]
    leaf = getattr(source, "variable", None)
    if leaf is None or last is None:
        return None, (), through
    return leaf, _shape(last) if through else tuple(leaf.shape), through


def _step(node: Node, place: int, shape: tuple[int, ...], through: list[str], axis: int, n: int) -> Step | None:
    if type(node).__name__ in _BROADCASTS and _TRANSPOSES not in through:
        return _broadcast_step(node, place, shape, axis, n)
    if type(node).__name__ in _MATRICES and through in ([], [_TRANSPOSES]) and _shape(node)[0] % n == 0:
        return _matrix_step(node, place, shape, bool(through), axis, n)
    return None


def _broadcast_step(node: Node, place: int, shape: tuple[int, ...], axis: int, n: int) -> Step | None:
    """Return the step that adds or multiplies with a parameter, each of its entries at all of some positions."""
    kind, output = type(node).__name__, _shape(node)
    shape = (1,) * (len(output) - len(shape)) + shape
    beside, of_output = (sizes[:axis] + sizes[axis + 1 :] for sizes in (shape, output))
    of_rows = output[axis : axis + 1] == (n,) and shape[axis] == 1
    if not of_rows or any(own not in (1, size) for own, size in zip(beside, of_output)):
        return None
    step = Step(How(SUM), GradientEdge(node, 0), axis, n, beside)
    if kind == "MulBackward0" or (kind == _LAYER_NORM and place == 1):
        factor = _normalised(node) if kind == _LAYER_NORM else _saved(node, "other" if place == 0 else "self")
        return step._replace(how=How(PRODUCT), factor=step.by_row(factor.detach().expand(output)))
    if kind in ("AddBackward0", "SubBackward0") and place == 1:
        return step._replace(times=_saved(node, "alpha") * (1 if kind == "AddBackward0" else -1))
    return step


def _matrix_step(node: Node, place: int, shape: tuple[int, ...], turned: bool, axis: int, n: int) -> Step | None:
    """Return the step that multiplies matrices, the second of which is a parameter, or adds one to the product."""
    adds, output = type(node).__name__ == "AddmmBackward0", _shape(node)
    alone = output[0] == n
    step = Step(How(SUM, alone=alone), GradientEdge(node, 0), 0 if alone else axis, n)
    if adds and place == 0:
        return step._replace(times=_saved(node, "beta")) if shape == output[1:] else None
    if place != (2 if adds else 1):
        return None
    factor = step.by_row(_saved(node, "mat1" if adds else "self").detach())
    times = _saved(node, "alpha") if adds else 1.0
    return step._replace(how=How(MATRIX_PRODUCT, turned, alone), factor=factor, times=times)


def _shape(node: Node) -> tuple[int, ...]:
    """Return the shape of what a step returned."""
    return tuple(node._input_metadata[0].shape)


def _normalised(node: Node) -> Tensor:
    """Return what layer normalisation multiplies with its weight."""
    return (_saved(node, "input").detach() - _saved(node, "result1")) * _saved(node, "result2")


def _saved(node: Node, name: str):
    """Return what a step keeps for the way back."""
    return getattr(node, f"_saved_{name}")


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
        alike.setdefault((step.how.role, step.how.turned, step.shape, step.times), []).append(step)
    for i, group in enumerate(alike.values()):
        place = torch.empty_like(out) if i else out
        _write(group, place)
        if group[0].times != 1:
            place.mul_(group[0].times)
        if i:
            out.add_(place)


def _write(steps: Sequence[Step], out: Tensor) -> None:
    """Write the sum over steps of the same form; matrix products are one, over the rows of all."""
    how, shape = steps[0].how, steps[0].shape
    if shape is None:
        deltas = _joined([step.deltas for step in steps], 2).to(out.dtype)
        if how.role == SUM:
            out.copy_(deltas.sum(2))
            return
        factor = _joined([step.factor for step in steps], 1).to(out.dtype)
        for j in range(out.shape[1]):
            left, right = (deltas[:, j], factor) if how.turned else (factor, deltas[:, j])
            torch.bmm(left.mT, right, out=out[:, j])
        return
    summed = [axis for axis, size in enumerate(shape, 2) if size == 1]
    for i, step in enumerate(steps):
        part = (step.deltas if step.factor is None else step.deltas * step.factor.unsqueeze(1)).to(out.dtype)
        part = (part.sum(summed) if summed else part).reshape(out.shape)
        out.add_(part) if i else out.copy_(part)


def _joined(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, axis)
