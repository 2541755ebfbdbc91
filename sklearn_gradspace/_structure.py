"""The block structure of GradNet: which hidden units see which layers' gradients.

Blocks and the parameter `structure` enter; groups of columns leave.
"""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np

from .gradients import Block


def group_columns(blocks: Sequence[Block], structure: str | Sequence[Sequence[str]]) -> list[list[slice]]:
    """Return for each group of hidden units the columns that it sees.

    Parameters
    ----------
    blocks : sequence of Block
        The columns of each parameter.
    structure : {"layer", "adjacent", "full"} or sequence of sequences of str
        "layer": a group a layer. "adjacent": a group for every two consecutive layers. "full": one group that sees all.
        Otherwise the names of the layers, or of the parameters, of each group.
    """
    layers: dict[str, list[Block]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    names = list(layers)
    if isinstance(structure, str):
        groupings = {
            "layer": [[name] for name in names],
            "adjacent": [list(pair) for pair in pairwise(names)] or [names],
            "full": [names],
        }
        if structure not in groupings:
            raise ValueError(
                f"structure={structure!r} is none of {', '.join(groupings)}; or give a list of lists of layer names."
            )
        structure = groupings[structure]
    listed = isinstance(structure, Sequence) and all(
        isinstance(g, Sequence) and not isinstance(g, str) for g in structure
    )
    if not listed or not structure:
        raise ValueError(f"structure={structure!r} is neither a name nor a list of lists of layer names.")
    known = {block.name: [block] for block in blocks} | layers
    missing = [name for group in structure for name in group if name not in known]
    if missing or not all(structure):
        raise ValueError(f"structure names {missing or 'an empty group'}; the layers are {names}.")
    return [[block.slice for name in group for block in known[name]] for group in structure]


def blocks_of_sizes(blocks: Sequence[int | Block] | None, n_features: int) -> tuple[Block, ...]:
    """Return blocks for features of a plain array, from their sizes; one block where none are given."""
    if blocks is None:
        return (Block("features", (n_features,), 0),)
    listed = isinstance(blocks, Sequence) or (isinstance(blocks, np.ndarray) and blocks.ndim == 1)
    sizes = listed and all(isinstance(block, Block) or (isinstance(block, Integral) and block > 0) for block in blocks)
    if not sizes:
        raise ValueError(f"blocks={blocks!r} is no sequence of positive integers or Blocks.")
    made, start = [], 0
    for i, block in enumerate(blocks):
        name, shape = (block.name, block.shape) if isinstance(block, Block) else (f"block{i}.features", (int(block),))
        made.append(Block(name, shape, start))
        start += made[-1].size
    if start != n_features:
        raise ValueError(f"blocks add up to {start} features, but there are {n_features} for each candidate label.")
    return tuple(made)
