"""The gradient kernel: inner products of per-sample gradients, layer by layer, without all gradients at once.

Two sets of rows enter; the matrix of their kernel leaves. Jacot, Gabriel and Hongler, arXiv:1806.07572, call it the
empirical neural tangent kernel; that of the logits is the mean over them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from ._engine import GradientEngine
from ._factored import FactoredGradients
from ._memory import RowLimit, empty, is_out_of_memory
from ._outputs import counted_from
from ._passes import progress, slices
from ._projection import Projection
from ._ridge import mirror_lower
from ._user import called

Views = Callable[[np.ndarray], Sequence[np.ndarray]]

_CHUNK = 2**12  # columns that are made single precision at a time
_ROWS = 512  # of a pass through the net, at most


class GradientTile:
    """Gradients of n rows and k scalars, each parameter's in the form in which inner products are cheapest.

    Parameters
    ----------
    gradients : dict of str to tuple of Tensor
        For each parameter the factors of shape (n, k, n_out) and (n, n_in), where its gradients are outer products of
        vectors, else the gradients themselves, of shape (n, k * size).
    """

    def __init__(self, gradients: dict[str, tuple[Tensor, ...]]) -> None:
        self.gradients = gradients

    def __len__(self) -> int:
        return len(next(iter(self.gradients.values()))[0])

    def __getitem__(self, rows: slice) -> "GradientTile":
        return GradientTile({name: tuple(t[rows] for t in tensors) for name, tensors in self.gradients.items()})

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(tensor.nbytes for tensors in self.gradients.values() for tensor in tensors)

    @cached_property
    def squared_norms(self) -> Tensor:
        """Return for each parameter the sums over scalars of squared norms, of shape (n_blocks, n)."""
        return torch.stack([reduce(Tensor.mul, map(_squared_lengths, tensors)) for tensors in self.gradients.values()])

    def inner(self, other: "GradientTile") -> Iterator[Tensor]:
        """Yield for each parameter the sums over scalars of inner products, of shape (n, m)."""
        for name, mine in self.gradients.items():
            (first, second), *more = zip(*_alike(mine, other.gradients[name]))
            product = _product(first.flatten(1), second.flatten(1))
            for inputs, of_other in more:
                product.mul_(_product(inputs, of_other))
            yield product


def _squared_lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=_summed(rows.dtype)).square()


def _alike(*gradients: tuple[Tensor, ...]) -> Sequence[tuple[Tensor, ...]]:
    """Return gradients of one parameter, formed if not all are factored: some rows may call its layer otherwise."""
    return gradients if len(set(map(len, gradients))) == 1 else [(_formed(tensors),) for tensors in gradients]


def _formed(tensors: tuple[Tensor, ...]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.einsum("nko,ni->nkoi", *tensors).flatten(1)


def _summed(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Return `first @ second.T`, multiplied and summed in single precision at least.

    Sums that are returned in less would make a kernel matrix of many rows indefinite.
    """
    if first.dtype == _summed(first.dtype):
        return first @ second.T
    total = torch.zeros(len(first), len(second), dtype=torch.float32, device=first.device)
    for mine, theirs in zip(first.split(_CHUNK, 1), second.split(_CHUNK, 1)):
        total.addmm_(mine.float(), theirs.float().T)
    return total


Rows = np.ndarray | GradientTile
Tiles = Iterator[tuple[slice, Tensor]]  # columns, and what some rows have there


@dataclass(frozen=True)
class GradientGram:
    """The kernel of two sets of rows: ``(Σ_layers Σ_c ⟨g_c(x), g_c(x')⟩)^degree``, normalised or not.

    Parameters
    ----------
    engine : GradientEngine
        Of the net.
    degree : int
        Power of the sum of inner products.
    normalize : bool or "layer"
        True: a row's kernel with itself is 1. "layer": that holds of each parameter's kernel, whose mean is taken.
    views : callable, optional
        From rows to several versions of them, of the same shape, over which gradients and outputs are averaged.
    projection : Projection, optional
        What the gradients of a parameter, those for all scalars one after the other, are mapped to; of any parameters.
    dtype : torch.dtype, optional
        Precision of the factors of inner products; by default the gradients'.
    working_memory : int
        Bytes of gradients held at a time.
    verbose : int
        Whether to show a progress bar.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import GradientEngine, GradientGram
    >>> X = torch.eye(4).numpy()
    >>> kernel = GradientGram(GradientEngine(torch.nn.Linear(4, 3), X, scalar="logit"))
    >>> kernel(X).shape, torch.allclose(kernel(X).diagonal(), torch.ones(4))
    (torch.Size([4, 4]), True)
    """

    engine: GradientEngine
    degree: int = 2
    normalize: bool | str = True
    views: Views | None = None
    projection: Projection | None = None
    dtype: torch.dtype | None = None
    working_memory: int = 2**30
    verbose: int = 0

    def __post_init__(self) -> None:
        if self.projection is not None:
            object.__setattr__(self, "projection", self.projection.to(self.engine.device))

    def __reduce__(self):
        # By way of the constructor: where the engine finds itself is where the projection has to be.
        return GradientGram, tuple(getattr(self, field.name) for field in fields(self))

    def __call__(self, X: Rows, Y: Rows | None = None) -> Tensor:
        """Return the kernel of shape (n, m) of rows `X` with rows `Y`, by default with themselves."""
        n, m = len(X), len(X if Y is None else Y)
        kernel = empty((n, m), self.engine.feature_dtype, self.engine.device)

        def write(rows: slice, tiles: Tiles) -> None:
            for columns, values in tiles:
                kernel[rows, columns] = values

        self._use_tiles(X, Y, write)
        return mirror_lower(kernel) if Y is None else kernel

    def dot(self, X: Rows, Y: Rows, coefficients: Tensor) -> Tensor:
        """Return ``kernel(X, Y) @ coefficients``, of shape (n, k), a tile of the kernel at a time.

        Parameters
        ----------
        X, Y : ndarray of shape (n, ...) and (m, ...), or GradientTile
            Rows.
        coefficients : Tensor of shape (m, k)
            What the kernel is multiplied by.

        Returns
        -------
        products : Tensor of shape (n, k)
            On the engine's device.
        """
        with self.engine.computing():
            products = torch.zeros(len(X), coefficients.shape[1], dtype=coefficients.dtype, device=self.engine.device)

        def write(rows: slice, tiles: Tiles) -> None:
            products[rows] = 0
            for columns, values in tiles:
                with self.engine.computing(exact=True):
                    products[rows] += values @ coefficients[columns]

        self._use_tiles(X, Y, write)
        return products

    def held(self, X: Rows) -> Rows:
        """Return the gradients of rows, to be used in their place, where they fit; else the rows.

        Parameters
        ----------
        X : ndarray of shape (n, ...) or GradientTile
            Rows.

        Returns
        -------
        rows : ndarray or GradientTile
            Their gradients, or the rows.
        """
        if isinstance(X, GradientTile) or len(X) > self._steps(X[:1])[0]:
            return X
        try:
            return self.tile(X)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return X

    def _use_tiles(self, X: Rows, Y: Rows | None, use: Callable[[slice, Tiles], None]) -> None:
        """Hand rows after rows to `use`, with their tiles of the kernel; without `Y` those of its lower triangle.

        Gradients of `Y` that do not fit are computed anew for each of these. Where memory runs out, `use` gets a part
        of the same rows again.
        """
        others = X if Y is None else self.held(Y)
        large, small = self._steps(others[:1])
        # Of what is held any part is at hand: small parts leave out most of what a triangle does not need.
        step = min(small, max(_ROWS, len(X) // 8)) if isinstance(others, GradientTile) else large
        limit = RowLimit(self.engine.device)

        def compute(rows: slice) -> Iterator[tuple[int, None]]:
            use(
                rows, self._tiles(X, None if Y is None else others, rows, max(1, small * min(limit.rows, step) // step))
            )
            yield rows.stop - rows.start, None

        with progress(len(X), "kernel", self.verbose) as bar:
            for rows, _ in limit.passes(len(X), compute, step, self.engine.needed):
                bar.update(rows.stop - rows.start)

    def _tiles(self, X: Rows, Y: Rows | None, rows: slice, step: int) -> Tiles:
        """Yield tiles of some rows with all of `Y`, or with those up to themselves, `step` columns each."""
        tile = self._tile_of(X, rows)
        for columns in slices(rows.start if Y is None else len(Y), step):
            with counted_from(columns.start - rows.start):  # `_use_tiles` counts from `rows`
                other = self._tile_of(X if Y is None else Y, columns)
            yield from self._values(tile, other, columns.start)
        if Y is None:
            yield from self._values(tile, tile, rows.start)

    def _values(self, tile: GradientTile, other: GradientTile, start: int) -> Tiles:
        """Yield the kernel of two tiles, as many columns at a time as are few beside the gradients."""
        step = max(1, self.working_memory // 16 // (len(tile) * self.engine.feature_dtype.itemsize))
        for part in slices(len(other), step):
            yield slice(start + part.start, start + part.stop), self._kernel(tile, other[part])

    def _tile_of(self, X: Rows, rows: slice) -> GradientTile:
        return X[rows] if isinstance(X, GradientTile) else self.tile(X[rows])

    def outputs(self, X: np.ndarray) -> Tensor:
        """Return what the net says of rows, of shape (n, n_outputs), averaged over views.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.

        Returns
        -------
        outputs : Tensor of shape (n, n_outputs)
            The mean over views.
        """
        means = []
        for rows in slices(len(X), self._pass_rows):
            with counted_from(rows.start):
                outputs = [self.engine.outputs(view) for view in self._views(X[rows])]
            means.append(reduce(Tensor.add, outputs) / len(outputs))
        return torch.cat(means)

    def _views(self, X: np.ndarray) -> Sequence[np.ndarray]:
        if self.views is None:
            return [X]
        returned = called("views", self.views, X.copy())
        views = [np.asarray(view) for view in returned] if isinstance(returned, Iterable) else []
        wrong = [v.shape for v in views if v.shape != X.shape or v.dtype.kind not in "buif"]
        if wrong or not views:
            raise ValueError(
                f"views must return arrays of shape {X.shape}, that of its rows, and of real numbers; it returned "
                f"{wrong}."
            )
        return views

    @property
    def _pass_rows(self) -> int:
        """Rows of a pass through the net."""
        row_bytes = self.engine.memory(1, features=0) - self.engine.memory(0)
        return int(np.clip(self.working_memory // 8 // row_bytes, 1, _ROWS))

    def _formed_rows(self, X: np.ndarray) -> int:
        """Return the rows of a pass whose gradients fit, as far as they are formed."""
        factors = {} if self.views is not None else FactoredGradients(self.engine, X[:1]).factors
        size = sum(block.size for block in self.engine.blocks if block.name not in factors)
        row_bytes = max(1, self.engine.n_labels * size * self.engine.feature_dtype.itemsize)
        return int(np.clip(self.working_memory // 8 // row_bytes, 1, self._pass_rows))

    def _steps(self, row: Rows) -> tuple[int, int]:
        """Return the rows of a tile that stays, and of one that it meets."""
        large = max(1, int(self.working_memory * 0.6 // self._tile_of(row, slice(0, 1)).nbytes))
        return large, max(1, large // 4)

    def tile(self, X: np.ndarray) -> GradientTile:
        """Return the gradients of rows `X`, which have to fit into memory.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.

        Returns
        -------
        tile : GradientTile
            Their gradients.
        """
        whole = {}

        def compute(rows: slice) -> Iterator[tuple[int, dict]]:
            with self.engine.computing(), torch.no_grad():
                found = self._pass(X[rows])
            yield rows.stop - rows.start, found

        limit = self.engine.row_limit
        for rows, found in limit.passes(len(X), compute, self._formed_rows(X), self.engine.needed):
            for name, tensors in found.items():
                if name not in whole:
                    dtypes = [self.dtype or t.dtype for t in tensors]
                    whole[name] = tuple(t.new_empty(len(X), *t.shape[1:], dtype=d) for t, d in zip(tensors, dtypes))
                whole[name], tensors = _alike(whole[name], tensors)
                for place, tensor in zip(whole[name], tensors):
                    place[rows] = tensor
        return GradientTile(whole)

    def _pass(self, X: np.ndarray) -> dict[str, tuple[Tensor, ...]]:
        """Return the gradients of a few rows, averaged over views."""
        found: dict[str, tuple[Tensor, ...]] = {}
        views = self._views(X)
        for view in views:
            gradients = FactoredGradients(self.engine, view)
            n, k, _ = gradients.shape
            for block in self.engine.blocks:
                if len(views) == 1 and block.name in gradients.factors:  # cheaper than any projection
                    found[block.name] = gradients.factors[block.name]
                    continue
                if block.name not in found:
                    zeros = torch.zeros(n, k * block.size, dtype=self.engine.feature_dtype, device=self.engine.device)
                    found[block.name] = (zeros,)
                for rows, part in gradients.parts(block.name, by_tap=self.projection is None):
                    found[block.name][0][rows].add_(part.flatten(1), alpha=1 / len(views))
        for source in self.projection.sources if self.projection is not None else ():
            found[source.name] = (self.projection.of_block(source.name, _formed(found[source.name])),)
        return found

    def _kernel(self, tile: GradientTile, other: GradientTile) -> Tensor:
        norms = tile.squared_norms, other.squared_norms
        with self.engine.computing():
            if self.normalize == "layer":
                scales = map(_inverse_root, norms)
                products = (product.mul_(a[:, None]).mul_(b) for product, a, b in zip(tile.inner(other), *scales))
                total = reduce(Tensor.add_, products).div_(len(norms[0]))
            else:
                total = reduce(Tensor.add_, tile.inner(other))
                if self.normalize:
                    a, b = (_inverse_root(norm.sum(0)) for norm in norms)
                    total.mul_(a[:, None]).mul_(b)
                else:
                    total.div_(self.engine.n_labels)
            return total.pow_(self.degree).to(self.engine.feature_dtype)


def _inverse_root(squares: Tensor) -> Tensor:
    """Return what makes lengths 1, and a finite number for a length of zero: its inner products are zero."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).rsqrt()
