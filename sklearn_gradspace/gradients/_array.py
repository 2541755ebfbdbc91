"""The lazy array: a table of gradient features whose rows are computed when they are asked for.

Data and a map to features enter; the array passes through scikit-learn and skorch as an (n, K · P) matrix would.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ._blocks import Block
from ._factored import FactoredGradients
from ._factored_features import FactoredFeatures
from ._features import GradientFeatures
from ._memory import require_memory
from ._passes import Result, over_batches, slices
from ._user import called


class GradientArray:
    """Gradient features of shape (n_samples, n_labels * n_features), label-major, computed batch by batch.

    Column ``k * n_features + p`` of a row is feature p of the row under candidate label k.

    Parameters
    ----------
    features : GradientFeatures
        The map from rows of data to features.
    X : ndarray of shape (n_samples, ...)
        The data; it is referred to, not copied.
    augment : callable, optional
        What :meth:`augmented` applies to rows: ``augment(X, generator)`` takes an array and a NumPy generator, and
        returns other rows of the same shape.

    Attributes
    ----------
    max_bytes : int
        Size above which `__array__` refuses to compute the whole; :meth:`toarray` does not refuse up to the memory
        that is free.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace import GradientFeaturizer
    >>> features = GradientFeaturizer(torch.nn.Linear(4, 3), percentile=100).fit_transform(torch.eye(4).numpy())
    >>> features
    <GradientArray of shape (4, 36), 3 labels, float32, computed on cpu>
    >>> features[:2].toarray().shape
    (2, 36)
    """

    ndim = 2
    device = "cpu"  # in the sense of the array API: what leaves as an array is NumPy's
    max_bytes = 2**32

    def __init__(self, features: GradientFeatures, X: np.ndarray, augment: Callable | None = None) -> None:
        self.features, self.X, self.augment = features, X, augment

    @property
    def n_labels(self) -> int:
        """Number of views of a row, one for each candidate label."""
        return self.features.n_labels

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The columns of each parameter, within one candidate label."""
        return self.features.blocks

    @property
    def shape(self) -> tuple[int, int]:
        """(n_samples, n_labels * n_features)."""
        return len(self.X), self.n_labels * self.features.n_features

    @property
    def dtype(self) -> np.dtype:
        """Precision of the features."""
        return np.dtype(str(self.features.engine.feature_dtype).removeprefix("torch."))

    @property
    def compute_device(self) -> torch.device:
        """Where the features are computed."""
        return self.features.engine.device

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the entries would take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.X)

    def __repr__(self) -> str:
        kind = f"{self.n_labels} labels, {self.dtype}, computed on {self.compute_device}"
        return f"<GradientArray of shape {self.shape}, {kind}>"

    def __getitem__(self, index):
        """Return rows as a lazy array, or anything narrower as an ndarray."""
        index = index if isinstance(index, tuple) else (index,)
        if len(index) > 2:
            raise IndexError(f"too many indices: a GradientArray has 2 axes, but {len(index)} were indexed")
        rows, columns = (*index, slice(None))[:2]
        if not isinstance(rows, slice) and rows is not Ellipsis:
            rows = np.asarray(rows, dtype=int if np.size(rows) == 0 else None)
            if rows.ndim > 1:
                raise IndexError(f"rows are numbered by {rows.ndim} axes, but a GradientArray has rows along one.")
            if rows.ndim == 0:
                return np.asarray(self[rows[None]])[0, columns]
        taken = GradientArray(self.features, self.X[rows], self.augment)
        if columns is Ellipsis or (isinstance(columns, slice) and columns == slice(None)):
            return taken
        pairs = isinstance(rows, np.ndarray) and np.ndim(columns) == 1
        return np.asarray(taken)[np.arange(len(taken)) if pairs else slice(None), columns]

    def take(self, indices, axis: int = 0, out=None, mode: str = "raise"):
        """Return rows, as NumPy's function of the name expects it; along the other axis an ndarray.

        Parameters
        ----------
        indices : array-like of int
            Numbers of rows, or of columns.
        axis : int, default=0
            0 for rows.
        out : ndarray, optional
            As in NumPy, for columns.
        mode : str, default="raise"
            As in NumPy, for columns.

        Returns
        -------
        taken : GradientArray or ndarray
            Rows as a lazy array.
        """
        return self[indices] if axis == 0 else np.asarray(self).take(indices, axis, out, mode)  # type: ignore[call-overload]

    def augmented(self, generator: np.random.Generator) -> "GradientArray":
        """Return the features of augmented rows, or the array itself where it has no augmentation.

        Parameters
        ----------
        generator : Generator
            NumPy's, which `augment` draws from.

        Returns
        -------
        augmented : GradientArray
            As many rows.
        """
        if self.augment is None:
            return self
        X = np.asarray(called("augment", self.augment, self.X.copy(), generator))  # it may write over what it gets
        if X.shape != self.X.shape or X.dtype.kind not in "buif":
            raise ValueError(
                f"augment returned rows of shape {X.shape} and dtype {X.dtype} for rows of shape {self.X.shape}: they "
                "have to be real numbers of the same shape."
            )
        if not np.isfinite(X).all():
            raise ValueError("augment returned NaN or infinity.")
        return GradientArray(self.features, X)

    def outputs(self) -> Tensor:
        """Return what the net itself says, of shape (n_samples, n_outputs), on the device.

        Returns
        -------
        outputs : Tensor of shape (n_samples, n_outputs)
            The net's outputs.
        """
        engine = self.features.engine
        parts = list(over_batches(lambda batch: engine.outputs(batch.X), self, n_jobs=1)) or [engine.outputs(self.X)]
        return torch.cat(parts)

    def view(self, labels: Tensor | None = None) -> Tensor:
        """Compute features of all rows at once, on the device.

        Parameters
        ----------
        labels : Tensor of shape (n_samples,), optional
            One candidate label a row; by default all.

        Returns
        -------
        features : Tensor of shape (n_samples, n_features) or (n_samples, n_labels, n_features)
            Of one label a row, or of all.
        """
        return self.features(self.X, labels)

    def parts(self, labels: Tensor | None = None) -> Iterator[Tensor]:
        """Compute features of all rows, some at a time, each valid until the next are asked for.

        Parameters
        ----------
        labels : Tensor of shape (n_samples,), optional
            One candidate label a row; by default all.

        Returns
        -------
        parts : iterator of Tensor of shape (part, n_labels, n_features), or (part, 1, n_features) for one label a row
            Features of consecutive rows.
        """
        return self.features.parts(self.X, labels)

    def factored(
        self, apply: Callable[[FactoredFeatures], Result], labels: Tensor | None = None
    ) -> Iterator[Result] | None:
        """Apply a function to features of consecutive rows that are not formed, of fewer rows where memory runs out.

        Parameters
        ----------
        apply : callable
            From :class:`FactoredFeatures` of some rows to anything.
        labels : Tensor of shape (n_samples,), optional
            One candidate label a row; by default all.

        Returns
        -------
        results : iterator or None
            None where the features are more than gradients divided by a number for each block or, for all labels, for
            each entry.
        """
        divisors, engine = self.features.divisors, self.features.engine
        if divisors is None or (labels is not None and isinstance(divisors[0], Tensor)):
            return None  # for a single view of each row it takes less to divide gradients than weights

        def compute(rows: slice) -> Iterator[tuple[int, Result]]:
            X = self.X[rows]
            of_rows = self.features.engine_labels(X, None if labels is None else labels[rows])
            gradients = FactoredGradients(engine, X, of_rows)
            yield len(X), apply(FactoredFeatures(gradients, engine.blocks, divisors))

        passes = engine.row_limit.passes(len(self), compute, self.features.batch_size, engine.needed)
        return (result for _, result in passes)

    def batches(self) -> Iterator["GradientArray"]:
        """Return the rows in consecutive parts that are computed at a time.

        Returns
        -------
        parts : iterator of GradientArray
            One after the other.
        """
        return (self[rows] for rows in slices(len(self), self.features.batch_size))

    def toarray(self, n_jobs: int | None = None, verbose: int = 0) -> np.ndarray:
        """Compute everything, as an ndarray of shape (n_samples, n_labels * n_features).

        Parameters
        ----------
        n_jobs : int, optional
            Jobs that share the batches.
        verbose : int
            Whether to show a progress bar.

        Returns
        -------
        dense : ndarray of shape (n_samples, n_labels * n_features)
            The features.
        """
        require_memory(self.nbytes, f"a dense array of shape {self.shape}")
        whole = np.empty(self.shape, self.dtype)
        start = 0
        for part in over_batches(dense, self, n_jobs, verbose):
            whole[start : start + len(part)] = part
            start += len(part)
        return whole

    def tocsr(self, n_jobs: int | None = None, verbose: int = 0) -> sparse.csr_array:
        """Compute everything, as a sparse array of the non-zero entries.

        Parameters
        ----------
        n_jobs : int, optional
            Jobs that share the batches.
        verbose : int
            Whether to show a progress bar.

        Returns
        -------
        features : csr_array of shape (n_samples, n_labels * n_features)
            The features.
        """
        share = self.features.percentile / 100 if self.features.projection is None else 1
        kept = self.size * share
        # The parts and the whole that they are joined to exist at the same time.
        require_memory(2 * kept * (self.dtype.itemsize + 4), f"a sparse array of shape {self.shape}")
        parts = list(over_batches(_sparse, self, n_jobs, verbose))
        return sparse.vstack(parts, format="csr") if parts else sparse.csr_array(self.shape, dtype=self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("a GradientArray holds no numbers to share: each conversion computes them.")
        if self.nbytes > self.max_bytes:
            raise MemoryError(
                f"this step asks for all {self.shape[0]} x {self.shape[1]} gradient features at once, "
                f"{self.nbytes / 2**30:.1f} GiB. Use GradNetClassifier, which takes them batch by batch, "
                "GradientFeaturizer(output='csr') where the step takes sparse input, fewer layers or rows, or raise "
                "GradientArray.max_bytes."
            )
        return self.toarray().astype(dtype or self.dtype, copy=False)

    def __array_namespace__(self, *, api_version=None):
        # scikit-learn asks for it under array_api_dispatch, and knows NumPy by this name.
        from sklearn.utils._array_api import np_compat

        return np_compat


def dense(batch: GradientArray) -> np.ndarray:
    """Return the features of a batch, of shape (n, n_labels * n_features)."""
    return batch.view().flatten(1).cpu().numpy()


def _sparse(batch: GradientArray) -> sparse.csr_array:
    return sparse.vstack([sparse.csr_array(part.flatten(1).cpu().numpy()) for part in batch.parts()], format="csr")
