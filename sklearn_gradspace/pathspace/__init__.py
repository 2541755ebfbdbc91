"""From a module to its scale graph, and from there to rescaled twins, the canonical one, and basis paths."""

from ._graph import Edges, Pin, ScaleGraph, scale_graph
from ._rescale import rescale

__all__ = ["Edges", "Pin", "ScaleGraph", "rescale", "scale_graph"]
