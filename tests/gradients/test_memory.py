"""What cannot fit is refused before it is begun."""

import builtins
import os
import tracemalloc

import numpy as np
import pytest
import torch

from sklearn_gradspace.gradients import _memory

PAGES = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES", "SC_PAGE_SIZE")
counted = all(name in os.sysconf_names for name in PAGES)
known = pytest.mark.skipif(not counted, reason="the system does not count its pages of memory")


@known
def test_available_is_at_most_what_is_there():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < _memory.available_bytes() <= total


def no_file(*args, **kwargs):
    raise OSError("no such file")


@known
def test_systems_without_a_list_of_memory(monkeypatch):
    monkeypatch.setattr(builtins, "open", no_file)
    found = _memory.available_bytes()
    monkeypatch.undo()
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_systems_that_do_not_tell(monkeypatch):
    monkeypatch.setattr(builtins, "open", no_file)
    monkeypatch.setattr(os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)))
    found = _memory.available_bytes()
    monkeypatch.undo()
    assert found is None


def test_main_memory_is_that_of_the_cpu(monkeypatch):
    monkeypatch.setattr(_memory, "available_bytes", lambda: 12)
    assert _memory.free_bytes(torch.device("cpu")) == 12


def test_more_than_is_free_is_refused(monkeypatch):
    monkeypatch.setattr(_memory, "available_bytes", lambda: 3 * 2**30)
    _memory.require_memory(3 * 2**30, "a table")
    with pytest.raises(MemoryError, match=r"^a table takes 4\.0 GiB and 3\.0 GiB are free.*output='lazy'"):
        _memory.require_memory(4 * 2**30, "a table")


def test_nothing_is_refused_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(_memory, "available_bytes", lambda: None)
    _memory.require_memory(2**80, "a table")


ERRORS = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
    (MemoryError("Unable to allocate 2.00 GiB for an array"), True),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: device-side assert triggered"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (ValueError("not enough values to unpack"), False),
]


@pytest.mark.parametrize("error, expected", ERRORS, ids=lambda of: str(of)[:40])
def test_running_out_of_memory_is_noticed(error, expected):
    assert _memory.is_out_of_memory(error) == expected


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_no_machine_has_as_much(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        allocate(2**55)
    assert _memory.is_out_of_memory(error.value)


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 700_001), (2**19, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool], ids=str)
def test_new_memory_is_as_it_was_asked_for_and_can_be_written_to(shape, dtype, device):
    with torch.inference_mode():
        tensor = _memory.empty(shape, dtype, device)
    assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, device.type)
    assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 and not tensor.is_inference()
    assert tensor.fill_(1).all() and tensor.untyped_storage().nbytes() == tensor.nbytes


def test_large_memory_is_numpys_on_a_cpu():
    tracemalloc.start()
    try:
        kept = [_memory.empty((size,), torch.uint8, torch.device("cpu")) for size in (2**22 - 1, 2**22)]
        assert 2**22 <= tracemalloc.get_traced_memory()[0] < 2**23 and len(kept) == 2  # torch's is not counted
    finally:
        tracemalloc.stop()
