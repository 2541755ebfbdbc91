"""Values as nodes of a JSON tree, and back, by the kind of each.

Numbers, texts and lists stand for themselves. All else is a node ``{"kind": ..., ...}``; a file makes nothing of which
the kind is not known here. One object in two places is one node and a reference to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..gradients._sharing import dense, memory_order

Path = tuple[str, ...]
Node = Any  # None, bool, int, float, str, a list of nodes, or a dict that has a "kind"


@dataclass(frozen=True)
class Kind:
    """How values of some types become a node and come back.

    Parameters
    ----------
    name : str
        The node's "kind".
    write : callable
        ``write(writer, value, path)`` returns all else of the node, or raises TypeError.
    read : callable
        ``read(reader, node)`` returns the value.
    shared : bool
        Whether it matters that it is the same object in two places.
    """

    name: str
    write: Callable[["Writer", Any, Path], dict]
    read: Callable[["Reader", dict], Any]
    shared: bool = False


_BY_NAME: dict[str, Kind] = {}
_BY_TYPE: dict[type, Kind] = {}
_FAMILIES: dict[type, Kind] = {}  # of whose subclasses all are meant


def add_kind(kind: Kind, *types: type, families: tuple[type, ...] = ()) -> None:
    """Make a kind known, for values that are exactly of `types`, or of `families` and their subclasses."""
    _BY_NAME[kind.name] = kind
    _BY_TYPE.update(dict.fromkeys(types, kind))
    _FAMILIES.update(dict.fromkeys(families, kind))


def shown(path: Path) -> str:
    """Return the name of a place as scikit-learn has it, such as ``"gradientfeaturizer__net"``."""
    return "__".join(path).replace("__[", "[") or "estimator"


class Writer:
    """From values to nodes.

    Attributes
    ----------
    tensors : dict of str to Tensor
        What nodes refer to by these names.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[int, tuple[int, object]] = {}  # the objects as well, so that no other gets their identity

    def node(self, value: object, path: Path) -> Node:
        """Return the node of the value at a place, or raise TypeError naming it."""
        if value is None or type(value) in (bool, int, str) or (type(value) is float and isfinite(value)):
            return value
        if type(value) is list:
            return [self.node(item, (*path, f"[{i}]")) for i, item in enumerate(value)]
        if id(value) in self._seen:
            return {"kind": "same", "as": self._seen[id(value)][0]}
        kind = _BY_TYPE.get(type(value)) or next((k for t, k in _FAMILIES.items() if isinstance(value, t)), None)
        if kind is None:
            way_out = "Save its best_estimator_." if hasattr(value, "best_estimator_") else ""
            raise self.refusal(path, f"is a {type(value).__module__}.{type(value).__qualname__}", way_out)
        node = {"kind": kind.name} | kind.write(self, value, path)
        if kind.shared:
            number = len(self._seen)
            self._seen[id(value)] = number, value
            node["number"] = number
        return node

    def nodes(self, values: dict[str, Any], path: Path) -> dict[str, Node]:
        """Return the nodes of values by their names."""
        return {name: self.node(value, (*path, name)) for name, value in values.items()}

    def refusal(self, path: Path, what: str, way_out: str = "") -> TypeError:
        """Return the error that says what is at a place, and that it cannot be saved."""
        return TypeError(f"{shown(path)} {what}, which save does not write to a file.{' ' * bool(way_out)}{way_out}")

    def store(self, tensor: Tensor) -> dict:
        """Keep a tensor, and return its name and, where it is not the usual one, the order of its axes in memory."""
        tensor = dense(tensor).cpu()
        order = list(range(tensor.ndim)) if tensor.is_contiguous() else memory_order(tensor)
        name = str(len(self.tensors))
        self.tensors[name] = tensor.permute(order).clone(memory_format=torch.contiguous_format)
        return {"tensor": name} if order == sorted(order) else {"tensor": name, "order": order}


class Reader:
    """From nodes to values.

    Parameters
    ----------
    tensors : dict of str to Tensor
        What nodes refer to by these names.
    net : Module, dict of str to Module, or None
        Nets that the user has handed over, one for all places or by their names.
    versions : dict of str to str
        The versions that the file was written with.

    Attributes
    ----------
    places : list of str
        Where the user's nets are.
    """

    def __init__(self, tensors: dict[str, Tensor], net: Any, versions: dict[str, str]) -> None:
        self.tensors, self.net, self.versions = tensors, net, versions
        self.places: list[str] = []
        self._made: dict[int, Any] = {}

    def node(self, node: Node) -> Any:
        """Return the value of a node."""
        if isinstance(node, list):
            return [self.node(item) for item in node]
        if not isinstance(node, dict):
            return node
        if node["kind"] == "same":
            return self._made[node["as"]]
        if node["kind"] not in _BY_NAME:
            raise ValueError(
                f"the file holds a {node['kind']!r}, which this version of sklearn_gradspace does not know."
            )
        kind = _BY_NAME[node["kind"]]
        value = kind.read(self, node)
        if kind.shared:
            self._made[node["number"]] = value
        return value

    def nodes(self, nodes: dict[str, Node]) -> dict[str, Any]:
        """Return values by their names."""
        return {name: self.node(node) for name, node in nodes.items()}

    def stored(self, node: dict) -> Tensor:
        """Return the tensor that :meth:`Writer.store` has kept."""
        tensor = self.tensors[node["tensor"]]
        order = node.get("order", list(range(tensor.ndim)))
        return tensor.permute(sorted(range(tensor.ndim), key=order.__getitem__))


def known(names: dict[str, Any], name: str, what: str) -> Any:
    """Return what a list of names has under one of them, or raise ValueError."""
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"the file names the {what} {name!r}, which is none of those that load makes.")
    return names[name]
