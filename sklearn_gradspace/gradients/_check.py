"""A check of the engine against the slow truth, for a user's own net and data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ._engine import GradientEngine
from ._outputs import Scalar, cotangents
from ._rules import autograd
from ._sharing import as_rows

_EXACT = 1e-9


@dataclass(frozen=True)
class CheckedParameter:
    """How far the gradients of one parameter are from those of a loop.

    Parameters
    ----------
    name : str
    rule : str
        How the engine computes them.
    error : float
        Largest deviation in double precision, relative to the largest entry of any parameter's gradients.
    rounding : float
        The same in the precision that the engine works in.
    """

    name: str
    rule: str
    error: float
    rounding: float


class GradientCheck(tuple):
    """The deviations of all parameters; as text a table.

    Parameters
    ----------
    iterable : iterable of CheckedParameter
        What was found of each.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace import check_gradients
    >>> check = check_gradients(torch.nn.Linear(4, 3), torch.ones(2, 4).numpy())
    >>> check.ok, [parameter.name for parameter in check]
    (True, ['weight', 'bias'])
    """

    @property
    def ok(self) -> bool:
        """Whether every gradient is right."""
        return all(parameter.error <= _EXACT for parameter in self)

    def __str__(self) -> str:
        width = max(len(parameter.name) for parameter in self)
        lines = [f"{'':{width}}  {'rule':15}  error in double  rounding"]
        for p in self:
            verdict = "" if p.error <= _EXACT else "  <- wrong"
            lines.append(f"{p.name:{width}}  {p.rule:15}  {p.error:15.1e}  {p.rounding:8.1e}{verdict}")
        return "\n".join([*lines, "all right" if self.ok else "NOT ALL RIGHT: please report this net"])


def check_gradients(
    net: nn.Module,
    X: np.ndarray,
    *,
    layers: str | Sequence[str] = "all",
    device: torch.device | str | None = None,
    scalar: Scalar = "cross_entropy",
    output: Callable | None = None,
    dtype: str | None = None,
) -> GradientCheck:
    """Compare the engine's gradients with those of a loop over rows and labels in double precision.

    Parameters
    ----------
    net : Module
        Trained net.
    X : array-like of shape (n_samples, ...)
        Rows to compare: a backward pass for each of them and each label.
    layers, device, scalar, output, dtype
        As of :class:`~sklearn_gradspace.gradients.GradientEngine`.

    Returns
    -------
    GradientCheck
        A tuple with a CheckedParameter for each parameter; ``ok`` says whether all are right, and it prints as a table.

    Notes
    -----
    At a kink, such as a ReLU at 0 or a tie in a max-pooling, the derivative is a convention that rounding decides on:
    there the rounding of a row can be large though every rule is right.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace import check_gradients
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> check_gradients(net, [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]).ok
    True
    """
    X = as_rows(X)
    if X.dtype.kind not in "buif" or X.ndim < 1 or not len(X):
        raise ValueError(f"X must hold real numbers, of one row at least; it has shape {X.shape} and dtype {X.dtype}.")
    options = {"layers": layers, "device": device, "scalar": scalar, "output": output}
    # The net as it is comes first: what is refused is told of it, and not of its copy in double precision.
    working, exact = (GradientEngine(net, X, **options, dtype=d) for d in (dtype, "float64"))  # type: ignore[arg-type]
    truth = _loop(exact, X)
    largest = truth.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    errors = [((engine(X).double() - truth).abs() / largest).amax((0, 1)) for engine in (exact, working)]
    return GradientCheck(
        CheckedParameter(block.name, rule.rule, *(error[block.slice].max().item() for error in errors))
        for block, rule in zip(working.blocks, working.rules)
    )


def _loop(engine: GradientEngine, X: np.ndarray) -> torch.Tensor:
    """Return the gradients of shape (n, n_labels, n_params) by one pass a row and one backward pass a label."""
    parameters = {block.name: engine.module.get_parameter(block.name) for block in engine.blocks}
    truth = engine.allocate(len(X), all_labels=True)
    with torch.inference_mode(False), torch.enable_grad():
        for row, place in zip(X, truth):
            outputs = engine.apply(engine.module, engine.inputs(row[None], plain=True))
            for cotangent, of_label in zip(cotangents(engine.scalar, outputs)[0], place):
                found = autograd(outputs[0], parameters, cotangent)
                of_label.copy_(torch.cat([found[block.name].flatten() for block in engine.blocks]))
    return truth
