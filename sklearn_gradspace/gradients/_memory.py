"""Memory: asking for it, refusing what cannot fit, and going on with fewer rows where something did not."""

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from math import prod
from threading import local
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._outputs import NotFiniteError, check_finite, counted_from
from ._user import warn_user

Result = TypeVar("Result")

_CPU = torch.device("cpu")
_LARGE = 2**22  # bytes from which on NumPy asks the system for large pages
_LARGEST_OF_HEAP = 2**25 - 2**12  # bytes of a block, with what belongs to it, whose return the C library takes note of
LINE_BYTES = 64  # of a line of a CPU's cache


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor; on a CPU NumPy asks for its memory.

    It has Linux give large pages, of which the first are written to in a quarter of the time that torch's memory takes.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    device : device
    """
    n = prod(shape)
    size = n * dtype.itemsize
    with torch.inference_mode(False):  # what is made in that mode could not be written to outside of it
        if device.type != "cpu" or size < _LARGE:
            return torch.empty(shape, dtype=dtype, device=device)
        memory = np.empty(size + LINE_BYTES, np.uint8)
        return torch.frombuffer(memory, dtype=dtype, count=n, offset=-memory.ctypes.data % LINE_BYTES).view(shape)


def keep_freed_memory() -> None:
    """Have the C library of Linux keep up to 64 MiB of what is freed for what is asked for next.

    It gives memory back to the system where more than twice the largest block is free that it has got back so far, and
    knows of none beyond 32 MiB. As long as all were small, a pass writes to new pages again and again, for up to a
    quarter of its time. A block that is never written to takes no memory.
    """
    torch.empty(_LARGEST_OF_HEAP, dtype=torch.uint8, device="cpu")


def available_bytes() -> int | None:
    """Return the main memory that is free, in bytes, or None where the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on `device`, in bytes, or None where the system does not tell."""
    if device.type != "cuda":
        return available_bytes()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
    return torch.cuda.mem_get_info(device)[0] + kept


_WAY_OUT = (
    "Use output='lazy', which GradNetClassifier takes batch by batch, output='csr', a smaller percentile, fewer layers "
    "or fewer rows."
)


def require_memory(n_bytes: float, what: str, way_out: str = _WAY_OUT, device: torch.device = _CPU) -> None:
    """Raise MemoryError, naming the way out, if `n_bytes` for `what` are more than is free on `device`."""
    free = free_bytes(device)
    if free is not None and n_bytes > free:
        raise MemoryError(f"{what} takes {n_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free. {way_out}")


# The CPU's allocator; pinned memory and kernels that are loaded; the workspaces of cuBLAS, cuSOLVER and cuDNN.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Allocations that are not those of torch's allocators on devices have no error type of their own.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


class PeakBytes(TorchDispatchMode):
    """Within this context, counts the memory that torch's operations give out and do not get back.

    Attributes
    ----------
    n_bytes : int
        The most that there was at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = self._now = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._count((args, kwargs), 0)  # what was there before
        returned = func(*args, **kwargs)
        self._count(returned, 1)
        return returned

    def _count(self, tensors, factor: int) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self._held:
                self._held[storage._cdata] = factor * storage.nbytes()
                self._now += factor * storage.nbytes()
                self.n_bytes = max(self.n_bytes, self._now)
                weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, address: int) -> None:
        self._now -= self._held.pop(address)


class RowLimit:
    """How many rows are computed at a time: half as many from where memory runs out on; and whether all are finite.

    Parameters
    ----------
    device : device
        Where they are computed.

    Attributes
    ----------
    rows : int
        The limit, for all passes that follow.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.rows, self._local = device, 2**31, local()

    def check_finite(self, outputs: Tensor) -> None:
        """Name the rows of outputs that are not finite.

        At once on a CPU. A look waits for other devices, so there it is at the end of the call of `passes`.

        Parameters
        ----------
        outputs : Tensor of shape (n, n_outputs)
            Of a pass.
        """
        looks = getattr(self._local, "looks", None)
        if looks is None or outputs.device.type == "cpu":
            check_finite(outputs)
        else:
            looks.append(torch.isfinite(outputs).all(1))

    def _collecting(self, steps: Iterator[Result], looks: list[Tensor]) -> Iterator[Result]:
        """Yield `steps`; what is to be looked at in the end of each goes to `looks`."""
        while True:
            outer, self._local.looks = getattr(self._local, "looks", None), looks
            try:
                step = next(steps)
            except StopIteration:
                return
            finally:
                self._local.looks = outer
            yield step

    def passes(
        self,
        n: int,
        compute: Callable[[slice], Iterator[tuple[int, Result]]],
        most: int | None = None,
        needed: Callable[[], str] = lambda: "more than there is",
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what `compute` makes of `n` rows.

        Parameters
        ----------
        n : int
        compute : callable
            Gets consecutive rows, and yields numbers of rows and what it made of these. What it yielded is not computed
            again; where it fails before that, it is as if it had not been called.
        most : int, optional
            Rows at a time; by default all.
        needed : callable
            What a single row takes, for the error where that does not fit.

        Yields
        ------
        rows : slice
        result

        Raises
        ------
        NotFiniteError
            In the end, for outputs that were to be looked at then.
        """
        start = 0
        looks: list[tuple[int, Tensor]] = []
        while start < n:
            size = min(n, most or n, self.rows)
            batch, of_batch = slice(start, min(start + size, n)), list[Tensor]()
            try:
                with counted_from(start):
                    for rows, result in self._collecting(compute(batch), of_batch):
                        looks += [(batch.start, finite) for finite in of_batch]
                        of_batch.clear()
                        yield slice(start, start + rows), result
                        start += rows
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise MemoryError(f"a pass of a single row takes {needed()}") from error
            # Outside of the handler, where the error no longer holds what the failed pass had allocated.
            self.rows = min(self.rows, size // 2)  # another pass may have halved it more
            warn_user(
                f"memory ran out on {self.device} with {size} rows at a time: {self.rows} are taken from here on. The "
                "numbers stay the same. A smaller batch_size, or working_memory of scikit-learn, avoids the attempts.",
                RuntimeWarning,
            )
            _free_memory(self.device)
        if looks and not torch.cat([finite for _, finite in looks]).all():
            rows_in_turn = (row for first, finite in looks for row in enumerate(finite.tolist(), first))
            raise NotFiniteError(sorted({row for row, is_finite in rows_in_turn if not is_finite}))


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
