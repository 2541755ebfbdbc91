"""The units that each parameter writes and reads, as index tensors on the parameters' device."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..pathspace import ScaleGraph


@dataclass(frozen=True)
class ParameterUnits:
    """The units of one parameter.

    Parameters
    ----------
    name : str
        Its name.
    parameter : Parameter
        The parameter.
    write, read : Tensor of int64 or None
        Numbers of units, of as many axes as the parameter; None if it writes, or reads, the root alone.
    """

    name: str
    parameter: nn.Parameter
    write: Tensor | None
    read: Tensor | None

    def sums(self, values: Tensor, ids: Tensor | None, into: Tensor) -> None:
        """Add to `into`, of shape (n_units + 1,), the sums of `values` over the entries of each unit of `ids`."""
        if ids is not None:
            into.index_add_(0, ids.flatten(), values.sum_to_size(ids.shape).flatten().to(into.dtype))

    def factor(self, reading: Tensor | None, writing: Tensor | None) -> Tensor | None:
        """Return what multiplies the parameter, given a factor of shape (n_units + 1,) of the unit read and written."""
        read = None if self.read is None or reading is None else reading[self.read]
        write = None if self.write is None or writing is None else writing[self.write]
        factor = read if write is None else write if read is None else read * write
        return None if factor is None else factor.to(self.parameter.dtype)


def parameter_units(graph: ScaleGraph, without: bool = False) -> list[ParameterUnits]:
    """Return the units of all parameters that have some, or `without` that too."""
    parameters, found = dict(graph.module.named_parameters()), []
    for name, edges in graph.edges.items():
        parameter = parameters[name]
        ids = [i[(None,) * (parameter.ndim - i.ndim)].to(parameter.device) if i.any() else None for i in edges[:2]]
        if without or any(i is not None for i in ids):
            found.append(ParameterUnits(name, parameter, *ids))
    return found
