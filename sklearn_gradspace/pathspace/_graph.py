"""The scale graph: which entries of which parameters write, and which read, each unit that can be rescaled.

An unmodified module enters; a `ScaleGraph` leaves. Multiplying a unit's incoming weights by c > 0 and dividing its
outgoing weights by c leaves the net's function as it is; a unit is one channel, or several that are added to each other
somewhere and so share their scale. Unit 0, the root, stands for all that cannot be rescaled: inputs, outputs, the
constant that biases are read from, the values that a batch norm has normalised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._layers import Geometry
from ._operations import interpret
from ._trace import unwrapped
from ._values import Unsupported

_NO_EPS = torch.finfo(torch.float32).tiny  # torch takes no batch norm with eps=0 in training


class Edges(NamedTuple):
    """The units that the entries of one parameter write and read.

    Parameters
    ----------
    write, read : Tensor of int64
        Numbers of units, broadcastable to the parameter's shape.
    constant : bool
        Whether it is read from the constant, as a bias is.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import scale_graph
    >>> edges = scale_graph(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))).edges["0.weight"]
    >>> edges.write.flatten().tolist(), edges.read.flatten().tolist()  # three units, and the root
    ([1, 2, 3], [0, 0])
    """

    write: Tensor
    read: Tensor
    constant: bool = False


class Pin(NamedTuple):
    """A place that keeps units from being rescaled.

    Parameters
    ----------
    layer : str
        Name of the layer or the operation.
    reason : str
        Why it does.
    n_channels : int
        Number of channels that come into it.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import scale_graph
    >>> graph = scale_graph(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    >>> graph.n_units, graph.pinned[0].layer, graph.pinned[0].n_channels
    (0, '1', 3)
    """

    layer: str
    reason: str
    n_channels: int


@dataclass(frozen=True, eq=False)
class ScaleGraph:
    """The scaling symmetry of a net: made by :func:`scale_graph`, or by :meth:`from_edges`.

    Parameters
    ----------
    module : Module
        The net.
    edges : dict of str to Edges
        For each parameter of the net, in the order in which the net uses them.
    statistics : dict of str to tuple
        Running statistics of batch norms: the units of shape (num_features,), and the power with which they scale.
    unit_names : tuple of str
        Layer and channel that write a unit first, of units 1 to `n_units`.
    approximate : Tensor of bool of shape (n_units,)
        Whether a batch norm whose `eps` is not next to nothing normalises the unit: the net is then invariant but for
        that.
    pinned : tuple of Pin
        What keeps units from being rescaled, and why.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import scale_graph
    >>> graph = scale_graph(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    >>> graph.n_params, graph.n_units, graph.dimension
    (13, 3, 10)
    """

    module: nn.Module = field(repr=False)
    edges: Mapping[str, Edges]
    statistics: Mapping[str, tuple[Tensor, int]]
    unit_names: tuple[str, ...]
    approximate: Tensor
    pinned: tuple[Pin, ...] = ()

    @classmethod
    def from_edges(cls, module: nn.Module, edges: Mapping) -> "ScaleGraph":
        """Return the scale graph of a net that is handed over by hand.

        Parameters
        ----------
        module : Module
            The net.
        edges : dict of str to (write, read) or Edges
            Numbers of units that a parameter's entries write and read, array-likes that broadcast to its shape; 0 for
            the root, units from 1 on. Entries of parameters that are not named do not scale.

        Returns
        -------
        graph : ScaleGraph
            The graph. Whether it is true is not checked.
        """
        module = unwrapped(module)
        parameters = dict(module.named_parameters())
        unknown = sorted(edges.keys() - parameters.keys())
        if unknown:
            raise ValueError(f"edges names parameters that the net lacks: {unknown}; it has {sorted(parameters)}.")
        units = _Units()
        found: dict[str, Edges] = {}
        for name, given in edges.items():
            write, read = (torch.as_tensor(ids).cpu() for ids in given[:2])
            for ids in (write, read):
                shape = tuple(parameters[name].shape)
                if ids.is_floating_point() or (ids < 0).any() or not _broadcasts(ids.shape, shape):
                    raise ValueError(
                        f"edges[{name!r}] must be two arrays of unit numbers >= 0 that broadcast to the shape {shape}."
                    )
            found[name] = Edges(write.long(), read.long(), *given[2:])
            units.grow(name.rpartition(".")[0], found[name].write)
        return _finished(module, units, found, {}, set(), [])

    @property
    def n_params(self) -> int:
        """Number of entries of all parameters, m; a shared parameter counts once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def n_units(self) -> int:
        """Number of units that can be rescaled, H."""
        return len(self.unit_names)

    @property
    def dimension(self) -> int:
        """Dimension of the equivalence classes' space, m − H."""
        return self.n_params - self.n_units

    @property
    def invariant_ratio(self) -> float:
        """H / m."""
        return self.n_units / max(1, self.n_params)

    @property
    def private(self) -> Tensor:
        """Whether nothing reads a unit, as with a filter in front of a batch norm; bool of shape (n_units,)."""
        read = torch.zeros(self.n_units + 1, dtype=torch.bool)
        for edges in self.edges.values():
            read[edges.read.flatten()] = True
        return ~read[1:]

    def without(self, units: Tensor, layer: str = "", reason: str = "") -> "ScaleGraph":
        """Return the graph in which some units cannot be rescaled.

        Parameters
        ----------
        units : Tensor of bool of shape (n_units,)
            Which.
        layer, reason : str
            What pins them, for the report.

        Returns
        -------
        graph : ScaleGraph
            The graph, its other units in the same order.
        """
        if not units.any():
            return self
        number = torch.cat([torch.zeros(1, dtype=torch.long), torch.where(units, 0, (~units).cumsum(0))])
        return replace(
            self,
            edges={n: Edges(number[e.write], number[e.read], e.constant) for n, e in self.edges.items()},
            statistics={n: (number[ids], power) for n, (ids, power) in self.statistics.items()},
            unit_names=tuple(name for name, out in zip(self.unit_names, units, strict=True) if not out),
            approximate=self.approximate[~units],
            pinned=(*self.pinned, Pin(layer, reason, int(units.sum()))) if reason else self.pinned,
        )

    def touching(self, names) -> Tensor:
        """Return which units the parameters called `names` write or read, bool of shape (n_units,).

        Parameters
        ----------
        names : iterable of str
            Names of parameters.

        Returns
        -------
        touched : Tensor of bool of shape (n_units,)
            Whether one of them writes or reads the unit.
        """
        touched = torch.zeros(self.n_units + 1, dtype=torch.bool)
        for name in names:
            touched[self.edges[name].write.flatten()] = touched[self.edges[name].read.flatten()] = True
        return touched[1:]

    def __str__(self) -> str:
        rows = [("parameter", "shape", "writes", "reads")]
        shapes = {name: tuple(parameter.shape) for name, parameter in self.module.named_parameters()}
        for name, edges in self.edges.items():
            counts = (str(len(ids[ids > 0].unique())) for ids in (edges.write, edges.read))
            rows.append((name, "×".join(map(str, shapes[name])), *counts))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}"
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += [
            "",
            f"parameters  m = {self.n_params:,}",
            f"units       H = {self.n_units:,}"
            + (f", of these {count:,} but for eps of a batch norm" if (count := int(self.approximate.sum())) else ""),
            f"dimension   m - H = {self.dimension:,}; invariant ratio {self.invariant_ratio:.2%}",
        ]
        lines += [f"pinned by {pin.layer}: {pin.reason} ({pin.n_channels} channels)" for pin in self.pinned]
        return "\n".join(lines)


def _broadcasts(shape, to) -> bool:
    try:
        return torch.broadcast_shapes(tuple(shape), tuple(to)) == torch.Size(to)
    except RuntimeError:
        return False


class _Units:
    """Units while they are found: channels that are added to each other become one."""

    def __init__(self) -> None:
        self._parent, self.names = [0], [""]

    def new(self, layer: str, n: int) -> Tensor:
        first = len(self._parent)
        self._parent.extend(range(first, first + n))
        self.names.extend(f"{layer}[{i}]" for i in range(n))
        return torch.arange(first, first + n)

    def grow(self, layer: str, ids: Tensor) -> None:
        """Make all units with numbers up to those of `ids`."""
        self.new(layer, max(0, int(ids.max()) + 1 - len(self._parent)))

    def find(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = self._parent[unit]
        return unit

    def unite(self, first: Tensor, second: Tensor) -> None:
        for one, other in zip(first.tolist(), second.tolist()):
            low, high = sorted((self.find(one), self.find(other)))
            self._parent[high] = low

    def pin(self, ids: Tensor) -> None:
        self.unite(ids, torch.zeros_like(ids))

    def roots(self) -> Tensor:
        return torch.tensor([self.find(unit) for unit in range(len(self._parent))])


class _GraphDomain:
    """Entries are units."""

    fill = torch.zeros((), dtype=torch.long)

    def __init__(self, module: nn.Module) -> None:
        self.units = _Units()
        self.edges: dict = {}
        self.statistics: dict = {}
        self.approximate: set[int] = set()
        self.pins: list[Pin] = []
        self._normalised: dict[str, Tensor] = {}
        self._module = module
        # A shared parameter goes by its first name.
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}

    def weighted(self, where: str, layer: nn.Module, geometry: Geometry, columns: Tensor) -> Tensor:
        written = self.units.new(where, geometry.n_out)
        self._record(where, layer.weight, Edges(written[geometry.writes], columns[geometry.reads]))
        if layer.bias is not None:
            self._record(where, layer.bias, Edges(written, self.fill.expand(1), constant=True))
        return written

    def normalised(self, where: str, layer: nn.Module, entries: Tensor | None) -> Tensor:
        entries = self.fill.expand(layer.num_features) if entries is None else entries
        before = self._normalised.setdefault(where, entries)
        if before is not entries:  # running statistics cannot follow two inputs
            self._pin(torch.cat([before, entries]), where, "it is called once more")
        elif entries.any():
            if layer.running_mean is not None:
                self.statistics[f"{where}.running_mean"] = entries, 1
                self.statistics[f"{where}.running_var"] = entries, 2
            if layer.eps > _NO_EPS:
                self.approximate.update(entries.tolist())
        if layer.weight is None:
            return self.fill.expand(layer.num_features)
        written = self.units.new(where, layer.num_features)
        self._record(where, layer.weight, Edges(written, self.fill.expand(1)))
        self._record(where, layer.bias, Edges(written, self.fill.expand(1), constant=True))
        return written

    def merged(self, first: Tensor, second: Tensor) -> Tensor:
        if not (first.any() and second.any()):
            raise Unsupported("it adds what cannot be rescaled")
        self.units.unite(first, second)
        return first

    def times(self, entries: Tensor, factor: float | None) -> Tensor:
        return entries

    def pin(self, values, where: str, reason: str, *, no_matrix: bool = False) -> None:
        pieces = [piece for value in values for piece in value.pieces if piece is not None]
        pieces += [v.doubt.entries for v in values if v.doubt and (no_matrix or v.doubt.width)]
        if pieces and where == "output":
            self.units.pin(torch.cat(pieces))
        elif pieces:
            self._pin(torch.cat(pieces).unique(), where, reason)

    def pin_parameters(self, names: set[str]) -> None:
        """Pin the units of parameters that something else than their layer uses as well."""
        named = dict(self._module.named_parameters(remove_duplicate=False))
        for name in sorted(names & named.keys()):
            first = self._names[id(named[name])]
            if first in self.edges:
                touched = torch.cat([ids.flatten() for ids in self.edges[first][:2]]).unique()
                self._pin(touched, name, "it is used outside of its layer as well")

    def _record(self, where: str, parameter: nn.Parameter, edges: Edges) -> None:
        name = self._names[id(parameter)]
        if name not in self.edges:
            self.edges[name] = edges
            return
        touched = torch.cat([ids.flatten() for ids in (*edges[:2], *self.edges[name][:2])]).unique()
        self._pin(touched, where, f"it uses {name} once more")

    def _pin(self, ids: Tensor, where: str, reason: str) -> None:
        self.units.pin(ids)
        if ids.any():
            self.pins.append(Pin(where, reason, int(ids.count_nonzero())))


def _finished(module: nn.Module, units: _Units, edges, statistics, approximate, pins) -> ScaleGraph:
    """Number the units that are left, and add the parameters that do not scale."""
    roots = units.roots()
    used = torch.zeros(len(roots), dtype=torch.bool)
    for parameter in edges.values():
        used[roots[parameter.write.flatten()]] = used[roots[parameter.read.flatten()]] = True
    used[0] = False
    number = torch.where(used, used.cumsum(0), 0)[roots]
    of_eps = torch.zeros(int(used.sum()) + 1, dtype=torch.bool)
    of_eps[number[sorted(approximate)]] = True
    fixed = Edges(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    all_edges = {name: Edges(number[e.write], number[e.read], e.constant) for name, e in edges.items()}
    all_edges |= {name: fixed for name, _ in module.named_parameters() if name not in edges}
    return ScaleGraph(
        module,
        all_edges,
        {name: (number[ids], power) for name, (ids, power) in statistics.items()},
        tuple(units.names[unit] for unit in used.nonzero().flatten().tolist()),
        of_eps[1:],
        tuple(pins),
    )


def scale_graph(module: nn.Module) -> ScaleGraph:
    """Find the units of a ReLU net that can be rescaled without changing its function.

    Linear layers and convolutions (with groups, transposed) write and read units; ReLU, leaky ReLU, PReLU, dropout,
    pooling, flattening, padding with zeros, up-sampling, sums, concatenations and splits along channels let them pass;
    batch norms end a unit and start another. Everything else pins the units that come into it, and the graph says so.

    Parameters
    ----------
    module : Module
        The net, traced by torch.fx in the mode that it is in; it is neither run nor changed. A matrix, or a batch of
        sequences whose last axis is the features', goes into its linear layers; a matrix into a ``BatchNorm1d`` beside
        them. ``x.view(-1, k)`` is taken to flatten each sample, unless k is the number of channels.

    Returns
    -------
    graph : ScaleGraph
        The graph; it prints as a table.

    Raises
    ------
    ValueError
        If the module's own code cannot be traced.

    References
    ----------
    .. [1] Q. Meng, S. Zheng, H. Zhang, W. Chen, Q. Ye, Z.-M. Ma, N. Yu, T.-Y. Liu. "G-SGD: Optimizing ReLU neural
       networks in its positively scale-invariant space". ICLR 2019.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import scale_graph
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> print(scale_graph(net))
    parameter  shape  writes  reads
    ---------  -----  ------  -----
    0.weight     8×4       8      0
    0.bias         8       8      0
    2.weight     3×8       0      8
    2.bias         3       0      0
    <BLANKLINE>
    parameters  m = 67
    units       H = 8
    dimension   m - H = 59; invariant ratio 11.94%
    """
    module = unwrapped(check_module(module))
    domain = _GraphDomain(module)
    domain.pin_parameters(interpret(module, domain))
    return _finished(module, domain.units, domain.edges, domain.statistics, domain.approximate, domain.pins)


def check_module(module) -> nn.Module:
    """Return `module`, which has to be one."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch Module, got {module!r:.80}.")
    return module


def graph_of(module: nn.Module, graph: ScaleGraph | None) -> ScaleGraph:
    """Return `graph`, which has to be of a net like `module`, or find it."""
    check_module(module)
    if graph is None:
        return scale_graph(module)
    if not isinstance(graph, ScaleGraph):
        raise TypeError(f"graph must be a ScaleGraph, got {type(graph).__name__}.")
    module = unwrapped(module)
    difference = difference_of(graph.module, module)
    if difference:
        raise ValueError(f"graph is of another module: the parameter {difference}. Make it by scale_graph(module).")
    return graph if module is graph.module else replace(graph, module=module)


def difference_of(first: nn.Module, second: nn.Module) -> str:
    """Return the first parameter that is missing in one, or has different shapes; nothing if there is none."""
    shapes, others = ({name: tuple(p.shape) for name, p in net.named_parameters()} for net in (first, second))
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            one, other = (f"of shape {of[name]}" if name in of else "missing" for of in (shapes, others))
            return f"{name!r} is {one} in the first and {other} in the second"
    return ""
