"""A fixed choice of edges: which columns of a gradient are features.

Masks of parameters and the blocks of a gradient enter; one mask of all columns, and the blocks that it keeps, leave.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ._blocks import Block


def as_mask(edges: object, blocks: Sequence[Block]) -> np.ndarray | None:
    """Return which columns `edges` keeps, of shape (n_params,), or None where these are all.

    Parameters
    ----------
    edges : dict of str to bool array of the parameter's shape, bool array of shape (n_params,), or None
        Of parameters that a dict leaves out all entries are kept.
    blocks : sequence of Block
    """
    if edges is None:
        return None
    by_name = {block.name: block for block in blocks}
    n_params = sum(block.size for block in blocks)
    if not isinstance(edges, Mapping):
        columns = as_bool(edges, (n_params,), "edges")
    else:
        unknown = [name for name in edges if name not in by_name]
        if unknown:
            raise ValueError(f"edges names {unknown}, but the parameters that `layers` chooses are {list(by_name)}.")
        columns = np.ones(n_params, bool)
        for name, entries in edges.items():
            block = by_name[name]
            columns[block.slice] = as_bool(entries, block.shape, f"edges[{name!r}]").ravel()
    if not columns.any():
        raise ValueError("edges keeps no entry of any parameter: at least one has to be True.")
    return None if columns.all() else columns


def kept_blocks(mask: np.ndarray, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks of what is kept, without empty ones; a block that is kept in part has one axis."""
    kept, start = [], 0
    for block in blocks:
        size = int(np.count_nonzero(mask[block.slice]))
        if size:
            kept.append(Block(block.name, block.shape if size == block.size else (size,), start))
        start += size
    return tuple(kept)


def entry_names(mask: np.ndarray, block: Block) -> list[str]:
    """Return names such as ``"conv1.weight[0,2,4,4]"`` of the entries of a gradient's block that are kept."""
    kept = np.argwhere(mask[block.slice].reshape(block.shape)).tolist()
    return [f"{block.name}[{','.join(map(str, index))}]" for index in kept]


def as_bool(entries: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return an array, or a tensor, of truth values of a shape as an array; say what else `name` is."""
    try:
        array = entries.detach().cpu().numpy() if isinstance(entries, Tensor) else np.asarray(entries)
    except ValueError:  # lists of several lengths
        array = np.empty(0)
    if array.dtype != bool or array.shape != shape:
        raise ValueError(
            f"{name} must be an array of True and False of shape {shape}; it is of shape {array.shape} and dtype "
            f"{array.dtype}."
        )
    return array
