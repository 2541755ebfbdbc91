"""The modes in which gradients are computed, whatever the caller's are."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import Any

import torch

_SWITCHING = RLock()  # torch's switches for TF32 are the process's; a device's work is in one queue anyway


def computing(device: torch.device, tf32: bool) -> AbstractContextManager:
    """Return a context without inference mode and autocast, and with TF32 on a CUDA device only if it is asked for."""
    if device.type == "cuda":
        return _on_cuda(tf32)
    return _without_autocast(device.type) if torch.is_autocast_enabled(device.type) else torch.inference_mode(False)


@contextmanager
def _without_autocast(device_type: str) -> Iterator[None]:
    with torch.autocast(device_type, enabled=False), torch.inference_mode(False):
        yield


@contextmanager
def _on_cuda(tf32: bool) -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn  # it makes its switches when it is imported, which mypy does not see
    switches = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    with _SWITCHING, _without_autocast("cuda"):
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "tf32" if tf32 else "ieee"
            yield
        finally:
            for switch, value in zip(switches, before):
                switch.fp32_precision = value
