"""Random projection: scikit-learn's sparse matrices for the features of each parameter.

Blocks and a number of dimensions enter; a `Projection` leaves.
"""

from collections.abc import Sequence
from math import ceil, sqrt
from numbers import Integral

import numpy as np
import torch
from scipy import sparse
from sklearn.random_projection import SparseRandomProjection

from .gradients import Block, Projection, require_memory


def random_projection(
    blocks: Sequence[Block],
    n_components: int | float,
    random_state: np.random.RandomState,
    dtype: torch.dtype,
    column_entries: int | None = None,
) -> Projection | None:
    """Return a random projection of each block, or None where no block is larger than what it is projected to.

    Parameters
    ----------
    blocks : sequence of Block
    n_components : int or float
        Dimensions that a block is projected to, or their share of its own.
    random_state : RandomState
    dtype : dtype
        Precision of the features.
    column_entries : int, optional
        Mean number of entries in a column of a matrix; by default those of scikit-learn's "auto", which make
        ``1 / sqrt(size)`` of all.
    """
    sizes = [n_components if isinstance(n_components, Integral) else ceil(n_components * b.size) for b in blocks]
    projected = [size < block.size for size, block in zip(sizes, blocks)]
    if not any(projected):
        return None
    densities = [1 / sqrt(b.size) if column_entries is None else column_entries / s for s, b in zip(sizes, blocks)]
    # SciPy's and torch's copies of a block's matrix exist at the same time.
    n_entries = sum(d * s * b.size for d, s, b, on in zip(densities, sizes, blocks, projected) if on)
    way_out = "Project to fewer dimensions, or choose fewer `layers`."
    require_memory(40 * n_entries, f"projection={n_components!r}, a sparse matrix of {n_entries:.0f} entries,", way_out)
    matrices = []
    for block, size, density, on in zip(blocks, sizes, densities, projected):
        projector = SparseRandomProjection(size, density=min(density, 1), random_state=random_state) if on else None
        # At density 1 it is an array.
        matrices.append(sparse.csr_array(projector.fit(sparse.csr_array((1, block.size))).components_) if on else None)
    return Projection.of(blocks, matrices, dtype)
