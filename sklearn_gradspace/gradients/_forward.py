"""One forward pass of a net: the logits, what entered each layer, and what comes back to its output.

A net, its layers and a batch enter; a `ForwardPass` leaves, from which per-sample gradients are read.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._logits import checked_logits, cross_entropy_cotangents


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer that got one tensor and returned one, a row a sample."""

    inputs: Tensor
    edge: GradientEdge
    version: int

    @property
    def is_intact(self) -> bool:
        """Whether nothing has written over the input since."""
        return self.inputs._version == self.version


@dataclass(frozen=True)
class ForwardPass:
    """A net's logits for a batch, with the graph that leads to them.

    Parameters
    ----------
    module : Module
    inputs : Tensor of shape (n, ...)
    logits : Tensor of shape (n, n_labels)
    calls : dict of str to list of LayerCall or None
        The calls of each layer; None stands for one of another form than `LayerCall`'s.
    cotangents : Tensor of shape (n, k, n_labels)
        The k linear forms of a sample's logits that are differentiated.
    """

    module: nn.Module
    inputs: Tensor
    logits: Tensor
    calls: Mapping[str, list[LayerCall | None]]
    cotangents: Tensor

    @property
    def signature(self) -> tuple:
        """How often each layer is called, and how: while it is the same, rules that were right stay right."""
        n = len(self.inputs)
        return tuple(
            (layer, tuple(call is not None and len(call.inputs) == n and call.is_intact for call in calls))
            for layer, calls in self.calls.items()
        )

    @cached_property
    def deltas(self) -> dict[str, list[Tensor]]:
        """For each layer the cotangents of shape (n, k, *output) of its calls, as far as the logits depend on them."""
        layers = [layer for layer, calls in self.calls.items() if calls and None not in calls]
        edges = [call.edge for layer in layers for call in self.calls[layer]]
        passes = [
            torch.autograd.grad(self.logits, edges, cotangent, retain_graph=True, allow_unused=True)
            for cotangent in self.cotangents.unbind(1)
            if edges
        ]
        found = iter(torch.stack(one, 1) if one[0] is not None else None for one in zip(*passes))
        return {layer: [next(found) for _ in self.calls[layer]] for layer in layers}


def forward_pass(module: nn.Module, layers: Iterable[str], inputs: Tensor, labels: Tensor | None = None) -> ForwardPass:
    """Return a pass through `module` for the cross-entropy of one label a row, or of all labels.

    Parameters
    ----------
    module : Module
    layers : iterable of str
        Names of the modules whose calls are recorded.
    inputs : Tensor of shape (n, ...)
    labels : Tensor of shape (n,), optional
    """
    with captured({name: module.get_submodule(name) for name in layers}) as calls:
        logits = checked_logits(module(inputs.clone()), len(inputs))  # a net may write over what it gets
    if not logits.requires_grad:
        raise ValueError(
            "the output of net cannot be differentiated: its forward detaches it, or runs without gradients (no_grad, "
            "inference_mode, checkpoints with use_reentrant=True)."
        )
    return ForwardPass(module, inputs, logits, calls, cross_entropy_cotangents(logits.detach(), labels))


@contextmanager
def captured(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[LayerCall | None]]]:
    """Record the calls of `layers` in this thread, with gradients on."""
    calls: dict[str, list[LayerCall | None]] = {name: [] for name in layers}
    thread = get_ident()

    def record_as(name: str):
        def record(layer: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            if get_ident() == thread:
                calls[name].append(_layer_call([*args, *kwargs.values()], output))

        return record

    handles = [layer.register_forward_hook(record_as(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def _layer_call(arguments: Iterable, output: object) -> LayerCall | None:
    if len(arguments) != 1 or not all(isinstance(t, Tensor) and t.ndim > 1 for t in (*arguments, output)):
        return None
    (inputs,) = arguments
    if len(inputs) != len(output) or not output.requires_grad:
        return None
    # The edge is taken now: an in-place activation afterwards gives the same tensor another one.
    return LayerCall(inputs.detach(), get_gradient_edge(output), inputs._version)
