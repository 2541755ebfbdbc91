"""From a module to the operations that it runs, by torch.fx.

A submodule that cannot be traced becomes one operation; where the module's own code cannot be, that is an error.
"""

import inspect

import torch
from torch import fx, nn


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}

    def call_module(self, m, forward, args, kwargs):
        before = len(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            path = self.path_of_module(m)
            self.opaque[path] = f"torch.fx cannot trace it ({str(error).splitlines()[0]})"
            return self.create_proxy("call_module", path, args, kwargs)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what a compiled or data-parallel module wraps."""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        else:
            return module


def trace(module: nn.Module) -> tuple[fx.Graph, dict[str, str]]:
    """Return the operations, and why some submodules are a single one.

    Parameters
    ----------
    module : Module
        It is neither run nor changed. Arguments of `forward` that have a default keep it.

    Returns
    -------
    graph : Graph
        The operations.
    opaque : dict of str to str
        The reason for each submodule that could not be traced.

    Raises
    ------
    ValueError
        If the module's own code cannot be traced.
    """
    tracer = _Tracer()
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        return tracer.trace(module, concrete_args=defaults or None), tracer.opaque
    except Exception as error:
        raise ValueError(
            f"the scale graph of {type(module).__name__} cannot be found, since torch.fx cannot trace its forward: "
            f"{str(error).splitlines()[0].rstrip('.')}. Put what depends on the data into a submodule, whose units are "
            "then pinned, or make the graph by ScaleGraph.from_edges and hand it over: it takes the net's place, and "
            "estimators take a function by graph=."
        ) from error
