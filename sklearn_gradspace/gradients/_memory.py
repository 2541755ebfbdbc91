"""Memory: refusing what cannot fit, and noticing that something did not."""

import os

import torch

_CPU = torch.device("cpu")


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


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator has no error type of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
