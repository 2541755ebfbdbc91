"""Order statistics of an outer product that is not formed.

The factors of a linear layer's gradients enter; for each, the magnitude that has so many others below it leaves. All of
it is exact, since a product of two floats fits a double.
"""

import numpy as np
import torch
from torch import Tensor

_FEW = 1024  # products that are formed and partitioned in the end
_SAMPLE = 1024  # products that bracket the order statistic in the beginning
# Multiples of irrational numbers are spread more evenly than random ones, and are the same each time.
_ROWS, _COLUMNS = (np.arange(_SAMPLE) * step % 1 for step in (2**0.5, 3**0.5))


def kth_product(deltas: Tensor, inputs: Tensor, rank: int) -> Tensor:
    """Return the order statistic `rank` of ``|delta_i a_j|``, as float32 rounds these products.

    Parameters
    ----------
    deltas : Tensor of shape (n, k, n_out)
    inputs : Tensor of shape (n, n_in)
        Both in float32, on the CPU.
    rank : int
        Number of entries, of n_out times n_in, below the one sought; ties count.

    Returns
    -------
    Tensor of shape (n, k)
    """
    found = np.empty(deltas.shape[:2], np.float32)
    of_samples, of_inputs = deltas.abs().numpy(), inputs.abs().numpy()
    with np.errstate(over="ignore"):  # where the product overflows, so does its order statistic
        for i, of_sample in enumerate(of_samples):
            for j, delta in enumerate(of_sample):
                found[i, j] = _of_row(delta, of_inputs[i], rank)
    return torch.from_numpy(found)


def _of_row(queries: np.ndarray, ordered: np.ndarray, rank: int) -> float:
    """Return the order statistic of one sample, by counts of what a bound leaves below it.

    The counts take a binary search in the longer factor for each entry of the shorter. The bounds are floats, so that
    the comparison of a double quotient with an entry is right.
    """
    n_zeros = queries.size * ordered.size
    queries, ordered = queries[queries > 0], ordered[ordered > 0]
    n_zeros -= queries.size * ordered.size
    if rank < n_zeros:
        return 0.0
    rank -= n_zeros
    if len(queries) > len(ordered):
        queries, ordered = ordered, queries
    queries, ordered = queries.astype(float), np.sort(ordered).astype(float)  # sorting floats is twice as fast

    def below(bound: float) -> np.ndarray:
        return np.searchsorted(ordered, bound / queries, side="right")

    low, at_low = 0.0, np.zeros(len(queries), int)
    high, at_high = queries.max() * ordered[-1], np.full(len(queries), len(ordered))
    guesses = _sampled(queries, ordered, rank)
    while (n_between := at_high.sum() - (n_low := at_low.sum())) > _FEW:
        if guesses is None:
            # Between close bounds the products are spread evenly.
            share, margin = (rank + 0.5 - n_low) / n_between, 2 / n_between**0.5
            guesses = [low + (high - low) * part for part in (share - margin, share + margin)]  # type: ignore[assignment]
        before = n_between
        for guess in map(float, map(np.float32, guesses)):
            if low < guess < high:
                counts = below(guess)
                if counts.sum() <= rank:
                    low, at_low = guess, counts
                else:
                    high, at_high = guess, counts
        guesses = None
        if at_high.sum() - at_low.sum() > before / 2:
            break
    lengths = at_high - at_low
    places = np.arange(lengths.sum()) + np.repeat(at_low - np.cumsum(lengths) + lengths, lengths)
    products = ordered[places] * np.repeat(queries, lengths)
    rank -= at_low.sum()
    products.partition(rank)
    return products[rank]


def _sampled(queries: np.ndarray, ordered: np.ndarray, rank: int) -> np.ndarray:
    """Return products between which the order statistic lies, but for one time in thousands."""
    products = queries[(_ROWS * len(queries)).astype(int)] * ordered[(_COLUMNS * len(ordered)).astype(int)]
    share = rank / (queries.size * ordered.size)
    spread = 3.5 * (_SAMPLE * share * (1 - share)) ** 0.5 + 1
    ends = [min(max(int(share * _SAMPLE + side), 0), _SAMPLE - 1) for side in (-spread, spread)]
    products.partition(ends)
    return products[ends]
