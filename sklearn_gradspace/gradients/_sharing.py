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
from torch.utils._pytree import tree_leaves

_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)  # subclasses may do something else in training mode


def shared_copy(net: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Return a copy of the structure of `net`, in evaluation mode, over the same weights.

    Modules are new objects and parameters are aliases, so that hooks, modes, flags and ``.grad`` are the copy's own
    while the weights exist once. Buffers and the weights of embeddings with a `max_norm`, to which a forward pass may
    write, are copied. On another `device` the copy has weights of its own.
    """
    with torch.inference_mode(False):
        renormed = {id(m.weight) for m in net.modules() if getattr(m, "max_norm", None) is not None}
        memo = {
            # What was computed from parameters stays, so that it shows where it is used.
            id(t): t if t.grad_fn is not None else _like(t, _alias(t, id(t) in renormed).to(device))
            for t in _tensors(net)
        }
        try:
            return _differentiable(copy.deepcopy(net, memo).eval())
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"net cannot be copied{_where_copies_fail(net, memo)}: {error}. Make such objects in its forward, or "
                "give them a __deepcopy__."
            ) from error


def _where_copies_fail(net: nn.Module, memo: dict) -> str:
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            try:
                if name != "_modules":
                    copy.deepcopy(value, dict(memo))
            except (TypeError, RuntimeError):
                return f", for {'.'.join(filter(None, (path, name)))}"
    return ""


def _differentiable(module: nn.Module) -> nn.Module:
    """Return the module with its layers set so that each has a backward pass in evaluation mode.

    The function stays what it is with gradients on: without them torch makes zeros of padded positions.

    On CUDA devices cuDNN keeps nothing of what that of recurrent layers needs, and raises: they are in training mode,
    without dropout. Encoders with frozen weights would make nested tensors of padded sequences, which have none.
    """
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase) and type(layer) in _RECURRENT and any(p.is_cuda for p in layer.parameters()):
            layer.training, layer.dropout = True, 0.0
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False
    return module


def own_copy(net: nn.Module) -> nn.Module:
    """Return a copy of `net` with tensors of its own, also where torch's pruning has left some that were computed."""
    with torch.no_grad():
        return copy.deepcopy(net, {id(t): _like(t, t.detach().clone()) for t in _tensors(net)})


def check_device(device: torch.device | str | None) -> None:
    """Raise ValueError where nothing can be computed on `device`; None is any."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error


def usable(device: torch.device | str) -> torch.device:
    """Return `device`, or the CPU with a warning where a CUDA device is meant and there is none."""
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"this was on {device}, and no CUDA device is there: it continues on the CPU.", stacklevel=2)
        return torch.device("cpu")
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`. What goes to a CUDA device is copied from pinned memory, so that nothing waits."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.requires_grad:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def as_rows(X: object) -> np.ndarray:
    """Return rows as an array, also those of a tensor that is on another device or needs gradients."""
    return np.asarray(X.numpy(force=True) if isinstance(X, Tensor) else X)


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
        self._arrays: list[np.ndarray] = []

    def __reduce__(self):
        net = self._net()
        skeleton = copy.deepcopy(net, {id(t): _like(t, dense(t).to("meta")) for t in _tensors(net)})
        arrays, devices = [_to_bytes(t) for t in _tensors(net)], [str(t.device) for t in _tensors(net)]
        # joblib recognises an array that it has seen by its identity: unchanged tensors keep their array.
        if len(arrays) == len(self._arrays):
            arrays = [old if _is_same(old, new) else new for old, new in zip(self._arrays, arrays)]
        self._arrays = arrays
        return _unpack, (skeleton, arrays, devices)


_packed: weakref.WeakKeyDictionary[nn.Module, PackedModule] = weakref.WeakKeyDictionary()


def _unpack(skeleton: nn.Module, arrays: list[np.ndarray], devices: list[str]) -> nn.Module:
    on = {device: usable(device) for device in devices}
    memo = {
        id(t): _like(t, _from_bytes(array, t).to(on[device]))
        # Files of older versions have tensors in lists as they are.
        for t, array, device in zip((t for t in _tensors(skeleton) if t.is_meta), arrays, devices, strict=True)
    }
    return copy.deepcopy(skeleton, memo)


def _tensors(net: nn.Module) -> list[Tensor]:
    """Return every tensor of `net` once, in a fixed order: parameters, buffers, and what attributes hold."""
    held = [value for module in net.modules() for value in _held(vars(module))]
    held = [value for value in held if isinstance(value, Tensor) and value.layout == torch.strided]
    return list({id(t): t for t in (*net.parameters(), *net.buffers(), *held)}.values())


def _held(attributes: dict) -> list:
    try:
        return tree_leaves(attributes)
    except RecursionError:  # something holds itself
        return list(attributes.values())


def _like(original: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(original, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=original.requires_grad)
    return tensor


def _alias(tensor: Tensor, is_written_to: bool) -> Tensor:
    # What was made in inference mode cannot be differentiated; a clone of it can.
    shared = isinstance(tensor, nn.Parameter) and not tensor.is_inference() and not is_written_to
    return tensor.detach() if shared else tensor.detach().clone()


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor, or a contiguous copy if its entries do not fill a block of memory."""
    fills = torch.ops.aten.is_non_overlapping_and_dense(tensor)
    return tensor.detach() if fills else tensor.detach().contiguous()


def _to_bytes(tensor: Tensor) -> np.ndarray:
    # In the order of memory, so that nothing is copied; as bytes, since NumPy has no bfloat16.
    filled = dense(tensor).cpu()
    return filled.permute(memory_order(filled)).reshape(-1).view(torch.uint8).numpy()


def _from_bytes(array: np.ndarray, like: Tensor) -> Tensor:
    order = memory_order(like)
    inverse = sorted(range(like.ndim), key=order.__getitem__)
    shape = [like.shape[axis] for axis in order]
    return tensor_of(array).view(like.dtype).reshape(shape).permute(inverse)


def tensor_of(array: np.ndarray) -> Tensor:
    """Return a tensor on the memory of `array`, which may be mapped read-only and is then not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def memory_order(tensor: Tensor) -> list[int]:
    """Return the axes from the largest stride to the smallest."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _is_same(old: np.ndarray, new: np.ndarray) -> bool:
    shared = old.ctypes.data == new.ctypes.data and old.shape == new.shape
    return shared or np.array_equal(old, new)
