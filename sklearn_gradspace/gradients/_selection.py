"""Selection: per sample and layer, only the entries of largest magnitude stay.

Gradients enter and are written over. The GradNet authors' rule: strictly above the (100 - q)-th percentile.
"""

from collections.abc import Sequence
from math import floor

import torch
from torch import Tensor

from ._blocks import Block


def select_largest(gradients: Tensor, blocks: Sequence[Block], percentile: float) -> Tensor:
    """Zero, in place, what is not strictly above its block's (100 - `percentile`)-th percentile of magnitude.

    Parameters
    ----------
    gradients : Tensor of shape (..., n_params)
    blocks : sequence of Block
    percentile : float in (0, 100]
        Percentage of entries to keep; 100 keeps all of them.

    Returns
    -------
    Tensor of shape (..., n_params)
        `gradients` itself.

    Notes
    -----
    With N entries the percentile lies between the order statistics ``lo`` and ``lo + 1``,
    ``lo = floor((N - 1) (100 - q) / 100)``, and no entry lies strictly between the two, whatever the interpolation. So
    "strictly above the percentile" is "strictly above the order statistic ``lo``", and ties with it all go. Cost: one
    partition of each block.
    """
    if percentile == 100:
        return gradients
    for block in blocks:
        part = gradients[..., block.slice]
        magnitudes = part.abs()
        # Rounded, for (N - 1)(100 - q) / 100 may be an integer that floating point misses.
        lowest = floor(round((block.size - 1) * (100 - percentile) / 100, 9))
        top = torch.topk(magnitudes, block.size - lowest, dim=-1, sorted=False).values
        part.masked_fill_(magnitudes <= top.amin(-1, keepdim=True), 0)
    return gradients
