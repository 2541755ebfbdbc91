"""Passes over data: rows some at a time, and a function of a batch, applied to all batches of a lazy array.

A function and an array enter; its results leave in order. joblib runs the jobs, tqdm shows how far it is.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from typing import TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from tqdm.auto import tqdm

from ._outputs import counted_from

Result = TypeVar("Result")


def slices(n: int, step: int) -> Iterator[slice]:
    """Yield consecutive slices of `n` rows, `step` of them each but for the last."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def progress(n: int, what: str, verbose: int, unit: str = "row") -> tqdm:
    """Return a progress bar over `n` rows, in a terminal or a notebook; silent where `verbose` is 0."""
    return tqdm(total=n, desc=what, disable=not verbose, unit=unit)


def over_batches(
    function: Callable[..., Result], array, n_jobs: int | None = None, verbose: int = 0, what: str = "gradients"
) -> Iterator[Result]:
    """Yield ``function(batch)`` for the consecutive batches of the lazy array `array`.

    Parameters
    ----------
    function : callable
    array : GradientArray
    n_jobs : int, optional
        As in joblib: None is one, unless its context says otherwise. They are threads unless that does.
    verbose : int
        0 is silent; else a progress bar.
    what : str
        What the bar says.
    """
    n_batches = -(-len(array) // array.features.batch_size)
    tasks = zip(range(0, len(array), array.features.batch_size), array.batches())
    if n_batches == 1 or _n_jobs(n_jobs) == 1:
        results = starmap(partial(_at_row, function), tasks)
    else:
        results = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(
            starmap(delayed(partial(_at_row, function)), tasks)
        )
    yield from tqdm(results, total=n_batches, desc=what, disable=not verbose)


def _at_row(function: Callable[..., Result], start: int, batch) -> Result:
    with counted_from(start):
        return function(batch)


def _n_jobs(n_jobs: int | None) -> int:
    # A task of dask has a backend and no number of jobs: joblib would count the cluster, and send batches around in it.
    n_jobs = get_active_backend()[1] if n_jobs is None else n_jobs
    return 1 if n_jobs is None else effective_n_jobs(n_jobs)
