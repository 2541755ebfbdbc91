"""Rules: ways to the per-sample gradients of some parameters, from the cheapest to the most general.

A `ForwardPass` and names of parameters enter; gradients of shape (n, k, *parameter.shape) leave, keyed by name. Which
rule a parameter takes is tried out once: the per-sample gradients have to sum to autograd's gradient of the sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _layer_rules
from ._forward import ForwardPass

Gradients = dict[str, Tensor]
Rule = Callable[[ForwardPass, Sequence[str]], Gradients]


@dataclass(frozen=True)
class ParameterRule:
    """How the gradients of one parameter are computed, and why so."""

    name: str
    rule: str
    why: str


def closed_form(forward: ForwardPass, names: Sequence[str]) -> Gradients:
    """Products of what enters a layer and what comes back to it."""

    def of_call(layer, own_names, inputs, delta):
        rule = _layer_rules.exact_rule(layer)
        return {name: rule(layer, name, inputs, delta) for name in own_names}

    return _by_layer(forward, names, of_call)


def layer_transform(forward: ForwardPass, names: Sequence[str]) -> Gradients:
    """`torch.func` transforms of the layer alone."""
    return _by_layer(forward, names, _layer_rules.transform)


def net_transform(forward: ForwardPass, names: Sequence[str]) -> Gradients:
    """`torch.func` transforms of the whole net."""
    return _layer_rules.transform(forward.module, names, forward.inputs, forward.cotangents)


def loop(forward: ForwardPass, names: Sequence[str]) -> Gradients:
    """A forward pass a sample and a backward pass a sample and label."""
    parameters = {name: forward.module.get_parameter(name) for name in names}
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for row, cotangents in zip(forward.inputs.split(1), forward.cotangents):
        with torch.enable_grad():
            logits = forward.module(row)[0]
        for cotangent in cotangents:
            gradients = torch.autograd.grad(logits, list(parameters.values()), cotangent, retain_graph=True)
            for name, gradient in zip(names, gradients):
                rows[name].append(gradient)
    shape = forward.cotangents.shape[:2]
    return {name: torch.stack(rows[name]).unflatten(0, shape) for name in names}


def unused(forward: ForwardPass, names: Sequence[str]) -> Gradients:
    """Zeros."""
    shape = forward.cotangents.shape[:2]
    parameters = {name: forward.module.get_parameter(name) for name in names}
    return {name: p.new_zeros(*shape, *p.shape) for name, p in parameters.items()}


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (closed_form, layer_transform, net_transform, loop, unused)}


def choose_rules(forward: ForwardPass, names: Sequence[str]) -> tuple[ParameterRule, ...]:
    """Return the cheapest rule that is right on `forward`, for each of the parameters `names`.

    Raises
    ------
    ValueError
        Where no rule gives autograd's gradient, as with a net that is random in evaluation mode.
    """
    parameters = [forward.module.get_parameter(name) for name in names]
    sums = torch.autograd.grad(
        forward.logits, parameters, forward.cotangents.sum(1), retain_graph=True, allow_unused=True
    )
    truth = dict(zip(names, sums))
    chosen = {
        name: ParameterRule(name, unused.__name__, "the output does not depend on it")
        for name in names
        if truth[name] is None
    }
    why_not = {}
    for name in names:
        if name not in chosen:
            rule, why_not[name] = _rule_of_layer(forward, name)
            if rule is not None:
                if _is_right(rule, forward, [name], truth)[name]:
                    chosen[name] = ParameterRule(name, rule.__name__, why_not[name])
                else:
                    why_not[name] = "its layer's own gradient is not the whole of it"
    for rule in (net_transform, loop):
        missing = [name for name in names if name not in chosen]
        for name, right in _is_right(rule, forward, missing, truth).items():
            if right:
                chosen[name] = ParameterRule(name, rule.__name__, why_not[name])
    missing = [name for name in names if name not in chosen]
    if missing:
        raise ValueError(
            f"the per-sample gradients of {', '.join(missing)} do not sum to the gradient of the batch: net is "
            "random in evaluation mode, or treats a row alone otherwise than the row in a batch. Features need a net "
            "that is a function of each row by itself."
        )
    return tuple(chosen[name] for name in names)


def _rule_of_layer(forward: ForwardPass, name: str) -> tuple[Rule | None, str]:
    layer_name, _, own_name = name.rpartition(".")
    layer, calls = forward.module.get_submodule(layer_name), forward.calls[layer_name]
    if not calls:
        return None, "used outside of its module's forward"
    if None in calls:
        return None, "its layer does more than map one tensor to one"
    if not all(call.is_intact for call in calls):
        return None, "something writes over its layer's input"
    if _layer_rules.exact_rule(layer) and own_name in ("weight", "bias"):
        return closed_form, f"a {type(layer).__name__} layer"
    return layer_transform, f"no closed form for {type(layer).__name__}"


def _is_right(rule: Rule, forward: ForwardPass, names: Sequence[str], truth: dict[str, Tensor]) -> dict[str, bool]:
    """Return for each of `names` whether the gradients by `rule` sum to `truth`."""
    try:
        with torch.no_grad():
            gradients = rule(forward, names) if names else {}
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # what transforms raise on what they cannot do
        return dict.fromkeys(names, False)
    right = {}
    for name in names:
        total = gradients[name].sum((0, 1))
        tolerance = 1e4 * torch.finfo(total.dtype).eps * gradients[name].abs().sum((0, 1)).max().clamp(min=1e-30)
        right[name] = bool((total - truth[name]).abs().max() <= tolerance)
    return right


def _by_layer(forward: ForwardPass, names: Sequence[str], of_call: Callable) -> Gradients:
    """Apply `of_call` to every call of the layers of `names`; a layer that is called twice adds up."""
    total: Gradients = {}
    for layer_name in dict.fromkeys(name.rpartition(".")[0] for name in names):
        own = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == layer_name}
        layer = forward.module.get_submodule(layer_name)
        for call, delta in zip(forward.calls[layer_name], forward.deltas[layer_name]):
            if delta is not None:
                for own_name, gradient in of_call(layer, list(own), call.inputs, delta).items():
                    name = own[own_name]
                    total[name] = total[name] + gradient if name in total else gradient
    return total
