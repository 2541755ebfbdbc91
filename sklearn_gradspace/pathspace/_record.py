"""What a net does, line by line: nets of the same lines compute the same of the same tensors.

The operations of a net enter; strings that hold no addresses leave, which stay the same in other processes.
"""

from collections.abc import Iterator
from itertools import zip_longest
from numbers import Number

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from ._trace import CONSTANT


def lines_of(module: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    """Return a line for each operation and for each layer that is called; the mode that they are in is left out.

    Parameters
    ----------
    module : Module
        The net.
    graph : Graph
        Its operations, as `trace` gives them.

    Returns
    -------
    lines : tuple of str
        Names, what is called, and the arguments. Of constants the shape alone.
    """
    modules, lines = dict(module.named_modules()), []
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else torch.typename(node.target)
        if target == CONSTANT:
            target += f" of shape {tuple(node.meta[CONSTANT].shape)}"
        options = {name: value for name, value in node.kwargs.items() if name != "training"}
        args = node.args[:2] if node.target is torch.dropout else node.args  # its mode has no name
        arguments = ", ".join([*map(str, args), *(f"{name}={value}" for name, value in options.items())])
        lines.append(f"{node.name} = {target}({arguments})")
        if node.op == "call_module":
            lines += [f"{name} is {_written(part)}" for name, part in modules[target].named_modules(prefix=target)]
    return tuple(lines)


def _written(layer: nn.Module) -> str:
    """Return the type of a layer, and its public attributes, of which tensors and objects are told by type alone."""
    attributes = (
        f"{name}={tree_map(lambda x: x if isinstance(x, (Number, str)) else _type_of(x), value)}"
        for name, value in sorted(vars(layer).items())
        if not name.startswith("_") and name != "training"
    )
    return f"{torch.typename(type(layer))}({', '.join(attributes)})"


def _type_of(x) -> str | None:
    return x if x is None else torch.typename(x if hasattr(x, "__qualname__") else type(x))


def constants_of(module: nn.Module, graph: fx.Graph) -> Iterator[Tensor]:
    """Yield the tensors in a net that are neither parameters nor buffers, in the order of its operations."""
    modules = dict(module.named_modules())
    for node in graph.nodes:
        if CONSTANT in node.meta:
            yield node.meta[CONSTANT]
        for layer in modules[node.target].modules() if node.op == "call_module" else ():
            if not layer._forward_pre_hooks:  # these, as of pruned layers, compute some
                yield from (value for value in vars(layer).values() if isinstance(value, Tensor))


def difference_of_lines(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    """Return the first line in which a net differs from what is expected of it; nothing if there is none."""
    for one, other in zip_longest(expected, found, fillvalue="nothing more"):
        if one != other:
            return f"{one!r} is expected, and there is {other!r}"
    return ""
