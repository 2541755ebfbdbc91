"""What each operation of a net does to the channels that pass through it.

An operation gets `Value`\\ s and plain arguments, and gives a `Value` or raises `Unsupported`. What an entry of a
channel is, a unit or a number, is up to the `domain`, see `interpret`.
"""

import math
import operator
from dataclasses import dataclass, replace
from functools import partial
from numbers import Number
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod

from ._layers import HOMOGENEOUS, NORMALISING, ON_IMAGES, WEIGHTED, Geometry, n_positions, positions_behind
from ._trace import CONSTANT, trace, was_replaced
from ._values import OtherAxis, Unsupported, Value, common_doubt, common_rows, concatenate

PLAIN = object()  # a number that the net computes, of sizes and the like: nothing that could be rescaled


@dataclass(frozen=True)
class Length:
    """The length of the first axis of tensors that have these `rows`; of another axis, if they are None."""

    rows: object


@dataclass(frozen=True)
class Shape:
    """The shape of a tensor that has these `rows`."""

    rows: object


class Domain(Protocol):
    """What the entries of channels are."""

    fill: Tensor  # the entry of shape () of a channel that cannot be rescaled

    def weighted(self, where: str, layer: nn.Module, geometry: Geometry, columns: Tensor) -> Tensor:
        """Return the entries that a layer with weights writes, from those of the columns that it reads."""

    def normalised(self, where: str, layer: nn.Module, entries: Tensor | None) -> Tensor:
        """Return the entries behind a batch norm, from those before it, if they can be rescaled."""

    def merged(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the entries of a sum."""

    def times(self, entries: Tensor, factor: float | None) -> Tensor:
        """Return the entries times a constant, None if it is not known."""

    def pin(self, values: list[Value], where: str, reason: str, *, no_matrix: bool = False) -> None:
        """Take note that channels cannot be rescaled; `no_matrix`, since their axis is not the one that it was."""


def interpret(module: nn.Module, domain: Domain, traced: tuple[fx.Graph, dict[str, str]] | None = None) -> set[str]:
    """Run the operations of `module` on channels; return the names of parameters that are used otherwise.

    Parameters
    ----------
    module : Module
        The net.
    domain : Domain
        What it is run on. All that reaches the output is pinned, at the place called "output".
    traced : tuple, optional
        What `trace` gave for the net, if it is at hand.
    """
    graph, opaque = traced or trace(module)
    modules, elsewhere = dict(module.named_modules()), set()
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    values: dict = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        given = _values((args, kwargs))
        if node.op == "output":
            domain.pin(given, "output", "")
        elif node.op == "placeholder":
            values[node] = Value(rows="samples")
        elif node.op == "get_attr":
            values[node] = Value()
            of_net = node.target != CONSTANT
            tensor = operator.attrgetter(node.target)(module) if of_net else node.meta[CONSTANT]
            elsewhere.add(names.get(id(tensor), node.target))
        elif node.op != "call_module" and not given:
            of_shape = node.target is operator.getitem and isinstance(args[0], Shape)
            values[node] = _length_of(args[0], args[1]) if of_shape else PLAIN
        else:
            try:
                values[node] = _run(node, domain, modules, opaque, args, dict(kwargs))
            except Unsupported as reason:
                where = node.target if node.op == "call_module" else f"{node.name} ({_layer_of(node)})"
                domain.pin(given, where, str(reason), no_matrix=isinstance(reason, OtherAxis))
                values[node] = Value()
                if node.op == "call_module":
                    elsewhere.update(f"{where}.{name}" for name, _ in modules[where].named_parameters())
            if _is_in_place(node) and isinstance(node.args[0], fx.Node):
                values[node.args[0]] = values[node]
    return elsewhere


def _is_in_place(node: fx.Node) -> bool:
    return str(node.target).endswith("_") if node.op == "call_method" else node.target in _IN_PLACE


def _run(node: fx.Node, domain: Domain, modules, opaque, args, kwargs):
    if "input" in kwargs:
        args = (kwargs.pop("input"), *args)
    if node.op == "call_module":
        if node.target in opaque:
            raise Unsupported(opaque[node.target])
        operation = partial(_run_layer, where=node.target, layer=modules[node.target])
    else:
        operation = (OPERATIONS if node.op == "call_function" else METHODS).get(node.target)  # type: ignore[assignment]
        if operation is None:
            raise Unsupported("it is not known to commute with rescaling")
    try:
        return operation(domain, *args, **kwargs)
    except TypeError as error:
        raise Unsupported("it is called in a way that is not known") from error


def _values(args) -> list[Value]:
    found: list[Value] = []
    torch.utils._pytree.tree_map(lambda x: found.append(x) if isinstance(x, Value) else None, args)
    return found


def _layer_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack), "") or "forward"


def _run_layer(domain: Domain, value: Value | None = None, *args, where: str, layer: nn.Module, **kwargs) -> Value:
    kind = type(layer)
    if not isinstance(value, Value) or getattr(layer, "return_indices", False):
        raise Unsupported("it takes or gives more than one tensor")
    if any(isinstance(hook, BasePruningMethod) for hook in layer._forward_pre_hooks.values()):
        raise Unsupported("it is pruned by a hook: torch.nn.utils.prune.remove(layer, 'weight') makes that last")
    if was_replaced(layer):
        raise Unsupported("its forward was replaced")
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise Unsupported("it has hooks, which may change what it computes")
    if isinstance(layer, tuple(WEIGHTED)) and not {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}:
        raise Unsupported("its weight is computed from other parameters")
    if kind in WEIGHTED:
        geometry = WEIGHTED[kind](layer)
        _check_axis(value, 1 if geometry.ndim else -1)
        entries = domain.weighted(where, layer, geometry, value.columns(geometry.n_in, domain.fill))
        if geometry.ndim:
            return Value((entries,), 1, geometry.ndim, (), positions_behind(layer, value.positions), value.rows)
        positions = (value.positions, "last axis") if value.is_root else value.positions
        return Value((entries,), -1, value.ndim, (), positions, value.rows)
    if kind in NORMALISING:
        ndim = NORMALISING[kind] or value.ndim or 2
        _check_axis(value, -1 if ndim == 2 else 1)
        entries = None if value.is_root else value.columns(layer.num_features, domain.fill)
        value = value.as_matrix(domain.fill.new_zeros(0) if entries is None else entries) if ndim == 2 else value
        axis, written = -1 if ndim == 2 else 1, domain.normalised(where, layer, entries)
        return Value((written,), axis, ndim, (), value.positions, value.rows, value.doubt)
    if kind is nn.Flatten:
        return value.flattened(layer.start_dim, layer.end_dim)
    if kind in ON_IMAGES:
        if getattr(layer, "value", 0):
            raise Unsupported("it pads with a constant other than zero")
        _check_images(value, ON_IMAGES[kind])
        return replace(value, positions=positions_behind(layer, value.positions))
    if kind not in HOMOGENEOUS:
        raise Unsupported(f"a {kind.__name__} does not commute with rescaling, or is not known to")
    return value


def _check_axis(value: Value, axis: int) -> None:
    # Behind a batch norm of the input, the first axis but the samples' may be the last one, or not.
    either = value.ndim == 2 and (axis == -1 or (value.doubt and not len(value.doubt.entries)))
    if not value.is_root and value.axis != axis and not either:
        raise OtherAxis("it acts on another axis than the channels")


def _check_images(value: Value, ndim: int | None) -> None:
    if not value.is_root and (value.axis != 1 or (value.ndim or 0) < 3 or ndim not in (None, value.ndim)):
        raise OtherAxis("it takes other axes for positions")


def _same(domain: Domain, tensor: Value, *args, **kwargs) -> Value:
    return tensor


def _cast(domain: Domain, tensor: Value, *args, **kwargs) -> Value:
    if any(isinstance(kind, torch.dtype) and not kind.is_floating_point for kind in (*args, *kwargs.values())):
        raise Unsupported("it makes integers")
    return tensor


def _adaptive(domain: Domain, tensor: Value, output_size: Any, ndim: int, **kwargs) -> Value:
    positions = n_positions(output_size, ndim)
    return replace(_on_images(domain, tensor, ndim=ndim, **kwargs), positions=positions or object())


def _on_images(domain: Domain, tensor: Value, *args, ndim: int | None = None, return_indices=False, **kwargs) -> Value:
    if return_indices:
        raise Unsupported("it gives more than one tensor")
    _check_images(tensor, ndim)
    return replace(tensor, positions=object())


def _pad(domain: Domain, tensor: Value, pad, mode: str = "constant", value: float | None = None) -> Value:
    if mode == "constant" and value:
        raise Unsupported("it pads with a constant other than zero")
    if not tensor.is_root and (tensor.axis != 1 or len(pad) // 2 > (tensor.ndim or 0) - 2):
        raise OtherAxis("it may pad the channels")
    return Value() if tensor.is_root else replace(tensor, positions=object())


def _sum(domain: Domain, first: Any, second: Any, alpha: float = 1) -> Value:
    values = [value for value in (first, second) if isinstance(value, Value)]
    if len(values) == 1:
        if values[0].is_root or (isinstance(other := second if values[0] is first else first, Number) and other == 0):
            return values[0]
        raise Unsupported("it adds a constant")
    first, second = values
    rows, doubt = common_rows(values), common_doubt(values)
    if first.is_root and second.is_root:
        return Value(rows=rows)
    first, second = (_filled(domain, *pair) if pair[0].is_root else pair[0] for pair in (values, values[::-1]))
    if len(first.pieces) == len(second.pieces) == 1 and not (first.flat and second.flat):
        first, second = replace(first, flat=()), replace(second, flat=())  # as many channels are as many columns
    alike = first.layout == second.layout or (
        len(first.pieces) == len(second.pieces) == 1 and first.layout[0][0] == second.layout[0][0]
    )
    if first.axis != second.axis or not alike:
        raise Unsupported("it adds tensors whose channels lie differently")
    pieces = []
    for one, other in zip(first.pieces, second.pieces, strict=True):
        if one is None or other is None or len(one) != len(other):
            raise Unsupported("it adds tensors whose channels lie differently")
        pieces.append(domain.merged(one, domain.times(other, alpha)))
    positions = first.positions if first.positions == second.positions else object()
    ndim = first.ndim or second.ndim
    return replace(first, pieces=tuple(pieces), ndim=ndim, positions=positions, rows=rows, doubt=doubt)


def _filled(domain: Domain, root: Value, like: Value) -> Value:
    return replace(like, pieces=tuple(p if p is None else domain.fill.expand(len(p)) for p in like.pieces))


def _product(domain: Domain, first: Any, second: Any, *, inverse: bool = False) -> Value:
    if isinstance(first, Value) and isinstance(second, Value):
        if first.is_root and second.is_root:
            return Value(rows=common_rows((first, second)))
        raise Unsupported("it multiplies two tensors")
    value, factor = (first, second) if isinstance(first, Value) else (second, first)
    if inverse and value is second and not value.is_root:
        raise Unsupported("it divides by what is rescaled")
    known = isinstance(factor, Number) and not (inverse and factor == 0)
    factor = (1 / factor if inverse else factor) if known else None
    pieces = tuple(piece if piece is None else domain.times(piece, factor) for piece in value.pieces)
    return replace(value, pieces=pieces)


def _quotient(domain: Domain, first: Any, second: Any) -> Value:
    return _product(domain, first, second, inverse=True)


def _concatenate(domain: Domain, tensors, dim: int = 0) -> Value:
    return concatenate(tensors, dim, domain.merged)


def _split(domain: Domain, value: Value, sizes, dim: int = 0):
    return value.cut(dim, lambda entries: _parts(entries, sizes))


def _parts(entries: Tensor, sizes) -> tuple[Tensor, ...]:
    if isinstance(sizes, (tuple, list)) and sum(sizes) != len(entries):
        raise OtherAxis(f"its parts are not of {len(entries)} channels")
    return torch.split(entries, list(sizes) if isinstance(sizes, tuple) else sizes)


def _chunk(domain: Domain, value: Value, chunks: int, dim: int = 0):
    return value.cut(dim, lambda entries: torch.split(entries, max(1, math.ceil(len(entries) / chunks))))


def _item(domain: Domain, value: Any, index: Any):
    if isinstance(value, tuple):
        if isinstance(index, int) and not -len(value) <= index < len(value):
            raise OtherAxis(f"it takes part {index} of channels that are {len(value)} parts")
        return value[index]
    if not isinstance(value, Value):
        return PLAIN
    rows, columns, *rest = index if isinstance(index, tuple) and len(index) > 1 else (None, None)
    if value.is_root:
        return Value(rows=value.rows) if rows == slice(None) else Value()
    if (
        isinstance(columns, slice)
        and all(part == slice(None) for part in (rows, *rest))
        and len(rest) < (value.ndim or 2) - 1
    ):
        return value.cut(1, lambda entries: (entries[columns],))[0]
    raise Unsupported("it takes a part of a tensor")


def _flatten(domain: Domain, value: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    if PLAIN in (start_dim, end_dim):
        raise OtherAxis("it is not known which axes it flattens")
    return value.flattened(start_dim, end_dim)


def _view(domain: Domain, value: Value, *shape) -> Value:
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    first, last = shape if len(shape) == 2 else (*shape[:1], None)
    as_before = first == Length(value.rows)
    if value.is_root:
        return Value(rows=value.rows) if as_before or (first == -1 and last is not None) else Value()
    n_channels = None if value.flat or None in value.pieces else len(value.channels)
    of_positions = (last == n_channels or isinstance(last, Length)) and value.ndim != 2 and value.positions != 1
    by_sample = as_before or (first == -1 and not of_positions)
    # Where the channels are the last axis, rows of any length have them in turn.
    in_turn = value.axis == -1 and not value.doubt and not value.flat
    if last is None or not (by_sample or in_turn):
        raise OtherAxis("it changes the shape, and its rows may be others than the samples")
    if not by_sample:
        value = replace(value, positions=object(), rows=object())
    if isinstance(last, int) and last > 0 and n_channels and value.ndim != 2:
        value = replace(value, positions=_n_positions(last, n_channels, value.positions))
    return value.flattened(1, -1)


def _n_positions(n_columns: int, n_channels: int, before: object) -> int:
    times, rest = divmod(n_columns, n_channels)
    if rest or (isinstance(before, int) and before != times):
        raise OtherAxis(f"it makes rows of {n_columns} columns, which are not all channels and positions of a sample")
    return times


def _mean(domain: Domain, value: Value, dim=None, keepdim: bool = False, **kwargs) -> Value:
    return value.reduced(dim, keepdim)


def _size(domain: Domain, value: Value, dim: int | None = None):
    return Shape(value.rows) if dim is None else _length_of(Shape(value.rows), dim)


def _length_of(shape: Shape, index: Any):
    if not isinstance(index, int):
        return PLAIN
    return Length(shape.rows if index == 0 else None)


def _length(domain: Domain, value: Value):
    return _size(domain, value, 0)


def _plain(domain: Domain, *args, **kwargs):
    return PLAIN


def _attribute(domain: Domain, value: Any, name: str):
    if name == "shape" and isinstance(value, Value):
        return Shape(value.rows)
    if name in ("ndim", "device", "dtype") or not isinstance(value, Value):
        return PLAIN
    raise Unsupported(f"it takes the attribute {name}")


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_, F.leaky_relu_)
_POOLS = ("max_pool", "avg_pool")
OPERATIONS = {
    **dict.fromkeys(
        (F.relu, torch.relu, torch.relu_, F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.dropout, F.dropout1d,
         F.dropout2d, F.dropout3d, torch.dropout, operator.neg, torch.neg, operator.pos, torch.clone),
        _same,
    ),
    **{getattr(F, f"{pool}{n}d"): partial(_on_images, ndim=n + 2) for pool in _POOLS for n in (1, 2, 3)},
    **{getattr(F, f"adaptive_{pool}{n}d"): partial(_adaptive, ndim=n + 2) for pool in _POOLS for n in (1, 2, 3)},
    **{getattr(torch, f"max_pool{n}d"): partial(_on_images, ndim=n + 2) for n in (1, 2, 3)},
    F.interpolate: _on_images,
    F.pad: _pad,
    torch.flatten: _flatten,
    torch.reshape: _view,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub), _sum),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _product),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _quotient),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenate),
    torch.chunk: _chunk,
    torch.split: _split,
    operator.getitem: _item,
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), _mean),
    getattr: _attribute,
    len: _length,
}  # fmt: skip
METHODS = {
    **dict.fromkeys(("relu", "relu_", "contiguous", "clone", "neg", "float", "double"), _same),
    "to": _cast,
    **dict.fromkeys(("view", "reshape"), _view),
    "flatten": _flatten,
    **dict.fromkeys(("add", "add_", "sub", "sub_"), _sum),
    **dict.fromkeys(("mul", "mul_"), _product),
    **dict.fromkeys(("div", "div_"), _quotient),
    "chunk": _chunk,
    "split": _split,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _mean),
    "size": _size,
    "dim": _plain,
}
