"""Per-sample gradients that are not formed all at once: what is wanted of them, parameter by parameter.

A pass through a net enters; norms, products with directions and products with other gradients leave. Memory is that of
the pass and of a bounded part of one parameter's gradients, so that nets of 10^8 parameters are in reach.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ._blocks import Block
from ._engine import GradientEngine
from ._forward import ForwardPass
from ._memory import empty
from ._outputs import Labels
from ._passes import slices
from ._rules import outer_factors, write_gradients

_PART_BYTES = 2**26  # gradients of a parameter that are formed at a time, at least one row of them


def _computing(method: Callable) -> Callable:
    """Compute products in the engine's precision; they are differentiated where the caller is."""

    @wraps(method)
    def run(self, *args, **kwargs):
        differentiating = torch.is_grad_enabled()
        with self._engine.computing(), torch.set_grad_enabled(differentiating):
            return method(self, *args, **kwargs)

    return run


class FactoredGradients:
    """Gradients of shape (n, k, n_params), held as the pass that they come from.

    Parameters
    ----------
    engine : GradientEngine
        Of the net.
    X : ndarray of shape (n, ...)
        Rows that one pass through the net can take.
    labels : Tensor of shape (n,) or "predicted", optional
        The number of one scalar for each row; by default all.

    Attributes
    ----------
    factors : dict of str to (Tensor of shape (n, k, n_out), Tensor of shape (n, n_in))
        Those gradients that are the outer product of two vectors.

    Notes
    -----
    The gradient of a linear layer that sees a vector is ``delta a^T``: its norms and products are those of the factors.
    Other gradients are formed a few rows at a time.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import FactoredGradients, GradientEngine
    >>> X = torch.ones(2, 4).numpy()
    >>> engine = GradientEngine(torch.nn.Linear(4, 3), X)
    >>> gradients = FactoredGradients(engine, X)
    >>> gradients.shape, gradients.squared_norms()["weight"].shape
    ((2, 3, 12), torch.Size([2, 3]))
    >>> norms = gradients.inner(gradients)["weight"].diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)
    >>> torch.allclose(norms, gradients.squared_norms()["weight"])
    True
    """

    def __init__(self, engine: GradientEngine, X: np.ndarray, labels: Labels = None) -> None:
        with engine.computing():
            forward = engine.forward(X, labels)
        self._engine, self._forward = engine, forward
        self._rules = {rule.name: rule for rule in engine.rules_for(forward)}
        self.factors = outer_factors(forward, list(self._rules.values()), engine.feature_dtype)

    @property
    def outputs(self) -> Tensor:
        """What the net says of the rows, of shape (n, n_outputs)."""
        return self._forward.outputs.detach()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, k, n_params)."""
        return (*self._forward.cotangents.shape[:2], self._engine.n_params)

    def dense(self, name: str) -> Tensor:
        """Return the gradients of one parameter, of shape (n, k, ``*parameter.shape``).

        Parameters
        ----------
        name : str
            The parameter.

        Returns
        -------
        gradients : Tensor of shape (n, k, ``*parameter.shape``)
            All of them, formed.
        """
        block = self._block(name)
        place = self._empty((*self.shape[:2], block.size))
        self._write(self._forward, block, place)
        return block.shaped(place)

    @_computing
    def squared_norms(self) -> dict[str, Tensor]:
        """Return for each parameter the squared norms of its gradients, of shape (n, k).

        Returns
        -------
        squares : dict of str to Tensor of shape (n, k)
            By parameter.
        """
        found = {}
        for block in self._engine.blocks:
            if block.name in self.factors:
                deltas, inputs = self.factors[block.name]
                found[block.name] = deltas.square().sum(2) * inputs.square().sum(1, keepdim=True)
            else:
                norms = [torch.linalg.vector_norm(part, dim=2) for _, part in self.parts(block.name, by_tap=True)]
                found[block.name] = torch.cat(norms).square()
        return found

    @_computing
    def dot(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Return inner products with directions in parameter space, summed over parameters, differentiable in these.

        Parameters
        ----------
        directions : dict of str to Tensor of shape (h, ...)
            As many as h directions, each of the parameter's shape, as far as they are not zero.

        Returns
        -------
        products : Tensor of shape (n, k, h)
            With each of the directions.
        """
        total: Tensor | int = 0
        for name, direction in directions.items():
            shape = self._block(name).shape
            if tuple(direction.shape[1:]) != shape:
                raise ValueError(
                    f"directions[{name!r}] has shape {tuple(direction.shape)}; the parameter needs (h, "
                    f"{', '.join(map(str, shape))})."
                )
            direction = direction.to(self._engine.device, self._engine.feature_dtype)
            if name in self.factors:
                deltas, inputs = self.factors[name]
                products = linear(inputs, direction.flatten(0, 1)).unflatten(1, (len(direction), -1))  # (n, h, o)
                total = total + deltas @ products.transpose(1, 2)
                continue
            flat = direction.reshape(len(direction), -1)
            if flat.requires_grad and torch.is_grad_enabled():  # the backward pass needs all of them
                parts = [self.dense(name).reshape(*self.shape[:2], -1)]
            else:
                parts = (part for _, part in self.parts(name))  # type: ignore[assignment]
            total = total + torch.cat([part @ flat.T for part in parts])
        return total  # type: ignore[return-value]

    @_computing
    def inner(self, other: "FactoredGradients") -> dict[str, Tensor]:
        """Return for each parameter the inner products with the m times l gradients of `other`.

        Parameters
        ----------
        other : FactoredGradients
            Gradients of m rows and l scalars of the same net.

        Returns
        -------
        products : dict of str to Tensor of shape (n, k, m, l)
            By parameter.
        """
        found = {}
        for block in self._engine.blocks:
            mine, theirs = self.factors.get(block.name), other.factors.get(block.name)
            if mine and theirs:
                of_deltas = torch.einsum("nko,mlo->nkml", mine[0], theirs[0])
                found[block.name] = of_deltas * (mine[1] @ theirs[1].T)[:, None, :, None]
                continue
            product = found[block.name] = self._empty((*self.shape[:2], *other.shape[:2]))
            for rows, part in self.parts(block.name, by_tap=True):
                for columns, of_other in other.parts(block.name, by_tap=True):
                    product[rows, :, columns] = torch.einsum("nkp,mlp->nkml", part, of_other)
        return found

    def _block(self, name: str) -> Block:
        blocks = {block.name: block for block in self._engine.blocks}
        if name not in blocks:
            raise KeyError(f"{name!r} is none of the parameters {', '.join(blocks)}.")
        return blocks[name]

    def parts(self, name: str, n_bytes: int = _PART_BYTES, *, by_tap: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Yield gradients of one parameter, of shape (part, k, size), each valid until the next is asked for.

        A part takes `n_bytes`, unless a single row takes more. Its entries are in the parameter's order, or in that of
        :meth:`Block.shaped_by_tap`, which saves a copy.

        Parameters
        ----------
        name : str
            The parameter.
        n_bytes : int
            Size of a part.
        by_tap : bool, default=False
            Whether the order is the latter.

        Yields
        ------
        rows : slice
            The rows of the part.
        gradients : Tensor of shape (part, k, size)
            Their gradients.
        """
        block, (n, k, _) = self._block(name), self.shape
        step = min(n, max(1, n_bytes // (k * block.size * self._engine.feature_dtype.itemsize)))
        shape, engine = (step, k, block.size), self._engine
        with engine.scratch.lent("parts", shape, engine.feature_dtype, engine.device) as place:
            for rows in slices(n, step):
                part = place[: rows.stop - rows.start]
                self._write(self._forward.rows(rows), block, part, by_tap)
                yield rows, part

    def _write(self, forward: ForwardPass, block: Block, out: Tensor, by_tap: bool = False) -> None:
        shaped = block.shaped_by_tap(out) if by_tap else block.shaped(out)
        with self._engine.computing():
            write_gradients(forward, [self._rules[block.name]], {block.name: shaped})

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return empty(shape, self._engine.feature_dtype, self._engine.device)
