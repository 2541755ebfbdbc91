"""The kinds of plain values: numbers, containers, arrays, tensors, random states, and classes and functions by name."""

import warnings
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .._base_net import trained_module
from .._rows import RowDataset
from ..gradients import require_memory
from ..gradients._sharing import tensor_of, usable
from ..modules import MLP, GradNet, GradNetCNN
from ._tree import Kind, Path, Reader, Writer, add_kind, known

_NUMBERS = "biuf"  # NumPy's letters for them
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_FUNCTIONS = {f"torch.{name}": getattr(torch, name) for name in ("relu", "sigmoid", "sin", "square", "tanh")}


def _public(module: Any, base: type) -> dict[str, type]:
    """Return the classes of a module of torch's that are subclasses of `base`, by their names."""
    return {
        f"{module.__name__}.{name}": value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base)
    }


# Classes that are parameters of skorch nets, which make losses and optimizers of them: none allocates what it is told.
_CLASSES: dict[str, type] = {
    **_public(torch.optim, Optimizer),
    **{name: of for name, of in _public(nn, nn.modules.loss._Loss).items() if "Linear" not in name},
    "torch.utils.data.DataLoader": DataLoader,
    "skorch.dataset.Dataset": Dataset,
    "sklearn_gradspace.RowDataset": RowDataset,
    "sklearn_gradspace.modules.GradNet": GradNet,
    "sklearn_gradspace.modules.GradNetCNN": GradNetCNN,
    "sklearn_gradspace.modules.MLP": MLP,
}


def _write_dict(writer: Writer, value: dict, path: Path) -> dict:
    if all(type(key) is str for key in value):
        return {"items": writer.nodes(value, path)}
    return {"pairs": [[writer.node(k, path), writer.node(v, (*path, f"[{k!r}]"))] for k, v in value.items()]}


def _read_dict(reader: Reader, node: dict) -> dict:
    if "items" in node:
        return reader.nodes(node["items"])
    return {reader.node(key): reader.node(value) for key, value in node["pairs"]}


def _write_tuple(writer: Writer, value: tuple, path: Path) -> dict:
    # The steps of a pipeline are pairs in a list: scikit-learn calls their places by the names.
    if len(value) == 2 and isinstance(value[0], str) and hasattr(value[1], "get_params"):
        return {"items": [value[0], writer.node(value[1], (*path[:-2], value[0]))]}
    return {"items": writer.node(list(value), path)}


def _write_scalar(writer: Writer, value: np.generic, path: Path) -> dict:
    if value.dtype.kind not in _NUMBERS + "U" or value.dtype == np.longdouble:
        raise writer.refusal(path, f"is a NumPy scalar of dtype {value.dtype}")
    return {"dtype": value.dtype.kind + str(value.dtype.itemsize), "value": writer.node(value.item(), path)}


def _read_scalar(reader: Reader, node: dict) -> np.generic:
    if node["dtype"].startswith("U"):
        return np.str_(node["value"])
    dtype = np.dtype(node["dtype"])
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"the file has a scalar of dtype {dtype}, which save does not write.")
    return dtype.type(reader.node(node["value"]))


def _write_array(writer: Writer, value: np.ndarray, path: Path) -> dict:
    if type(value) not in (np.ndarray, np.memmap) or value.dtype.kind not in _NUMBERS + "UO":
        raise writer.refusal(path, f"is a {type(value).__name__} of dtype {value.dtype}")
    if value.dtype.kind in "UO":
        values = [writer.node(item, path) for item in value.ravel().tolist()]
        return {"dtype": value.dtype.kind, "shape": list(value.shape), "values": values}
    try:
        if any(stride < 0 for stride in value.strides):  # of which torch has no views
            value = value.copy()
        return writer.store(tensor_of(np.asarray(value)))
    except (TypeError, ValueError) as error:  # an order of bytes, or a precision, that torch lacks
        raise writer.refusal(path, f"is an array of dtype {value.dtype}") from error


def _read_array(reader: Reader, node: dict) -> np.ndarray:
    if "tensor" in node:
        return reader.stored(node).numpy()
    values = np.empty(len(node["values"]), object)
    for i, item in enumerate(node["values"]):
        values[i] = reader.node(item)
    dtype = known({"U": str, "O": object}, node["dtype"], "dtype")
    if dtype is str:  # all are as long as the longest
        require_memory(
            4 * len(values) * max((len(item) for item in values), default=0), "an array of texts in the file"
        )
    return values.reshape(node["shape"]).astype(dtype)


def _write_tensor(writer: Writer, value: Tensor, path: Path) -> dict:
    plain = type(value) in (Tensor, nn.Parameter, nn.Buffer) and not value.is_quantized and not value.is_meta
    if not plain or value.layout not in (torch.strided, torch.sparse_csr):
        raise writer.refusal(path, f"is a {type(value).__name__} of layout {value.layout} on {value.device}")
    place = {"device": str(value.device)} if value.device.type != "cpu" else {}
    if value.layout is torch.sparse_csr:
        parts = (value.crow_indices(), value.col_indices(), value.values())
        return {"csr": [writer.store(part) for part in parts], "shape": list(value.shape)} | place
    flag = {"requires_grad": value.requires_grad} if isinstance(value, nn.Parameter) else {}
    return writer.store(value) | flag | place


def _read_tensor(reader: Reader, node: dict) -> Tensor:
    device = usable(node.get("device", "cpu"))
    if "csr" in node:
        starts, columns, values = (reader.stored(part) for part in node["csr"])
        return _csr(starts, columns, values, *node["shape"]).to(device)
    tensor = reader.stored(node).to(device)
    return nn.Parameter(tensor, node["requires_grad"]) if "requires_grad" in node else tensor


def _csr(starts: Tensor, columns: Tensor, values: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Return a sparse matrix; columns of a row are in any order, which torch's own check does not allow."""
    in_rows = len(starts) == n_rows + 1 and starts[0] == 0 and starts[-1] == len(values) and (starts.diff() >= 0).all()
    if not in_rows or len(columns) != len(values) or not ((columns >= 0) & (columns < n_columns)).all():
        raise ValueError("the file holds a sparse matrix whose indices are not within its shape.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(starts, columns, values, (n_rows, n_columns), check_invariants=False)


def _write_random_state(writer: Writer, value: np.random.RandomState, path: Path) -> dict:
    state = value.get_state(legacy=False)
    if not isinstance(state, dict) or state["bit_generator"] != "MT19937":
        raise writer.refusal(path, "is a RandomState of another generator than NumPy's usual one")
    return {"state": writer.node(state, path)}


def _read_random_state(reader: Reader, node: dict) -> np.random.RandomState:
    random_state = np.random.RandomState(0)
    random_state.set_state(reader.node(node["state"]))
    return random_state


def _write_class(writer: Writer, value: type, path: Path) -> dict:
    for name, of_name in _CLASSES.items():
        if of_name is value:
            return {"name": name}
    if issubclass(value, nn.Module):  # known from the net that is handed over
        return {"net": qualified_name(value)}
    raise writer.refusal(path, f"is the class {qualified_name(value)}")


def _read_class(reader: Reader, node: dict) -> type:
    if "net" not in node:
        return known(_CLASSES, node["name"], "class")
    nets = reader.net.values() if isinstance(reader.net, dict) else [reader.net]
    for module in map(trained_module, nets):
        if qualified_name(type(module)) == node["net"]:
            return type(module)
    raise ValueError(f"the file names {node['net']} as a class of nets: pass load(path, net=...) one of that class.")


def qualified_name(of: type) -> str:
    """Return a class's name with that of its module."""
    return f"{of.__module__}.{of.__qualname__}"


def _write_function(writer: Writer, value: Any, path: Path) -> dict:
    for name, of_name in _FUNCTIONS.items():
        if of_name is value:
            return {"name": name}
    way_out = "Set the parameter to something else before, such as net to the trained net, or augment to None."
    raise writer.refusal(path, f"is the function {getattr(value, '__qualname__', value)}", way_out)


def _text(of: type, name: str, read: Any, *families: type) -> None:
    """Make known a kind whose values are texts."""
    kind = Kind(name, lambda writer, value, path: {"value": str(value)}, lambda reader, node: read(node["value"]))
    add_kind(kind, of, families=families)


_text(float, "float", float)  # those that are not finite, which JSON lacks
_text(torch.dtype, "torch_dtype", lambda name: known(_DTYPES, name, "dtype"))
_text(torch.device, "device", usable)
_text(np.dtype, "dtype", np.dtype, np.dtype)
add_kind(Kind("dict", _write_dict, _read_dict), dict)
add_kind(Kind("tuple", _write_tuple, lambda reader, node: tuple(reader.node(node["items"]))), tuple)
add_kind(
    Kind(
        "slice",
        lambda writer, value, path: {"ends": writer.node([value.start, value.stop, value.step], path)},
        lambda reader, node: slice(*reader.node(node["ends"])),
    ),
    slice,
)
add_kind(Kind("scalar", _write_scalar, _read_scalar), families=(np.generic,))
add_kind(Kind("array", _write_array, _read_array, shared=True), families=(np.ndarray,))
add_kind(Kind("tensor", _write_tensor, _read_tensor, shared=True), families=(Tensor,))
add_kind(Kind("random_state", _write_random_state, _read_random_state, shared=True), np.random.RandomState)
add_kind(Kind("class", _write_class, _read_class), families=(type,))
add_kind(
    Kind("function", _write_function, lambda reader, node: known(_FUNCTIONS, node["name"], "function")),
    families=(FunctionType, BuiltinFunctionType, MethodType),
)
