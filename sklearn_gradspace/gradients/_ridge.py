"""Kernel ridge regression in place: one matrix in memory, and its leave-one-out residuals in closed form.

A kernel matrix, penalties and targets enter; coefficients and leave-one-out residuals leave.
"""

import torch
from torch import Tensor

from ._passes import slices

_BLOCK = 1024


class NotPositiveDefiniteError(ValueError):
    """A matrix is not positive definite to rounding."""


class KernelRidge:
    """Solutions of ``(K + penalty I) c = targets`` for several penalties.

    Parameters
    ----------
    kernel : Tensor of shape (n, n)
        Symmetric. It is written over: while a solution is looked for its lower triangle holds a Cholesky factor, and
        the upper one what it held before.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import KernelRidge
    >>> kernel, targets = torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([[1.0], [0.0]])
    >>> coefficients, residuals = KernelRidge(kernel.clone()).solve(1.0, targets)
    >>> torch.allclose((kernel + torch.eye(2)) @ coefficients, targets, atol=1e-6)
    True
    """

    def __init__(self, kernel: Tensor) -> None:
        self._matrix, self._diagonal = kernel, kernel.diagonal().clone()

    def solve(self, penalty: float, targets: Tensor, share: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Return coefficients, and what each row's target exceeds the prediction by that is made without the row.

        The latter are ``c_i / (K + penalty I)^-1_ii``, the closed form of leave-one-out residuals. Where a share of a
        row is left out, a row of weight w keeping a weight of ``(1 - share) w``, they are
        ``c_i / (share (K + penalty I)^-1_ii + (1 - share) / penalty)``.

        Parameters
        ----------
        penalty : float
            What is added to the diagonal.
        targets : Tensor of shape (n, k)
            What is to be predicted.
        share : float or Tensor of shape (n,), default=1.0
            What is left out of a row.

        Returns
        -------
        coefficients : Tensor of shape (n, k)
            The solution.
        residuals : Tensor of shape (n, k)
            Targets less the predictions that are made without the row.

        Raises
        ------
        NotPositiveDefiniteError
            If the matrix with this penalty is not positive definite to rounding.
        """
        self._restore(penalty)
        _cholesky(self._matrix)
        coefficients = _backward(self._matrix, _forward(self._matrix, targets.clone()))
        left_out = share * _inverse_diagonal(self._matrix) + (1 - share) / penalty
        return coefficients, coefficients / left_out[:, None]

    def _restore(self, penalty: float) -> None:
        mirror_lower(self._matrix.T)  # the upper one to the lower
        self._matrix.diagonal().copy_(self._diagonal + penalty)


def mirror_lower(matrix: Tensor) -> Tensor:
    """Copy the lower triangle of a square matrix to its upper one, in place."""
    for block in slices(len(matrix), _BLOCK):
        corner = matrix[block, block]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        matrix[block, block.stop :] = matrix[block.stop :, block].T
    return matrix


def _cholesky(matrix: Tensor) -> None:
    """Write the Cholesky factor to the lower triangle; the upper one stays."""
    for block in slices(len(matrix), _BLOCK):
        column, corner = matrix[block.start :, block], matrix[block, block]
        above = corner.triu(1)
        column.sub_(matrix[block.start :, : block.start] @ matrix[block, : block.start].T)
        factor, failed = torch.linalg.cholesky_ex(corner)  # of which the lower triangle is read
        corner.copy_(factor.tril() + above)
        if failed:
            raise NotPositiveDefiniteError
        below = matrix[block.stop :, block]
        below.copy_(torch.linalg.solve_triangular(factor.T, below, upper=True, left=False))


def _forward(factor: Tensor, columns: Tensor) -> Tensor:
    """Return ``L^-1 columns``, in place."""
    for block in slices(len(factor), _BLOCK):
        columns[block] -= factor[block, : block.start] @ columns[: block.start]
        columns[block] = torch.linalg.solve_triangular(factor[block, block], columns[block], upper=False)
    return columns


def _backward(factor: Tensor, columns: Tensor) -> Tensor:
    """Return ``L^-T columns``, in place."""
    for block in reversed([*slices(len(factor), _BLOCK)]):
        columns[block] -= factor[block.stop :, block].T @ columns[block.stop :]
        columns[block] = torch.linalg.solve_triangular(factor[block, block].T, columns[block], upper=True)
    return columns


def _inverse_diagonal(factor: Tensor) -> Tensor:
    """Return the diagonal of ``(L L^T)^-1``, the squared norms of the columns of ``L^-1``, a block at a time."""
    found = []
    for block in slices(len(factor), _BLOCK):
        rest = factor[block.start :, block.start :]
        unit = torch.eye(len(rest), block.stop - block.start, dtype=factor.dtype, device=factor.device)
        found.append(_forward(rest, unit).square().sum(0))
    return torch.cat(found)
