"""Rules: ways to the per-sample gradients of some parameters, from the cheapest to the most general.

A `ForwardPass` and names of parameters enter; gradients of shape (n, k, *parameter.shape) leave, keyed by name. Which
rule a parameter takes is tried out once: each row's gradient has to be autograd's of that row's logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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
            logits = forward.module(row.clone())[0]
        for cotangent in cotangents:
            gradients = _autograd(logits, parameters, cotangent)
            for name in names:
                rows[name].append(gradients[name])
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
    parameters = {name: forward.module.get_parameter(name) for name in names}
    truth = _Truth([_autograd(row, parameters, c[0]) for row, c in zip(forward.logits, forward.cotangents)])
    depends = torch.autograd.grad(forward.logits.sum(), parameters.values(), retain_graph=True, allow_unused=True)
    chosen = {
        name: ParameterRule(name, unused.__name__, "the output does not depend on it")
        for name, gradient in zip(names, depends)
        if gradient is None
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
            f"the gradients of {', '.join(missing)} differ from run to run, or from batch to batch: net is random in "
            "evaluation mode, or mixes the rows of a batch. Features need a net that is a function of each row by "
            "itself."
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


@dataclass(frozen=True)
class _Truth:
    """Autograd's gradients of each row's logits, keyed by name."""

    rows: list[Gradients]

    @cached_property
    def largest(self) -> float:
        """The largest magnitude of any entry."""
        return max(_size(gradient) for row in self.rows for gradient in row.values())

    def agrees(self, name: str, gradients: Tensor | None, rounding: float) -> bool:
        """Whether `gradients` of shape (n, 1, ...) are the true ones, where zero is up to rounding of the largest."""
        if gradients is None or gradients.shape != (len(self.rows), 1, *self.rows[0][name].shape):
            return False
        size = max(_size(row[name]) for row in self.rows)
        error = max(_size(mine[0] - row[name]) for mine, row in zip(gradients, self.rows))
        return error <= rounding * (1e3 * size + self.largest)


def _size(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, torch.inf).item() if tensor.numel() else 0.0


def _autograd(logits: Tensor, parameters: Gradients, cotangent: Tensor) -> Gradients:
    found = torch.autograd.grad(
        logits, parameters.values(), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, found))


def _is_right(rule: Rule, forward: ForwardPass, names: Sequence[str], truth: _Truth) -> dict[str, bool]:
    """Return for each of `names` whether `rule` gives the true gradients."""
    try:
        with torch.no_grad():
            gradients = rule(forward, names) if names else {}
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # what transforms raise on what they cannot do
        return dict.fromkeys(names, False)
    # The loop is right wherever a row's gradient is a fact at all: it may differ by rounding inside the net.
    rounding = 1e-6 if rule is loop else 100 * torch.finfo(forward.logits.dtype).eps
    return {name: truth.agrees(name, gradients.get(name), rounding) for name in names}


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
