"""Selection: per sample, scalar and layer, only the entries of largest magnitude stay.

Gradients enter and are written over. The GradNet authors' rule: strictly above the (100 - q)-th percentile.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import floor, sqrt

import numpy as np
import torch
from torch import Tensor

from ._blocks import Block
from ._products import kth_product
from ._scratch import Scratch

SELECTIONS = ("exact", "sampled")

_SAMPLE = 4096  # entries that bracket, or in "sampled" selection set, the threshold
_FEW = 8192  # entries of which partitioning all costs less than bracketing
_MANY = 2**16  # entries of a product from which its factors tell the threshold sooner, on a CPU


def select_largest(
    gradients: Tensor,
    blocks: Sequence[Block],
    percentile: float,
    factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    selection: str = "exact",
    scratch: Scratch | None = None,
) -> Tensor:
    """Zero, in place, what is not strictly above its block's (100 - `percentile`)-th percentile of magnitude.

    Parameters
    ----------
    gradients : Tensor of shape (n, k, n_params)
    blocks : sequence of Block
    percentile : float in (0, 100]
        Percentage of entries to keep; 100 keeps all of them.
    factors : dict of str to (Tensor of shape (n, k, n_out), Tensor of shape (n, n_in)), optional
        For blocks that are outer products of float32 factors on the CPU, these, which tell the threshold without it.
    selection : {"exact", "sampled"}, default="exact"
        "sampled": the threshold is the percentile of 4,096 entries of the block.
    scratch : Scratch, optional

    Returns
    -------
    Tensor of shape (n, k, n_params)
        `gradients` itself.

    Notes
    -----
    With N entries the percentile lies between the order statistics ``lo`` and ``lo + 1``,
    ``lo = floor((N - 1) (100 - q) / 100)``, and no entry lies strictly between the two, whatever the interpolation. So
    "strictly above the percentile" is "strictly above the order statistic ``lo``", and ties with it all go.
    """
    if percentile == 100:
        return gradients
    scratch = scratch or Scratch()
    for block in blocks:
        part = gradients[..., block.slice]
        if selection == "sampled":
            entries = part if block.size <= _SAMPLE else part[..., _positions(block.size, part.device)]
            rank = _rank(entries.shape[-1], percentile)
            thresholds = entries.abs().kthvalue(rank + 1, -1).values
        elif block.size >= _MANY and block.name in (factors or {}):
            thresholds = kth_product(*factors[block.name], _rank(block.size, percentile))
        elif part.device.type == "cpu" and block.size > _FEW:
            _select_rows(_rows(part), _rank(block.size, percentile), scratch)
            continue
        else:
            magnitudes = part.abs()
            _zero_up_to(part, magnitudes, _order_statistic(magnitudes, _rank(block.size, percentile)))
            continue
        _keep_above(part, thresholds)
    return gradients


def _rank(size: int, percentile: float) -> int:
    # Rounded, for (N - 1)(100 - q) / 100 may be an integer that floating point misses.
    return floor(round((size - 1) * (100 - percentile) / 100, 9))


def _order_statistic(values: Tensor, rank: int) -> Tensor:
    n_above = values.shape[-1] - rank
    if n_above <= rank:
        return values.topk(n_above, -1, sorted=False).values.amin(-1)
    return values.topk(rank + 1, -1, largest=False, sorted=False).values.amax(-1)


def _zero_up_to(part: Tensor, magnitudes: Tensor, thresholds: Tensor) -> None:
    part.masked_fill_(magnitudes <= thresholds.unsqueeze(-1), 0)


def _keep_above(part: Tensor, thresholds: Tensor) -> None:
    if part.device.type != "cpu" or part.shape[-1] <= _FEW:
        _zero_up_to(part, part.abs(), thresholds)
        return
    for row, threshold in zip(_rows(part), thresholds.flatten().tolist()):
        if threshold > 0:
            torch.ops.aten.hardshrink.out(row, threshold, out=row)


def _rows(part: Tensor) -> list[Tensor]:
    return [row for of_sample in part for row in of_sample]


def _select_rows(rows: list[Tensor], rank: int, scratch: Scratch) -> None:
    """Select in each row on the CPU, where NumPy partitions and compares faster than torch."""
    magnitudes = scratch.like("magnitudes", rows[0])
    masks = [scratch(f"mask {i}", rows[0].shape, torch.bool, rows[0].device).numpy() for i in range(2)]
    for row in rows:
        torch.abs(row, out=magnitudes)
        threshold = _kth_smallest(magnitudes.numpy(), rank, *masks)
        if threshold > 0:
            torch.ops.aten.hardshrink.out(row, float(threshold), out=row)


def _kth_smallest(values: np.ndarray, rank: int, first: np.ndarray, second: np.ndarray) -> float:
    """Return the order statistic `rank` of many `values`, all non-negative; the masks are written over.

    A sample brackets it between `low` and `high`, so that only entries strictly between the two are partitioned. Counts
    tell whether the bracket holds. What equals its ends is counted, not partitioned: many ties are slow to partition.
    """
    size = len(values)
    sample = values[_positions(size, torch.device("cpu")).numpy()]
    ends = _bracket(size, rank)
    sample.partition(ends)
    low, high = sample[list(ends)]
    n_low = np.count_nonzero(np.less_equal(values, low, out=first))
    if rank < n_low:
        below = np.count_nonzero(np.less(values, low, out=second))
        return low if rank >= below else np.partition(values, rank)[rank]
    n_high = np.count_nonzero(np.less(values, high, out=second))
    if rank >= n_high:
        below = np.count_nonzero(np.less_equal(values, high, out=first))
        return high if rank < below else np.partition(values, rank)[rank]
    between = values[np.flatnonzero(np.greater(second, first, out=second))]
    between.partition(rank - n_low)
    return between[rank - n_low]


def _bracket(size: int, rank: int) -> tuple[int, int]:
    """Return ranks in the sample between which the order statistic lies, but for one time in thousands."""
    share = rank / (size - 1)
    spread = 3.5 * sqrt(_SAMPLE * share * (1 - share)) + 1
    low, high = floor(share * (_SAMPLE - 1) - spread), floor(share * (_SAMPLE - 1) + spread) + 1
    return max(low, 0), min(high, _SAMPLE - 1)


@lru_cache(maxsize=256)
def _positions(size: int, device: torch.device) -> Tensor:
    """Return the positions of the sample in a block, the same each time; random, since strides meet kernels' shapes."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(size, (_SAMPLE,), generator=generator).sort().values.to(device)
