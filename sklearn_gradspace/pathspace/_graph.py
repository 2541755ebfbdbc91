"""The scale graph: which entries of which parameters write, and which read, each unit that can be rescaled.

An unmodified module enters; a `ScaleGraph` leaves. Multiplying a unit's incoming weights by c > 0 and dividing its
outgoing weights by c leaves the net's function as it is; a unit is one channel, or several that are added to each other
somewhere and so share their scale. Unit 0, the root, stands for all that cannot be rescaled: inputs, outputs, the
constant that biases are read from, the values that a batch norm has normalised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._domain import Edges, GraphDomain, Pin, Units
from ._operations import interpret
from ._record import difference_of_lines, lines_of
from ._trace import trace, unwrapped

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
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
    operations : tuple of str or None
        What the net does, line by line: the graph is used with no net that does anything else. None for a graph that
        was handed over, which serves any net with parameters of the same names and shapes.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_gradspace.pathspace import scale_graph
    >>> graph = scale_graph(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    >>> graph.n_params, graph.n_units, graph.dimension
    (13, 3, 10)
    """

    module: nn.Module
    edges: Mapping[str, Edges]
    statistics: Mapping[str, tuple[Tensor, int]]
    unit_names: tuple[str, ...]
    approximate: Tensor
    pinned: tuple[Pin, ...] = ()
    operations: tuple[str, ...] | None = None

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

        Raises
        ------
        TypeError, ValueError
            If `edges` is no dict, names another parameter, or has no two such arrays for one.
        """
        module = unwrapped(check_module(module))
        if not isinstance(edges, Mapping):
            raise TypeError(f"edges must be a dict from names of parameters to (write, read), got {edges!r:.80}.")
        parameters = dict(module.named_parameters())
        unknown = sorted(edges.keys() - parameters.keys(), key=str)
        if unknown:
            raise ValueError(f"edges names parameters that the net lacks: {unknown}; it has {sorted(parameters)}.")
        units = Units()
        found: dict[str, Edges] = {}
        for name, given in edges.items():
            found[name] = _checked_edges(name, given, tuple(parameters[name].shape))
            units.grow(name.rpartition(".")[0], found[name].write)
        unwritten = {unit for edges in found.values() for unit in edges.read.flatten().tolist()}.difference(
            range(len(units.names))
        )
        if unwritten:
            raise ValueError(f"edges: nothing writes the units {sorted(unwritten)[:10]}, which are read.")
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

    def __repr__(self) -> str:
        return f"<ScaleGraph of {type(self.module).__name__}: {self.n_params} parameters, {self.n_units} units>"

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
        lines += [
            f"pinned by {pin.layer}: {pin.reason}" + f" ({pin.n_channels} channels)" * bool(pin.n_channels)
            for pin in self.pinned
        ]
        return "\n".join(lines)


def _checked_edges(name: str, given, shape: tuple[int, ...]) -> Edges:
    """Return what was handed over for a parameter of `shape` as `Edges`."""
    try:
        write, read, *constant = given
        units = [torch.as_tensor(ids).cpu() for ids in (write, read)]
    except (TypeError, ValueError, RuntimeError):
        units, constant = [], []
    whole = all(ids.dtype in _WHOLE and not (ids < 0).any() and _broadcasts(ids.shape, shape) for ids in units)
    if not units or not whole or len(constant) > 1 or not all(isinstance(c, bool) for c in constant):
        raise ValueError(
            f"edges[{name!r}] must be (write, read), two arrays of the numbers of units, integers >= 0, that broadcast "
            f"to the shape {shape}; got {given!r:.80}."
        )
    return Edges(units[0].long(), units[1].long(), *constant)


def _broadcasts(shape, to) -> bool:
    try:
        return torch.broadcast_shapes(tuple(shape), tuple(to)) == torch.Size(to)
    except RuntimeError:
        return False


def _finished(module: nn.Module, units: Units, edges, statistics, approximate, pins) -> ScaleGraph:
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
        The net, traced by torch.fx in the mode that it is in; it is neither run nor changed. The first axis of what it
        takes is the samples'. A matrix, or a batch of
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
    empty = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if empty:
        raise ValueError(f"module has parameters without values, {', '.join(empty)}: pass it a batch first.")
    domain = GraphDomain(module)
    traced = trace(module)
    domain.pin_parameters(interpret(module, domain, traced) | _overlapping(module))
    graph = _finished(module, domain.units, domain.edges, domain.statistics, domain.approximate, domain.pins)
    return replace(graph, operations=lines_of(module, traced[0]))


def _overlapping(module: nn.Module) -> set[str]:
    """Return the names of parameters that share memory with another one."""
    spans: list[tuple] = []
    for name, p in module.named_parameters():
        if p.numel() and (start := p.untyped_storage().data_ptr()):
            length = 1 + sum((n - 1) * stride for n, stride in zip(p.shape, p.stride(), strict=True))
            spans.append((start, p.storage_offset(), p.storage_offset() + length, name))
    found: set[str] = set()
    far: tuple = (0, 0, 0, "")
    for span in sorted(spans):
        if span[0] == far[0] and span[1] < far[2]:
            found |= {far[3], span[3]}
        far = span if span[0] != far[0] else max(far, span, key=lambda of: of[2])
    return found


def check_module(module) -> nn.Module:
    """Return `module`, which has to be one."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch Module, not its parameters, and of an estimator its module_; got {module!r:.80}."
        )
    return module


def graph_of(module: nn.Module, graph: ScaleGraph | None) -> ScaleGraph:
    """Return `graph`, which has to be of a net like `module`, or find it; that of `module` itself is taken as it is."""
    check_module(module)
    if graph is None:
        return scale_graph(module)
    if not isinstance(graph, ScaleGraph):
        raise TypeError(f"graph must be a ScaleGraph, got {type(graph).__name__}.")
    module = unwrapped(module)
    if module is graph.module:
        return graph
    difference = difference_of(graph.module, module)
    if difference:
        raise ValueError(f"graph is of another module: the parameter {difference}. Make it by scale_graph(module).")
    if graph.operations is not None:
        difference = difference_of_lines(graph.operations, lines_of(module, trace(module)[0]))
    if difference:
        raise ValueError(
            f"graph is of a module that does something else with its parameters: {difference}. Make it by "
            "scale_graph(module)."
        )
    return replace(graph, module=module)


def difference_of(first: nn.Module, second: nn.Module) -> str:
    """Return the first parameter that is missing in one, or has different shapes; nothing if there is none."""
    shapes, others = ({name: tuple(p.shape) for name, p in net.named_parameters()} for net in (first, second))
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            one, other = (f"of shape {of[name]}" if name in of else "missing" for of in (shapes, others))
            return f"{name!r} is {one} in the first and {other} in the second"
    return ""
