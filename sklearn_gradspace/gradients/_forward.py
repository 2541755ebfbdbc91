"""One forward pass of a net: what entered each layer, and what comes back to its output.

A net, its layers and a batch enter; a `ForwardPass` leaves, from which per-sample gradients are read.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ._outputs import Labels, Scalar, as_table, cotangents
from ._scratch import Scratch
from ._step_products import Steps, Ways, steps_of
from ._steps import survey


class LayerCall(NamedTuple):
    """One call of a layer, of which some arguments and some outputs have a row a sample.

    Parameters
    ----------
    arguments : tuple
        Positional and keyword arguments, their tensors detached.
    keywords : tuple of str
        Names of the last of them.
    by_row : tuple of bool
        Which arguments have a row a sample.
    outputs : tuple of int
        Which of the tensors that the layer returned are differentiated.
    deltas : tuple of Tensor of shape (n, k, *output)
        The cotangents of these.
    edges : tuple of GradientEdge
        Where these come back to; none where the graph is not kept.
    sources : tuple of Node
        Where what the layer got goes back to; none where the graph is not kept.
    versions : tuple of int
        How often each argument had been written to.
    """

    arguments: tuple
    keywords: tuple[str, ...]
    by_row: tuple[bool, ...]
    outputs: tuple[int, ...]
    deltas: tuple[Tensor, ...] = ()
    edges: tuple[GradientEdge, ...] = ()
    sources: tuple[Node, ...] = ()
    versions: tuple[int, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether nothing has written over the arguments since."""
        return self.versions == _versions(self.arguments)

    @property
    def maps_rows(self) -> bool:
        """Whether one tensor was mapped to one."""
        return self.by_row == (True,) and self.outputs == (0,)

    def rows(self, part: slice) -> "LayerCall":
        """Return the call for some of the samples."""
        arguments = tuple(a[part] if by_row else a for a, by_row in zip(self.arguments, self.by_row))
        return self._replace(arguments=arguments, deltas=tuple(delta[part] for delta in self.deltas))

    def scalars(self, part: slice) -> "LayerCall":
        """Return the call for some of the scalars."""
        return self._replace(deltas=tuple(delta[:, part] for delta in self.deltas))


@dataclass(frozen=True)
class ForwardPass:
    """A net's outputs for a batch, and what rules need to make gradients of them.

    Parameters
    ----------
    apply : callable
        From (module, inputs) to outputs of shape (n, n_outputs).
    module : Module
    layers : dict of str to Module
        Those whose calls were recorded.
    inputs : Tensor of shape (n, ...)
    outputs : Tensor of shape (n, n_outputs)
    calls : dict of str to list of LayerCall or None
        The calls of each layer that the outputs depend on; None stands for one that has no row a sample.
    cotangents : Tensor of shape (n, k, n_outputs)
        The k linear forms of a sample's outputs that are differentiated.
    scratch : Scratch
    uses : dict of int to int
        By the identity of a parameter, how many steps of differentiation use it.
    as_tried : bool, default=True
        Whether rows took the same way through the net as those that decided on the rules.
    at_once : int, optional
        Number of pairs of a row and a scalar that `torch.func` works on at a time.
    steps : dict of str to list of Step or None
        The steps that use parameters, of which those were asked for; None where one is not understood.
    """

    apply: Callable[[nn.Module, Tensor], Tensor]
    module: nn.Module
    layers: Mapping[str, nn.Module]
    inputs: Tensor
    outputs: Tensor
    calls: Mapping[str, list[LayerCall | None]]
    cotangents: Tensor
    scratch: Scratch
    uses: Mapping[int, int]
    as_tried: bool = True
    at_once: int = 2**31
    steps: Steps = field(default_factory=dict)

    def rows(self, part: slice) -> "ForwardPass":
        """Return the pass of some of the samples."""
        if part == slice(0, len(self.inputs)):
            return self
        calls = {layer: [call and call.rows(part) for call in calls] for layer, calls in self.calls.items()}
        steps = {name: found and [step.rows(part) for step in found] for name, found in self.steps.items()}
        cut = {name: getattr(self, name)[part] for name in ("inputs", "outputs", "cotangents")}
        return replace(self, calls=calls, steps=steps, **cut)

    def takes(self, ways: Ways) -> bool:
        """Return whether parameters are used by such steps alone."""
        return all(
            (steps := self.steps[name]) and all(step.how in hows for step in steps) for name, (_, hows) in ways.items()
        )

    def at_steps(self, axes: Mapping[str, int]) -> "ForwardPass":
        """Return the pass, whose graph was kept, with the steps that use some parameters, and their axes of samples."""
        parameters = {name: self.module.get_parameter(name) for name in axes}
        steps = steps_of(self.outputs, parameters, axes, len(self.inputs))
        return replace(self, steps=_with_deltas(self.outputs, {}, steps, self.cotangents, True, False, 1)[1])

    def doubled(self) -> "ForwardPass":
        """Return the pass for each scalar and, after these, for each times two."""

        def and_twice(of_scalars: Tensor) -> Tensor:
            return torch.cat([of_scalars, 2 * of_scalars], 1)

        calls = {
            layer: [call and call._replace(deltas=tuple(map(and_twice, call.deltas))) for call in of_layer]
            for layer, of_layer in self.calls.items()
        }
        return replace(self, calls=calls, cotangents=and_twice(self.cotangents))

    def layer_of(self, name: str) -> str:
        """Return the innermost module around a parameter that was called; its own where none was.

        The weight of an attention's output projection, say, is used by the attention and not by the projection.
        """
        own = layer = name.rpartition(".")[0]
        while layer and not self.calls.get(layer):
            layer = layer.rpartition(".")[0]
        return layer or own

    def beside(self, mirrored: "ForwardPass") -> "ForwardPass":
        """Return the pass with what another one tells of its calls: which arguments have a row a sample.

        Something that is as long as the batch by chance does not turn around with it. A call becomes None if its rows
        come in an order that depends on them.

        Parameters
        ----------
        mirrored : ForwardPass
            Of the same samples in reverse.
        """
        calls: dict[str, list] = {}
        for layer, of_layer in self.calls.items():
            others = mirrored.calls[layer]
            same = len(of_layer) == len(others) and None not in (*of_layer, *others)
            calls[layer] = [_understood(*pair) for pair in zip(of_layer, others)] if same else [None]
        return replace(self, calls=calls)

    def signature(self) -> "Signature":
        """Return how each layer was called: rules that were right for it are right for the like of it."""
        return {layer: [None if call is None else call.by_row for call in calls] for layer, calls in self.calls.items()}

    def like(self, signature: "Signature") -> "ForwardPass | None":
        """Return the pass with its arguments understood as in `signature`, or None if its layers are called otherwise.

        An argument that happens to be as long as the batch is no row a sample if it was none before.
        """
        if not signature.keys() <= self.calls.keys():
            return None
        calls = {
            layer: [_conformed(call, by_row, len(self.inputs)) for call, by_row in zip(self.calls[layer], expected)]
            for layer, expected in signature.items()
        }
        same = all(len(self.calls[layer]) == len(signature[layer]) and None not in calls[layer] for layer in signature)
        return replace(self, calls=calls) if same else None


Calls = dict[str, list[LayerCall | None]]
Signature = Mapping[str, list[tuple[bool, ...] | None]]
Backward = Callable[[Tensor], tuple[Tensor | None, ...]]


def forward_pass(
    apply: Callable[[nn.Module, Tensor], Tensor],
    module: nn.Module,
    layers: Iterable[str],
    inputs: Tensor,
    scalar: Scalar,
    labels: Labels = None,
    scratch: Scratch | None = None,
    keep_graph: bool = False,
    any_order: bool = False,
    scalars_a_pass: int = 1,
    axes: Mapping[str, int] = MappingProxyType({}),
) -> ForwardPass:
    """Return a pass through `module`, for one scalar a row or for all.

    Parameters
    ----------
    apply : callable
        From (module, inputs) to outputs of shape (n, n_outputs).
    module : Module
    layers : iterable of str
        Names of the modules whose calls are recorded.
    inputs : Tensor of shape (n, ...)
    scalar : str or callable
    labels : Tensor of shape (n,) or "predicted", optional
    scratch : Scratch, optional
    keep_graph : bool
        Whether the outputs can still be differentiated.
    any_order : bool
        Whether there are calls where the net puts rows in another order, too.
    scalars_a_pass : int
        For how many scalars one backward pass goes; some steps can go back for one alone.
    axes : dict of str to {0, 1}
        The parameters whose steps are looked for, and which axis of these belongs to the samples.
    """
    modules = {name: module.get_submodule(name) for name in layers}
    with captured(modules, len(inputs), keep_graph) as calls:
        outputs = apply(module, inputs.clone())  # a net may write over what it gets
    if not outputs.requires_grad:
        raise ValueError(
            "the output of net cannot be differentiated: its forward detaches it, or runs without gradients (no_grad, "
            "inference_mode, checkpoints with use_reentrant=True), or it does not depend on any of the chosen `layers`."
        )
    forms, found = cotangents(scalar, outputs, labels), survey(outputs)
    parameters = {name: module.get_parameter(name) for name in axes}
    steps = steps_of(outputs, parameters, axes, len(inputs)) if axes else {}
    may_move = found.orders_rows and not any_order
    calls, steps = _with_deltas(outputs, calls, steps, forms, keep_graph, may_move, scalars_a_pass)
    outputs, scratch = outputs if keep_graph else outputs.detach(), scratch or Scratch()
    return ForwardPass(apply, module, modules, inputs, outputs, calls, forms, scratch, found.uses, steps=steps)


def net_output(output: Callable | None = None) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return the map from (module, inputs) to outputs of shape (n, n_outputs), which are what `output` picks out."""

    def apply(module: nn.Module, inputs: Tensor) -> Tensor:
        returned = module(inputs)
        if output is None:
            return as_table(returned, len(inputs))
        try:
            picked = output(returned)
        except Exception as error:  # whatever a user's function may raise
            raise ValueError(
                f"`output` (`net_output` of estimators) fails on what net returned, a {type(returned).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return as_table(picked, len(inputs))

    return apply


@contextmanager
def captured(
    layers: Mapping[str, nn.Module], n: int, keep_graph: bool = False
) -> Iterator[dict[str, list[LayerCall | None]]]:
    """Record the calls of `layers` on `n` rows, with gradients on; their place in the graph too if it is kept."""
    calls: dict[str, list[LayerCall | None]] = {name: [] for name in layers}

    def record(name: str, args: tuple, kwargs: dict, output: object) -> None:
        call = _layer_call(args, kwargs, leaves(output), n)
        if keep_graph and call is not None:
            given = leaves((*args, *kwargs.values()))
            call = call._replace(sources=tuple(get_gradient_edge(t).node for t in given if t.requires_grad))
        calls[name].append(call)

    with hooked(layers, record), torch.inference_mode(False), torch.enable_grad():
        yield calls


@contextmanager
def hooked(layers: Mapping[str, nn.Module], record: Callable[[str, tuple, dict, object], None]) -> Iterator[None]:
    """Call `record` with name, arguments, keyword arguments and output of every call of `layers`."""

    def hook_of(name: str):
        return lambda layer, args, kwargs, output: record(name, args, kwargs, output)

    handles = [layer.register_forward_hook(hook_of(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def leaves(output: object) -> list[Tensor]:
    """Return the tensors of a layer's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def _layer_call(args: tuple, kwargs: dict, outputs: list[Tensor], n: int) -> LayerCall | None:
    arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in (*args, *kwargs.values()))
    by_row = tuple(_has_rows(a, n) for a in arguments)
    live = tuple(i for i, tensor in enumerate(outputs) if tensor.requires_grad)
    if not any(by_row) or not live or not all(outputs[i].ndim > 1 and _has_rows(outputs[i], n) for i in live):
        return None
    # The edges are taken now: an in-place activation afterwards gives the same tensor another one.
    edges = tuple(get_gradient_edge(outputs[i]) for i in live)
    return LayerCall(arguments, tuple(kwargs), by_row, live, (), edges, (), _versions(arguments))


def _has_rows(argument: object, n: int) -> bool:
    return isinstance(argument, Tensor) and argument.shape[:1] == (n,)


def _versions(arguments: tuple) -> tuple[int, ...]:
    return tuple(a._version for a in arguments if isinstance(a, Tensor))


def _understood(call: LayerCall, mirrored: LayerCall) -> LayerCall | None:
    by_row = []
    for argument, other, rows in zip(call.arguments, mirrored.arguments, call.by_row):
        turned = rows and _is_close(argument, other.flip(0))
        if rows and not turned and not _is_close(argument, other):
            return None
        by_row.append(turned)
    pairs = zip(call.deltas, mirrored.deltas)
    if not any(by_row) or not all(_is_close(delta, other.flip(0)) for delta, other in pairs):
        return None
    return call._replace(by_row=tuple(by_row))


def _is_close(tensor: Tensor, other: Tensor) -> bool:
    if tensor.shape != other.shape or not tensor.numel():
        return tensor.shape == other.shape
    tensor, other = tensor.double(), other.double()
    return torch.allclose(tensor, other, 1e-3, 1e-3 * tensor.nan_to_num(0, 0, 0).abs().max().item(), equal_nan=True)


def _conformed(call: LayerCall | None, by_row: tuple[bool, ...] | None, n: int) -> LayerCall | None:
    if call is None or by_row is None or len(by_row) != len(call.arguments) or not call.is_intact:
        return None
    if call.by_row == by_row:
        return call
    return call._replace(by_row=by_row) if all(_has_rows(a, n) for a, b in zip(call.arguments, by_row) if b) else None


def _with_deltas(
    outputs: Tensor,
    calls: Calls,
    steps: Steps,
    forms: Tensor,
    keep_graph: bool,
    may_move: bool,
    scalars_a_pass: int,
) -> tuple[Calls, Steps]:
    """Return calls and steps with the cotangents of what they returned, no calls on which the outputs do not depend.

    There are none where rows, which may come in another order, do.
    """
    of_steps = [step for of_parameter in steps.values() for step in of_parameter or ()]
    of_calls = [edge for of_layer in calls.values() for call in of_layer if call for edge in call.edges]
    edges = [*of_calls, *(step.edge for step in of_steps)]
    if not edges:
        return calls, steps

    def back(form: Tensor, keep: bool = True) -> tuple[Tensor | None, ...]:
        found = torch.autograd.grad(outputs, edges, form, retain_graph=keep, allow_unused=True)
        cut = (delta if delta is None else step.by_row(delta) for step, delta in zip(of_steps, found[len(of_calls) :]))
        return (*found[: len(of_calls)], *cut) if of_steps else found

    if scalars_a_pass > 1:
        deltas = _batched(back, forms, scalars_a_pass)
    else:
        keep, last = keep_graph or may_move, forms.shape[1] - 1
        passes = [back(form, keep or j < last) for j, form in enumerate(forms.unbind(1))]
        deltas = [None if of_edge[0] is None else _stacked(of_edge) for of_edge in zip(*passes)]
    if may_move and not _rows_stay(back, forms[:, 0], deltas):
        return {}, dict.fromkeys(steps)
    found = iter(deltas)

    def complete(call: LayerCall | None) -> LayerCall | None:
        if call is None:
            return None
        own = [next(found) for _ in call.edges]
        used = [i for i, delta in enumerate(own) if delta is not None]
        kept = tuple(call.edges[i] for i in used) if keep_graph else ()
        return call._replace(
            edges=kept, outputs=tuple(call.outputs[i] for i in used), deltas=tuple(own[i] for i in used)
        )

    completed = {layer: [complete(call) for call in of_layer] for layer, of_layer in calls.items()}
    calls = {layer: [call for call in of_layer if call is None or call.deltas] for layer, of_layer in completed.items()}
    return calls, {
        name: of_parameter
        and [step._replace(edge=None, deltas=delta) for step, delta in zip(of_parameter, found) if delta is not None]
        for name, of_parameter in steps.items()
    }


def _rows_stay(back: Backward, form: Tensor, deltas: list[Tensor | None]) -> bool:
    """Return whether row i of the `deltas`, what comes back to the edges, is that of sample i, and of no other.

    Cotangents times powers of two come back so many times as large, without rounding: eight powers tell the digits of
    a row's number.
    """
    rows = torch.arange(len(form), device=form.device)
    for digit in range(max(1, math.ceil(math.log(max(1, len(form)), 8)))):
        weights = torch.exp2((rows // 8**digit % 8).to(form.dtype))
        for delta, found in zip(deltas, back(form * weights[:, None])):
            if delta is not None and delta.numel():
                expected = delta[:, 0].flatten(1) * weights[:, None].to(delta.dtype)
                if ((found.flatten(1) - expected).abs().amax(1) > 0.1 * expected.abs().amax(1)).any():
                    return False
    return True


def _batched(back: Backward, forms: Tensor, forms_a_pass: int) -> list[Tensor | None]:
    """Return what comes back of all forms, of shape (n, k, ...), of several by one pass."""
    used: list[bool] = []

    def found(form: Tensor) -> tuple[Tensor, ...]:
        gradients = back(form)
        used[:] = [gradient is not None for gradient in gradients]
        return tuple(gradient for gradient in gradients if gradient is not None)

    deltas = iter(torch.vmap(found, in_dims=1, out_dims=1, chunk_size=forms_a_pass)(forms))
    return [next(deltas) if is_used else None for is_used in used]


def _stacked(deltas: tuple[Tensor, ...]) -> Tensor:
    """Return (n, k, ...) for k tensors (n, ...), in the order of memory that these have."""
    if len(deltas) == 1:
        return deltas[0].unsqueeze(1)
    if deltas[0].ndim == 4 and deltas[0].is_contiguous(memory_format=torch.channels_last):
        return torch.stack([delta.movedim(1, -1) for delta in deltas], -2).movedim((-2, -1), (1, 2))
    return torch.stack(deltas, 1)
