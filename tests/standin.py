"""A stand-in for a GPU: a device of its own, whose tensors live in main memory.

Much of what would fail or wait on a GPU shows without one. Tensors of the device and of the CPU do not mix but where
CUDA lets them, NumPy does not see them, and the code takes the ways of a device that is not a CPU; `waiting` collects
what would be waited for. What is for CUDA alone does not run: pinned memory, TF32, fused optimizers.
Importing this makes `torch.device("standin")` known to torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "standin"
# In the names of tests of what it has not: recurrent cells, kernels of torch.compile, modes, tensors in files.
LEFT_OUT = (
    *("lstm", "gru", "one_kernel", "inference_mode", "autocast"),
    *("loaded_net_on_a_device", "pickled_with_its_device", "test_ecopt.py::test_trains_on_the_device"),
)

# How operations begin whose results the host has to know before it can go on.
_WAITING = (
    *("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "repeat_interleave", "bincount"),
    *("equal", "allclose", "to_", "_coalesce", "_linalg_", "linalg_chol", "linalg_inv", "linalg_lu", "linalg_qr"),
)
# Those that take tensors of the CPU as well: indices are brought to the device.
_INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
_waits: list[str] = []


@contextmanager
def waiting() -> Iterator[list[str]]:
    """Collect operations that wait for the device, and "upload" for each tensor of the CPU that is brought to it.

    On CUDA devices uploads wait unless they are `to_device`'s, whose memory is pinned.
    """
    _waits.clear()
    found: list[str] = []
    yield found
    found += _waits


class OnDevice(Tensor):
    """A tensor on the stand-in, which keeps its numbers in one of the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        options = {"dtype": held.dtype, "device": torch.device(NAME, 0)}
        if held.layout == torch.strided:
            options |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        elif held.layout == torch.sparse_coo:  # compressed ones cannot be told from dense ones
            options["layout"] = held.layout
        return Tensor._make_wrapper_subclass(cls, held.shape, **options)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: "OnDevice") -> None:
        Tensor.data.__set__(self, new)
        self.held = new.held

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")
        _waits.append("numpy")
        return self.held.numpy(force=True)

    def tolist(self):
        return self.cpu().tolist()

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else str(self), spec)

    def __repr__(self) -> str:
        return f"{self.held}, device='{NAME}:0'"


def _held(value):
    return value.held if isinstance(value, OnDevice) else value


def _computed(func, args: tuple, kwargs: dict):
    """Return what an operation makes of the tensors that are held, on the device where it would be."""
    name, device = func._schema.name, kwargs.get("device")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    ours = [t for t in tensors if isinstance(t, OnDevice)]
    foreign = [t for t in tensors if t.ndim and not isinstance(t, OnDevice)]
    copies, indexes = name in ("aten::copy_", "aten::_to_copy"), name in _INDEXING and isinstance(args[0], OnDevice)
    if ours and foreign and not copies and not indexes:
        raise RuntimeError(f"Expected all tensors to be on the same device; {name} got some on {NAME} and on the CPU.")
    leaves = (
        not isinstance(args[0], OnDevice) if name == "aten::copy_" else device and torch.device(device).type != NAME
    )
    looked_up = indexes and (foreign or any(t.dtype == torch.bool for t in tensors[1:]))
    if (ours and leaves) or looked_up or name.removeprefix("aten::").startswith(_WAITING):
        _waits.append(name)
    elif foreign and not leaves:
        _waits.append("upload")
    if device is not None and not leaves:
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    for tensor in ours:  # results that were given a shape
        if tensor.shape != tensor.held.shape and name != "aten::set_data":
            with torch._C._DisableTorchDispatch():
                Tensor.data.__set__(tensor, OnDevice(tensor.held))
    if leaves:
        return found
    known = {id(t.held): t for t in ours}  # operations in place return what they got

    def on_device(value):
        return known[id(value)] if id(value) in known else OnDevice(value) if isinstance(value, Tensor) else value

    return tree_map(on_device, found)


def _empty(operation):
    def made(*args, **kwargs):
        options = {key: value for key, value in kwargs.items() if value is not None and key != "pin_memory"}
        return OnDevice(operation(*args, **options | {"device": torch.device("cpu")}))

    return made


def _copy_from(source: Tensor, place: Tensor, non_blocking: bool = False) -> Tensor:
    _waits.append("upload" if isinstance(place, OnDevice) else "aten::copy_")
    _held(place).copy_(_held(source))
    return place


class _Backend(_DummyBackendModule):
    """What torch asks of a device: its random numbers are the CPU's, and it has no stream."""

    device = staticmethod(lambda index: nullcontext())
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda *device: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *device: torch.set_rng_state(state))


_setup_privateuseone_for_python_backend(NAME, _Backend())
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("empty.memory_format", _empty(torch.ops.aten.empty.memory_format), "PrivateUse1")
_kernels.impl("empty_strided", _empty(torch.ops.aten.empty_strided.default), "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
_all_kernels = torch.library.Library("_", "IMPL")
_all_kernels.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
