"""The kind of nets: those that load makes itself, layer by layer, and those that the user hands over.

A net enters that consists of the package's own modules and torch's usual layers; what its layers were made with, and
their tensors, leave. Of any other net the tensors leave alone, by their names.
"""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from .._base_net import trained_module
from ..gradients import own_copy
from ..modules import MLP, GradNet, GradNetCNN
from ._tree import Kind, Path, Reader, Writer, add_kind, known, shown
from ._values import qualified_name

# Layers that are made by their arguments, which are attributes of the same names.
_LAYERS = {
    f"torch.nn.{name}": getattr(nn, name)
    for name in (
        *("Linear", "Bilinear", "Embedding", "Identity", "Flatten", "Unflatten", "PReLU"),
        *(f"Conv{rank}d" for rank in (1, 2, 3)),
        *(f"ConvTranspose{rank}d" for rank in (1, 2, 3)),
        *(f"{norm}{rank}d" for norm in ("BatchNorm", "InstanceNorm") for rank in (1, 2, 3)),
        *("LayerNorm", "GroupNorm", "RMSNorm"),
        *(f"{pool}{rank}d" for pool in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool") for rank in (1, 2)),
        *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"),
        *("ReLU", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Softplus", "Hardswish"),
        *("Tanh", "Sigmoid", "LogSigmoid", "Softmax", "LogSoftmax"),
    )
}
# Modules that are their parts and a few attributes.
_CONTAINERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "torch.nn.Sequential": (nn.Sequential, ()),
    "torch.nn.ModuleList": (nn.ModuleList, ()),
    "sklearn_gradspace.modules.MLP": (MLP, ()),
    "sklearn_gradspace.modules.GradNet": (GradNet, ("groups", "activation")),
    "sklearn_gradspace.modules.GradNetCNN": (GradNetCNN, ()),
}
_LAYER_NAMES: dict[type, str] = {layer: name for name, layer in _LAYERS.items()}
_CONTAINER_NAMES: dict[type, str] = {container: name for name, (container, _) in _CONTAINERS.items()}
_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def _write_net(writer: Writer, net: nn.Module, path: Path) -> dict:
    node: dict[str, Any]
    if not all(_is_known(module) for module in net.modules()):
        tensors = {name: getattr(owner, own) for name, owner, own in _places(net)}
        return {"given": shown(path), "class": qualified_name(type(net)), "tensors": writer.nodes(tensors, path)}
    if type(net) in _LAYER_NAMES:
        arguments, tensors = writer.nodes(_arguments(net), path), writer.nodes(_own_tensors(net), path)
        name, node = _LAYER_NAMES[type(net)], {"arguments": arguments, "tensors": tensors}
    else:
        name = _CONTAINER_NAMES[type(net)]
        attributes = {attribute: getattr(net, attribute) for attribute in _CONTAINERS[name][1]}
        node = {"attributes": writer.nodes(attributes, path), "children": writer.nodes(dict(net._modules), path)}
    return {"class": name, "training": net.training} | node


def _read_net(reader: Reader, node: dict) -> nn.Module:
    if "given" in node:
        return _given_net(reader, node)
    if "arguments" in node:
        layer = known(_LAYERS, node["class"], "layer")
        arguments = reader.nodes(node["arguments"])
        if unknown := sorted(arguments.keys() - set(_argument_names(layer))):
            raise ValueError(f"the file has arguments of {node['class']} that save does not write: {unknown}.")
        with torch.device("meta"):  # where nothing is allocated, whatever the arguments
            net = layer(**arguments)
        _set_tensors(net, reader.nodes(node["tensors"]), node["class"])
    else:
        container, attributes = known(_CONTAINERS, node["class"], "module")
        net = container.__new__(container)
        nn.Module.__init__(net)
        for name in attributes:
            setattr(net, name, reader.node(node["attributes"][name]))
        for name, child in reader.nodes(node["children"]).items():
            net.add_module(name, child)
    net.training = bool(node["training"])
    return net


def _given_net(reader: Reader, node: dict) -> nn.Module:
    """Return a copy of the net that the user has handed over for a place, with the tensors of the file."""
    place = node["given"]
    handed = reader.net.get(place) if isinstance(reader.net, dict) else reader.net
    reader.places.append(place)
    if handed is None:
        raise ValueError(
            f"{place} is a net of the class {node['class']}, of which the file has the weights alone: pass one of that "
            f"class, load(path, net=...), or several by their places, load(path, net={{{place!r}: ...}})"
            f"{f'; of net there are the places {[*reader.net]} alone' if reader.net else ''}."
        )
    net = own_copy(trained_module(handed))
    _set_tensors(net, reader.nodes(node["tensors"]), f"net for {place}, a {type(net).__name__}")
    return net


def _set_tensors(net: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Put tensors into the places of a net, which have to be the same."""
    places = {name: (owner, own) for name, owner, own in _places(net)}
    missing, unknown = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing or unknown:
        raise ValueError(
            f"{what}, has other tensors than the file: the file lacks {missing}, and it has {unknown} more."
        )
    for name, (owner, own) in places.items():
        here, tensor = getattr(owner, own), tensors[name]
        if here.shape != tensor.shape or isinstance(here, nn.Parameter) != isinstance(tensor, nn.Parameter):
            raise ValueError(
                f"{what}, has {name!r} as a {type(here).__name__} of shape {tuple(here.shape)}; in the file it is a "
                f"{type(tensor).__name__} of shape {tuple(tensor.shape)}."
            )
        home: dict[str, Any] = next((d for d in (owner._parameters, owner._buffers) if own in d), vars(owner))
        home[own] = tensor


def _places(net: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield for each tensor of a net its name, the module that it is in, and its name there."""
    for prefix, module in net.named_modules(remove_duplicate=False):
        for own in _own_tensors(module):
            yield f"{prefix}.{own}".lstrip("."), module, own


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    values = {**module._parameters, **module._buffers, **vars(module)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _is_known(module: nn.Module) -> bool:
    """Return whether a module can be made again: of a known class, without hooks, and with nothing added or changed."""
    if any(value for name, value in vars(module).items() if "hooks" in name and name in _OF_ANY_MODULE):
        return False
    if type(module) in _CONTAINER_NAMES:
        attributes = _CONTAINERS[_CONTAINER_NAMES[type(module)]][1]
        return _own_attributes(module).keys() == set(attributes) and not _own_tensors(module)
    if type(module) not in _LAYER_NAMES or module._modules:
        return False
    with torch.device("meta"):
        again = type(module)(**_arguments(module))
    shapes, shapes_again = ({name: t.shape for name, t in _own_tensors(m).items()} for m in (module, again))
    return shapes == shapes_again and _own_attributes(module) == _own_attributes(again)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module has beside tensors, parts and what any module has."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OF_ANY_MODULE and not isinstance(value, Tensor)
    }


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """Return what a layer was made with: arguments are attributes of the same names, and a bias is there or not."""
    values = {name: getattr(layer, name) for name in _argument_names(type(layer))}
    return {name: value is not None if name == "bias" else value for name, value in values.items()}


def _argument_names(layer: type) -> list[str]:
    parameters = signature(layer).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name[0] != "_"]
    return [name for name in names if name not in ("device", "dtype")]


add_kind(Kind("net", _write_net, _read_net, shared=True), families=(nn.Module,))
