"""Nets whose per-sample gradients would mean nothing, refused by name.

A net, some rows and what it returned for them enter; nothing leaves, or an error that says what to do.
"""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._forward import ForwardPass, hooked, leaves
from ._outputs import Scalar, cotangents

# Steps of differentiation behind which outputs are the same numbers in another form.
_RESHAPES = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "ToCopy")


def refuse_batch_statistics(module: nn.Module) -> None:
    """Refuse layers whose output or gradient is a matter of the batch, also in evaluation mode."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.running_mean is None or layer.training):
            why = "without running statistics. Train it with track_running_stats=True."
            if layer.training:
                why = "that stays in training mode. Do not override `train` of the modules around it."
            raise ValueError(f"layer {name!r} mixes the rows of a batch: {type(layer).__name__} {why}")
        if getattr(layer, "scale_grad_by_freq", False):
            raise ValueError(
                f"layer {name!r} mixes the rows of a batch: its gradients are scaled by how often the batch holds an "
                "index. Make it with scale_grad_by_freq=False."
            )


def refuse_foreign_parameters(net: nn.Module, uses: Collection[int]) -> None:
    """Refuse outputs of a copy of `net` if they come from parameters of `net` itself; `uses` are identities."""
    found = [name for name, parameter in net.named_parameters() if id(parameter) in uses]
    if found:
        raise ValueError(
            f"net's forward holds on to {', '.join(found)} from outside of its modules, which a copy of net does not "
            "change: a function put in the place of a module's forward, or a hook, closes over them, or an attribute "
            "was computed from them when net was made. Take them from the module in its forward."
        )


def refuse_probabilities(module: nn.Module, outputs: Tensor, scalar: Scalar) -> None:
    """Refuse outputs that are probabilities where logits are differentiated."""
    if callable(scalar) or scalar == "logit":
        return
    sums_to_one = outputs.shape[1] > 1 and outputs.min() >= 0 and (outputs.sum(1) - 1).abs().max() <= 1e-3
    if sums_to_one or (outputs.shape[1] == 1 and ends_with_sigmoid(module, outputs)):
        which = "its rows sum to one" if sums_to_one else "it ends with a Sigmoid"
        raise ValueError(
            f"net returns probabilities: {which}. Gradients are those of the cross-entropy of logits: leave the "
            "softmax out, or pass a module that returns the logarithm."
        )


def ends_with_sigmoid(module: nn.Module, outputs: Tensor) -> bool:
    """Return whether a module's outputs come from a sigmoid: a call, or its last layer.

    A call is seen in outputs that can be differentiated; others must be such as a sigmoid returns.
    """
    step = outputs.grad_fn
    while type(step).__name__.startswith(_RESHAPES):
        step = step.next_functions[0][0]
    *_, last = module.modules()  # the last that was defined: a gate may be, in front of the logits
    of_last_layer = isinstance(last, nn.Sigmoid) and bool(outputs.min() >= 0 and outputs.max() <= 1)
    return type(step).__name__.startswith("Sigmoid") or of_last_layer


@torch.no_grad()
def refuse_mixing(forward: ForwardPass, scalar: Scalar) -> None:
    """Refuse a net, or a scalar, that makes something else of a row when it comes alone."""
    values = (lambda z: scalar(z.clone())) if callable(scalar) else partial(cotangents, scalar)
    scalars = values(forward.outputs.detach())
    for row in range(len(forward.inputs)):
        together, alone = forward.outputs[row], forward.apply(forward.module, forward.inputs[row : row + 1].clone())[0]
        difference = (together - alone).abs().max()
        rounding = max(1e-6, 1e3 * torch.finfo(together.dtype).eps)
        if difference > rounding * together.abs().max():
            layer = _first_that_mixes(forward, row, rounding)
            where = "" if layer is None else f", first in its layer {layer!r}"
            raise ValueError(
                f"net mixes the rows of a batch, or is random{where}: the logits of a row differ by {difference:.2g} "
                "when it comes alone. Features need a net that is a function of each row by itself."
            )
        of_row, of_batch = values(together.detach()[None])[0], scalars[row]
        if of_row.shape != of_batch.shape or (of_row - of_batch).abs().max() > rounding * scalars.abs().max():
            raise ValueError("scalar mixes the rows of a batch: each row must come from that row of the outputs alone.")


def refuse_mixing_of_many(together: Tensor, alone: Tensor, largest: float) -> None:
    """Refuse a net whose outputs for many rows differ, beyond a share of the largest, when the rows come one by one."""
    differences = (together - alone).nan_to_num(0, 0, 0).abs().amax(1)  # a pass refuses what is not finite, by row
    if differences.max() > largest * together.nan_to_num(0, 0, 0).abs().max():
        raise ValueError(
            f"net mixes the rows of a batch, or is random: the logits of a row differ by {differences.max():.2g} when "
            "it comes alone. Features need a net that is a function of each row by itself."
        )


def _first_that_mixes(forward: ForwardPass, row: int, rounding: float) -> str | None:
    """Return the first layer without parts whose output for a row differs when the row comes alone."""
    layers = {name: layer for name, layer in forward.module.named_modules() if name and not any(layer.children())}

    def outputs(inputs: Tensor, of: int) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []

        def record(name: str, args: tuple, kwargs: dict, output: object) -> None:
            found.extend((name, t[of].clone()) for t in leaves(output) if t.ndim > 1 and len(t) == len(inputs))

        with hooked(layers, record):
            forward.apply(forward.module, inputs.clone())
        return found

    for (name, together), (_, alone) in zip(outputs(forward.inputs, row), outputs(forward.inputs[row : row + 1], 0)):
        if together.shape != alone.shape or (together - alone).abs().max() > rounding * together.abs().max():
            return name
    return None
