"""From a module to the operations that it runs, by torch.fx.

A submodule that cannot be traced becomes one operation; where the module's own code cannot be, that is an error.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

CONSTANT = "a constant"  # the target of operations that fetch one; no parameter's or buffer's name has a blank in it


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}

    def create_arg(self, a):
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and all(a is not b for b in self.root.buffers()):
            if a.requires_grad:
                raise ValueError("it computes with parameters alone, which would become a constant")
            node = self.create_node("get_attr", CONSTANT, (), {})  # torch would make it an attribute of the net
            node.meta[CONSTANT] = a
            return node
        return super().create_arg(a)

    def call_module(self, m, forward, args, kwargs):
        if isinstance(m, torch._dynamo.OptimizedModule) and not (m._forward_hooks or m._forward_pre_hooks):
            return m._orig_mod(*args, **kwargs)
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


def was_replaced(module: nn.Module) -> bool:
    """Return whether an object's forward is not that of its class, nor that in Accelerate's wrapping."""
    return "forward" in vars(module) and "_original_forward" not in vars(module)


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Undo what is written to attributes and buffers: by a forward that keeps something, or counts, or by torch.fx.

    As long as the context lasts no part is compiled.
    """
    before = [(part, dict(vars(part))) for part in module.modules()]
    for part, attributes in before:
        vars(part).pop("_compiled_call_impl", None)
        vars(part)["_buffers"] = {name: b if b is None else b.clone() for name, b in attributes["_buffers"].items()}
    try:
        yield
    finally:
        for part, attributes in before:
            for name in vars(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)


def trace(module: nn.Module) -> tuple[fx.Graph, dict[str, str]]:
    """Return the operations, and why some submodules are a single one.

    Parameters
    ----------
    module : Module
        It is neither run nor changed. Arguments of `forward` that have a default keep it.

    Returns
    -------
    graph : Graph
        The operations. Those that fetch tensors other than parameters and buffers hold them as ``meta[CONSTANT]``.
    opaque : dict of str to str
        The reason for each submodule that could not be traced.

    Raises
    ------
    ValueError
        If the module's own code cannot be traced.
    """
    if was_replaced(module):
        raise ValueError(
            f"the forward of this {type(module).__name__} was replaced, which torch.fx does not see: make a class with "
            "such a forward."
        )
    tracer = _Tracer()
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        with _attributes_kept(module), torch.random.fork_rng(devices=[]):  # constants may be drawn
            return tracer.trace(module, concrete_args=defaults or None), tracer.opaque
    except Exception as error:
        what = str(error).splitlines()[0].rstrip(".")
        advice = (
            "Keep layers as attributes or in an nn.ModuleList: in a list they are none of the module's, nor trained."
            if "not installed as a submodule" in what
            else "Put what depends on the data into a submodule, whose units are then pinned, or make the graph by "
            "ScaleGraph.from_edges and hand it over: it takes the net's place, and estimators take a function, graph=."
        )
        raise ValueError(
            f"the scale graph of {type(module).__name__} cannot be found, since torch.fx cannot trace its forward: "
            f"{what}. {advice}"
        ) from error
