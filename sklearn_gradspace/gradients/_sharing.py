"""Copies and pickles of a net that share its tensors.

A user's net enters; a structural copy in evaluation mode, or a picklable stand-in with weights as arrays, leaves.
The user's object itself is never switched to another mode, moved or written to.
"""

import copy
import warnings
import weakref

import numpy as np
import torch
from torch import Tensor, nn


def shared_copy(net: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Return a copy of the structure of `net`, in evaluation mode, over the same memory.

    Modules are new objects and tensors are aliases, so that hooks, modes, flags and ``.grad`` are the copy's own while
    the weights exist once. On another `device` the copy has weights of its own.
    """
    memo = {id(t): _like(t, t.detach().to(device)) for t in _tensors(net)}
    return copy.deepcopy(net, memo).eval()


def packed(net: nn.Module) -> "PackedModule":
    """Return the picklable stand-in of `net`: one and the same for as long as the net lives."""
    if net not in _packed:
        _packed[net] = PackedModule(net)
    return _packed[net]


class PackedModule:
    """What is pickled in the place of a net; it unpickles as the net.

    A module's own pickle copies the weights into the byte stream, and its bytes differ between processes. Here the
    structure travels with weightless (meta) tensors and the weights as NumPy arrays, so that joblib maps them into the
    memory of its workers once and its hash of a net depends on the net alone.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = weakref.ref(net)
        self._arrays: dict[tuple, np.ndarray] = {}

    def __reduce__(self):
        net = self._net()
        skeleton = copy.deepcopy(net, {id(t): _like(t, t.detach().to("meta")) for t in _tensors(net)})
        # Joblib recognises an array that it has seen by its identity: unchanged tensors keep their array.
        keys = [(t.data_ptr(), t._version, t.dtype, t.shape) for t in _tensors(net)]
        self._arrays = {
            key: self._arrays[key] if key in self._arrays else _to_bytes(t) for key, t in zip(keys, _tensors(net))
        }
        return _unpack, (skeleton, [self._arrays[key] for key in keys])


_packed: weakref.WeakKeyDictionary[nn.Module, PackedModule] = weakref.WeakKeyDictionary()


def _unpack(skeleton: nn.Module, arrays: list[np.ndarray]) -> nn.Module:
    memo = {id(t): _like(t, _from_bytes(array, t)) for t, array in zip(_tensors(skeleton), arrays)}
    return copy.deepcopy(skeleton, memo)


def _tensors(net: nn.Module) -> list[Tensor]:
    """Return every parameter and buffer of `net` once, in a fixed order."""
    return [*net.parameters(), *net.buffers()]


def _like(original: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(original, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=original.requires_grad)
    return tensor


def _to_bytes(tensor: Tensor) -> np.ndarray:
    # As bytes, since NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _from_bytes(array: np.ndarray, like: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # A worker's array is mapped read-only, and nothing here writes to a trained net.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(like.dtype).reshape(like.shape)
