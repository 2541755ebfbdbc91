"""From a module to its scale graph, and from there to rescaled twins, the canonical one, and basis paths."""

from ._balance import balance
from ._equivalent import equivalent
from ._graph import Edges, Pin, ScaleGraph, scale_graph
from ._path_values import basis_path_norm, path_norm, path_values
from ._rescale import rescale

__all__ = [
    "Edges",
    "Pin",
    "ScaleGraph",
    "balance",
    "basis_path_norm",
    "equivalent",
    "path_norm",
    "path_values",
    "rescale",
    "scale_graph",
]
