"""What is found while a net is walked through: units, the edges that write and read them, and what pins them.

What enters and leaves layers comes in; edges, statistics of batch norms and pins are there afterwards.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._layers import Geometry
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
    """A place that keeps units from being rescaled: those that come into it, or those of its own parameters.

    Parameters
    ----------
    layer : str
        Name of the layer, the operation or the parameter; "output" for what the net returns.
    reason : str
        Why it does.
    n_channels : int
        Number of channels that come into it; 0 where it is its own parameters alone that do not scale.

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


class Units:
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


class GraphDomain:
    """Entries are units."""

    fill = torch.zeros((), dtype=torch.long)

    def __init__(self, module: nn.Module) -> None:
        self.units = Units()
        self.edges: dict = {}
        self.statistics: dict = {}
        self.approximate: set[int] = set()
        self.pins: list[Pin] = []
        self._normalised: dict[str, Tensor] = {}
        # A shared parameter goes by its first name.
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._named = dict(module.named_parameters(remove_duplicate=False))
        self._buffers = {id(buffer): name for name, buffer in module.named_buffers()}

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
            for name, power in (("running_mean", 1), ("running_var", 2)):
                if (buffer := getattr(layer, name)) is not None:
                    self._follow(where, name, buffer, entries, power)
            if layer.eps > _NO_EPS:
                self.approximate.update(entries.tolist())
        if layer.weight is None:
            return self.fill.expand(layer.num_features)
        written = self.units.new(where, layer.num_features)
        self._record(where, layer.weight, Edges(written, self.fill.expand(1)))
        if layer.bias is not None:
            self._record(where, layer.bias, Edges(written, self.fill.expand(1), constant=True))
        return written

    def _follow(self, where: str, name: str, buffer: Tensor, entries: Tensor, power: int) -> None:
        first = self._buffers.setdefault(id(buffer), f"{where}.{name}")
        if first in self.statistics:
            self._pin(torch.cat([self.statistics[first][0], entries]), where, f"it uses {first} as well")
        else:
            self.statistics[first] = entries, power

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
        ids = torch.cat([self.fill.expand(0), *pieces]).unique()
        if not reason:  # what the net returns; a layer may be called "output" as well
            self._pin_outputs(ids)
        else:
            own = any(name.startswith(f"{where}.") for name in self._named)
            self._pin(ids, where, reason, always=own)

    def pin_parameters(self, names: set[str]) -> None:
        """Pin the units of parameters and statistics that something else than their layer uses, alone or as well."""
        for name in sorted(names & self.statistics.keys()):
            self._pin(self.statistics[name][0], name, "it is used outside of its batch norm as well")
        for name in sorted(names & self._named.keys()):
            first = self._names[id(self._named[name])]
            if first in self.edges:
                touched = torch.cat([ids.flatten() for ids in self.edges[first][:2]]).unique()
                self._pin(touched, name, "it is used outside of its layer as well")
            elif not any(name.startswith(f"{pin.layer}.") for pin in self.pins):
                self.pins.append(Pin(name, "it is used outside of a layer, so that what it writes is not known", 0))

    def _record(self, where: str, parameter: nn.Parameter, edges: Edges) -> None:
        name = self._names[id(parameter)]
        if name not in self.edges:
            self.edges[name] = edges
            return
        touched = torch.cat([ids.flatten() for ids in (*edges[:2], *self.edges[name][:2])]).unique()
        self._pin(touched, where, f"it uses {name} once more")

    def _pin_outputs(self, ids: Tensor) -> None:
        """Pin what the net returns; that is no news but for units that a layer or a batch norm reads as well."""
        reads = [*(edges.read.flatten() for edges in self.edges.values()), *self._normalised.values()]
        read = {self.units.find(unit) for unit in torch.cat([ids[:0], *reads]).unique().tolist()} - {0}
        hidden = [unit for unit in ids.tolist() if self.units.find(unit) in read]
        layers = dict.fromkeys(repr(self.units.names[unit].rpartition("[")[0]) for unit in hidden)
        self.units.pin(ids)
        if hidden:
            reason = f"the net returns the hidden units of {', '.join(layers)} as well"
            self.pins.append(Pin("output", reason, len(hidden)))

    def _pin(self, ids: Tensor, where: str, reason: str, always: bool = False) -> None:
        self.units.pin(ids)
        if ids.any() or always:
            self.pins.append(Pin(where, reason, int(ids.count_nonzero())))
