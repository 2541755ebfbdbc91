"""Memory that is used again: arrays that live until the next of the same name is asked for.

The operating system hands out a fresh page at the first write to it, which takes several times as long as the write.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from threading import local

import torch
from torch import Tensor

from ._memory import empty

_KEPT_BYTES = 2**25  # what is larger goes back to the system


class Scratch:
    """Named buffers, apart for each thread, each as large as the largest that was asked for under its name."""

    def __init__(self) -> None:
        self._local = local()

    def __reduce__(self):
        return Scratch, ()

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised tensor, which shares memory with the last of this name."""
        with self.lent(name, shape, dtype, device) as tensor:
            return tensor

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """Return an uninitialised contiguous tensor of the shape and kind of `tensor`."""
        return self(name, tuple(tensor.shape), tensor.dtype, tensor.device)

    @contextmanager
    def lent(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """Lend an uninitialised tensor, which nobody else gets as long as the context lasts."""
        if device.type != "cpu":  # whose allocators keep memory themselves
            yield empty(shape, dtype, device)
            return
        buffers, size = vars(self._local), prod(shape)
        key = f"{name} {dtype}"
        buffer = buffers.pop(key, None)
        if buffer is None or buffer.numel() < size:
            buffer = None  # given back before more is taken
            buffer = empty((size,), dtype, device)
        try:
            yield buffer[:size].view(shape)
        finally:
            if buffer.nbytes <= _KEPT_BYTES:
                buffers[key] = buffer
