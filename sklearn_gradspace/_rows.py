"""Data that skorch fetches by whole batches.

Arrays, sparse or lazy rows and labels enter; batches of them leave. skorch fetches row by row, which costs a sparse
matrix or a lazy array one computation a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from skorch.dataset import Dataset
from torch import Tensor


def as_array(X):
    """Return a tensor as an array, an array in the machine's order of bytes, and anything else as it is."""
    if isinstance(X, Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # NumPy has no bfloat16
    if isinstance(X, np.ndarray) and not X.dtype.isnative:
        return X.astype(X.dtype.newbyteorder("="))
    return X


def check_sample_shape(X, fitted: tuple[int, ...] | None) -> None:
    """Raise ValueError where samples are not like those of `fit`, unless these are vectors, which have features."""
    if fitted is None or not hasattr(X, "shape"):
        return
    shape = X.shape[1:]
    if max(len(shape), len(fitted)) > 1 and (len(shape), shape[:1]) != (len(fitted), fitted[:1]):
        raise ValueError(f"X has samples of shape {tuple(shape)}; the net was fitted to {fitted}.")


def check_numeric(X: np.ndarray) -> np.ndarray:
    """Return `X` in a precision that torch has, or say that it holds no numbers, such as dates."""
    if X.dtype.kind not in "buif":
        raise ValueError(f"X must hold real numbers, not {X.dtype}.")
    return X.astype(np.float64) if X.dtype.itemsize > 8 else X


@dataclass(frozen=True)
class WeightedRows:
    """Rows of data with a weight each, as one thing to index."""

    X: Any
    weight: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return self.X.shape

    def __len__(self) -> int:
        return self.X.shape[0]

    def __getitem__(self, index) -> "WeightedRows":
        rows = index[0] if isinstance(index, tuple) else index
        return WeightedRows(self.X[rows], self.weight[rows])


class RowDataset(Dataset):
    """skorch's dataset, with ``__getitems__`` for a whole batch.

    Parameters
    ----------
    X : ndarray, sparse array, GradientArray, WeightedRows or whatever skorch's Dataset takes
    y : ndarray of shape (n_samples,), optional
    """

    def __init__(self, X, y=None) -> None:
        super().__init__(X, y, length=X.shape[0] if hasattr(X, "shape") else None)

    def __getitems__(self, indices: list[int]) -> tuple:
        """Return ``(X, y)`` for the rows `indices`; sparse rows become dense."""
        rows = np.asarray(indices)
        if isinstance(self.X, Mapping) or not hasattr(self.X, "shape"):
            return torch.utils.data.default_collate([self[i] for i in indices])
        y = torch.zeros(len(rows)) if self.y is None else torch.as_tensor(np.asarray(self.y)[rows])
        return _dense(self.X[rows]), y


def whole_batch(batch):
    """Collate nothing: the dataset has returned a batch already."""
    return batch


def _dense(rows):
    if isinstance(rows, WeightedRows):
        return WeightedRows(_dense(rows.X), rows.weight)
    return rows.toarray() if sparse.issparse(rows) else rows
