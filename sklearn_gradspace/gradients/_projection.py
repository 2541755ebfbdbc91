"""Projection: the features of each parameter, mapped to fewer by a sparse matrix.

Features and blocks enter; shorter features, and their blocks, leave.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ._blocks import Block
from ._sharing import tensor_of


@dataclass(frozen=True)
class Projection:
    """The map ``f -> A f`` of the features of each block.

    Parameters
    ----------
    sources : tuple of Block
        The blocks of what is projected.
    matrices : tuple of Tensor of shape (n_components, size) or None
        A matrix A in CSR layout for each block; a block for which it is None stays as it is.

    Examples
    --------
    >>> import torch
    >>> from scipy.sparse import csr_array
    >>> from sklearn_gradspace.gradients import Block, Projection
    >>> projection = Projection.of([Block("weight", (3,), 0)], [csr_array([[1.0, 0.0, 1.0]])], torch.float32)
    >>> projection(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[4.]]])
    """

    sources: tuple[Block, ...]
    matrices: tuple[Tensor | None, ...]

    @classmethod
    def of(
        cls, blocks: Sequence[Block], matrices: Sequence[sparse.csr_array | None], dtype: torch.dtype
    ) -> "Projection":
        """Return the projection by SciPy's matrices, in the precision of the features.

        Parameters
        ----------
        blocks : sequence of Block
            The blocks of what is projected.
        matrices : sequence of csr_array of shape (n_components, size) or None
            One a block; None for a block that stays as it is.
        dtype : dtype
            The precision.

        Returns
        -------
        projection : Projection
            On the CPU.
        """
        arrays = [None if m is None else (m.indptr, m.indices, m.data, m.shape) for m in matrices]
        return _unpack(tuple(blocks), arrays).to(torch.device("cpu"), dtype)

    def __reduce__(self):
        # As arrays, which joblib maps into workers and hashes alike everywhere.
        return _unpack, (self.sources, [None if matrix is None else _arrays(matrix) for matrix in self.matrices])

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of what leaves."""
        blocks, start = [], 0
        for source, matrix in zip(self.sources, self.matrices):
            blocks.append(Block(source.name, source.shape if matrix is None else (matrix.shape[0],), start))
            start += blocks[-1].size
        return tuple(blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return sum(array.nbytes for matrix in self.matrices if matrix is not None for array in _arrays(matrix)[:3])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Projection":
        """Return the projection on `device`.

        Parameters
        ----------
        device : device
            Where to.
        dtype : dtype, optional
            The precision; by default as it is.

        Returns
        -------
        projection : Projection
            The same map.
        """
        return Projection(self.sources, tuple(None if m is None else m.to(device, dtype) for m in self.matrices))

    def __call__(self, features: Tensor) -> Tensor:
        """Return features of shape (n, k, n_projected) for those of shape (n, k, n_features)."""
        last = self.blocks[-1]
        projected = features.new_empty((*features.shape[:2], last.start + last.size))
        for source, block in zip(self.sources, self.blocks):
            part = self.of_block(source.name, features[..., source.slice].flatten(0, 1))
            projected[..., block.slice] = part.unflatten(0, features.shape[:2])
        return projected

    def of_block(self, name: str, features: Tensor) -> Tensor:
        """Return features of shape (n, n_components) for those of shape (n, size) of one block.

        Parameters
        ----------
        name : str
            The parameter.
        features : Tensor of shape (n, size)
            Its features.

        Returns
        -------
        projected : Tensor of shape (n, n_components)
            Fewer of them.
        """
        matrix = next(m for source, m in zip(self.sources, self.matrices) if source.name == name)
        return features if matrix is None else (matrix @ features.T).T


def _arrays(matrix: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    starts, columns, values = (
        part.cpu().numpy() for part in (matrix.crow_indices(), matrix.col_indices(), matrix.values())
    )
    return starts, columns, values, tuple(matrix.shape)


def _unpack(sources: tuple[Block, ...], arrays: Sequence[tuple | None]) -> Projection:
    with warnings.catch_warnings():
        # Of what torch has in beta only the product with a dense matrix is used, which tests compare with SciPy's.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        matrices = [
            None if of is None else torch.sparse_csr_tensor(*map(tensor_of, of[:3]), of[3], check_invariants=False)  # type: ignore[call-arg, arg-type]
            for of in arrays
        ]
    return Projection(sources, tuple(matrices))
