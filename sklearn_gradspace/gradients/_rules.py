"""Rules: ways to the per-sample gradients of some parameters, from the cheapest to the most general.

A `ForwardPass` and, for each parameter, the place of shape (n, k, *parameter.shape) for its gradients enter; the places
are written to. Which rule a parameter takes is tried out once: each row's gradient has to be autograd's of that row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import _layer_rules
from ._forward import ForwardPass, LayerCall
from ._memory import is_out_of_memory
from ._passes import slices
from ._step_products import Ways, write_products
from ._steps import StepGraph

Gradients = dict[str, Tensor]
Rule = Callable[[ForwardPass, Gradients], None]

_TRUTH_BYTES = 2**26  # gradients that are compared with autograd's at a time
_AGAIN_BYTES = 2**24  # gradients of a layer's second call, and those that follow, that are added at a time
_NOT_ALL = "its layer's own gradient is not the whole of it"
_NOT_RIGHT = "torch.func fails on its layer, or is not right"


@dataclass(frozen=True)
class ParameterRule:
    """How the gradients of one parameter are computed, and why so.

    Parameters
    ----------
    name : str
        Name of the parameter in the net.
    rule : {"closed_form", "step_products", "layer_transform", "net_transform", "loop", "unused"}
        Products of what enters its layer and what comes back to it; products at the sums and matrix products that use
        it; `torch.func` on its layer, or on the whole net; a backward pass for each row and scalar; zeros.
    why : str
        What decided.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import GradientEngine
    >>> engine = GradientEngine(torch.nn.Linear(4, 3), torch.ones(2, 4).numpy())
    >>> engine.rules[0]
    ParameterRule(name='weight', rule='closed_form', why='a Linear layer')
    """

    name: str
    rule: str
    why: str


class EngineReport(tuple):
    """The rules of all parameters; as text a table."""

    def __str__(self) -> str:
        width, rule_width = (max((len(getattr(r, of)) for r in self), default=0) for of in ("name", "rule"))
        return "\n".join(f"{r.name:<{width}}  {r.rule:<{rule_width}}  {r.why}" for r in self)


def closed_form(forward: ForwardPass, out: Gradients) -> None:
    """Products of what enters a layer and what comes back to it."""

    def write(layer, call: LayerCall, own: Gradients) -> None:
        rule, dtype = _layer_rules.exact_rule(layer), next(iter(own.values())).dtype
        inputs, deltas = (_as_precise(t, dtype) for t in (call.arguments[0], call.deltas[0]))
        for name, place in own.items():
            rule(layer, name, inputs, deltas, place, forward.scratch)

    _by_layer(forward, out, write)


def step_products(forward: ForwardPass, out: Gradients) -> None:
    """Products of what the steps that use a parameter multiply it with and what comes back to them."""
    for name, place in out.items():
        write_products(forward.steps[name], place)


def layer_transform(forward: ForwardPass, out: Gradients) -> None:
    """`torch.func` transforms of the layer alone."""

    def write(layer, call: LayerCall, own: Gradients) -> None:
        _layer_rules.transform(layer, call, own, forward.at_once)

    _by_layer(forward, out, write)


def net_transform(forward: ForwardPass, out: Gradients) -> None:
    """`torch.func` transforms of the whole net."""

    def outputs(parameters: Gradients, sample: Tensor) -> tuple[Tensor]:
        return (forward.apply(lambda x: functional_call(forward.module, parameters, (x,)), sample),)  # type: ignore[arg-type]

    parameters = {name: forward.module.get_parameter(name).detach() for name in out}
    _layer_rules.per_sample(outputs, parameters, (forward.inputs,), (forward.cotangents,), out, forward.at_once)


def loop(forward: ForwardPass, out: Gradients) -> None:
    """A forward pass a sample and a backward pass a sample and scalar."""
    parameters = {name: forward.module.get_parameter(name) for name in out}
    for i, row in enumerate(forward.inputs.split(1)):
        with torch.enable_grad():
            outputs = forward.apply(forward.module, row.clone())[0]
        for k, cotangent in enumerate(forward.cotangents[i]):
            for name, gradient in autograd(outputs, parameters, cotangent).items():
                out[name][i, k] = gradient


def unused(forward: ForwardPass, out: Gradients) -> None:
    """Zeros."""
    for place in out.values():
        place.zero_()


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (closed_form, step_products, layer_transform, net_transform, loop, unused)
}
_TRANSFORMS = (layer_transform, net_transform)
LAYER_RULES = (closed_form.__name__, layer_transform.__name__)


def write_gradients(forward: ForwardPass, rules: Sequence[ParameterRule], out: Gradients) -> None:
    """Write the gradients of all parameters by the rule of each."""
    with torch.no_grad():
        for rule in dict.fromkeys(r.rule for r in rules):
            RULES[rule](forward, {r.name: out[r.name] for r in rules if r.rule == rule})


def outer_factors(
    forward: ForwardPass, rules: Sequence[ParameterRule], dtype: torch.dtype = torch.float32
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors, in `dtype`, of gradients that are an outer product of two vectors and no more precise."""
    factors = {}
    for name, layer in ((r.name, r.name.rpartition(".")[0]) for r in rules if r.rule == closed_form.__name__):
        calls = forward.calls.get(layer, [])
        if len(calls) == 1 and name.endswith("weight") and calls[0].arguments[0].ndim == 2:
            inputs, deltas = calls[0].arguments[0], calls[0].deltas[0]
            linear = isinstance(forward.layers[layer], nn.Linear)
            if linear and torch.promote_types(inputs.dtype, dtype) == dtype:
                factors[name] = deltas.detach().to(dtype), inputs.detach().to(dtype)
    return factors


def choose_rules(forward: ForwardPass, names: Sequence[str], at_steps: bool = True) -> tuple[EngineReport, Ways]:
    """Return the cheapest rule that is right on `forward`, whose graph was kept, for each of the parameters `names`.

    Parameters
    ----------
    forward : ForwardPass
    names : sequence of str
    at_steps : bool
        Whether parameters may have the rule `step_products`, which is then right for steps like those returned.

    Raises
    ------
    ValueError
        Where no rule gives autograd's gradient, as with a net that is random in evaluation mode.
    """
    parameters = {name: forward.module.get_parameter(name) for name in names}
    sums = torch.autograd.grad(forward.outputs.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
    largest = max((_size(gradient) for gradient in sums if gradient is not None), default=0.0)
    largest *= _size(forward.cotangents)
    chosen = {
        name: ParameterRule(name, unused.__name__, "the output does not depend on it")
        for name, gradient in zip(names, sums)
        if gradient is None
    }
    del sums
    graph, ways = StepGraph(forward.outputs), dict[str, tuple[int, tuple[tuple, ...]]]()
    for group in _groups(parameters, len(forward.inputs)):
        trial = _Trial(forward, group, largest)
        candidates = {name: _rule_of_layer(forward, name, graph) for name in group if name not in chosen}
        for rule in (closed_form, step_products, layer_transform, net_transform, loop):
            if rule is step_products:
                found = trial.ways([name for name in candidates if at_steps and name not in chosen])
                for name, (_, hows) in found.items():
                    roles = " and ".join(sorted({role for role, *_ in hows}))
                    chosen[name] = ParameterRule(name, rule.__name__, f"used by {roles} alone")
                ways |= found
                continue
            general = rule in (net_transform, loop)
            tried = [name for name, (own, _) in candidates.items() if name not in chosen and (general or own is rule)]
            for name, right in trial.passes(rule, tried).items():
                if right:
                    own, why = candidates[name]
                    if general and own:
                        why = _NOT_ALL if own is closed_form else _NOT_RIGHT
                    chosen[name] = ParameterRule(name, rule.__name__, why)
    missing = [name for name in names if name not in chosen]
    if missing:
        raise ValueError(
            f"the gradients of {', '.join(missing)} differ from run to run, or from batch to batch: net is random in "
            "evaluation mode, or mixes the rows of a batch. Features need a net that is a function of each row by "
            "itself."
        )
    return EngineReport(chosen[name] for name in names), ways


def _rule_of_layer(forward: ForwardPass, name: str, graph: StepGraph) -> tuple[Rule | None, str]:
    layer_name = forward.layer_of(name)
    layer, calls = forward.layers[layer_name], forward.calls[layer_name]
    if not calls:
        return None, "used outside of its module's forward"
    if None in calls:
        return None, "its layer does not keep a row a sample"
    if not all(call.is_intact for call in calls):
        return None, "something writes over its layer's input"
    # It may be more only for other rows, or for scalars that are not tried: the steps tell.
    steps = [([edge.node for edge in call.edges], call.sources) for call in calls]
    if graph.leads_past(forward.module.get_parameter(name), steps):
        return None, _NOT_ALL
    exact = _layer_rules.exact_rule(layer) and _own_name(name, layer_name) in ("weight", "bias")
    if exact and all(call.maps_rows for call in calls):
        return closed_form, f"a {type(layer).__name__} layer"
    return layer_transform, f"no closed form for {type(layer).__name__}"


def _own_name(name: str, layer: str) -> str:
    return name.removeprefix(f"{layer}.")


class _Trial:
    """The comparison of rules with autograd, row by row, on parameters of a bounded size."""

    def __init__(self, forward: ForwardPass, names: Sequence[str], largest: float) -> None:
        self.forward, self.largest = forward, largest
        parameters = {name: forward.module.get_parameter(name) for name in names}
        rows = [autograd(row, parameters, c[0]) for row, c in zip(forward.outputs, forward.cotangents)]
        self.truth = {name: torch.stack([row[name] for row in rows]) for name in names}

    def ways(self, names: Sequence[str]) -> Ways:
        """Return what is known of the steps of those of `names` of which `step_products` gives the true gradients."""
        found: dict = {}
        for axis in (0, 1):
            forward = self.forward.at_steps(dict.fromkeys([name for name in names if name not in found], axis))
            steps = {name: of_parameter for name, of_parameter in forward.steps.items() if of_parameter}
            right = self.passes(step_products, list(steps), forward)
            found |= {
                name: (axis, tuple(sorted({tuple(step.how) for step in steps[name]}))) for name in steps if right[name]
            }
        return found

    def passes(self, rule: Rule, names: Sequence[str], forward: ForwardPass | None = None) -> dict[str, bool]:
        """Return for each of `names` whether `rule` gives the true gradients, zero up to rounding of the largest."""
        if not names:
            return {}
        # A transform may be right for one scalar, and mix what goes back for two.
        tried, scalars = forward or self.forward, 1
        if rule in _TRANSFORMS:
            tried, scalars = tried.doubled(), 2
        truths = {name: self.truth[name] for name in names}
        found = {name: t.new_full((len(t), scalars, *t.shape[1:]), torch.nan) for name, t in truths.items()}
        try:
            with torch.no_grad():
                rule(tried, found)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # of transforms that cannot
            if is_out_of_memory(error):
                raise
            alone = {name: self.passes(rule, [name], forward)[name] for name in names} if len(names) > 1 else {}
            return alone or {names[0]: False}
        # The loop is right wherever a row's gradient is a fact at all: it may differ by rounding inside the net.
        rounding = 1e-6 if rule is loop else 100 * torch.finfo(self.forward.outputs.dtype).eps
        return {
            name: all(
                _size(of_scalar.sub_(truth, alpha=times)) <= rounding * (1e3 * _size(truth) + self.largest)
                for times, of_scalar in enumerate(found[name].unbind(1), 1)
            )
            for name, truth in truths.items()
        }


def autograd(outputs: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor) -> Gradients:
    """Return the gradients of one linear form of `outputs`, zeros where these do not depend on a parameter."""
    found = torch.autograd.grad(
        outputs, list(parameters.values()), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return {name: g.to_dense() if g.is_sparse else g for name, g in zip(parameters, found)}


def _size(tensor: Tensor) -> float:
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return torch.linalg.vector_norm(tensor, torch.inf).item() if tensor.numel() else 0.0


def _groups(parameters: Mapping[str, Tensor], rows: int) -> list[list[str]]:
    """Return the names in consecutive groups, each with gradients of a bounded size or a single one."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, parameter in parameters.items():
        n_bytes = rows * parameter.numel() * parameter.element_size()
        if groups[-1] and size + n_bytes > _TRUTH_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += n_bytes
    return groups


def _as_precise(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _by_layer(forward: ForwardPass, out: Gradients, write: Callable) -> None:
    """Apply `write` to every call of the layers of `out`; a layer that is called twice adds up."""
    by_layer: dict[str, Gradients] = {}
    for name, place in out.items():
        layer = forward.layer_of(name)
        by_layer.setdefault(layer, {})[_own_name(name, layer)] = place
    for layer, own in by_layer.items():
        module, (first, *others) = forward.layers[layer], forward.calls[layer]
        write(module, first, own)
        if not others:
            continue
        step = _AGAIN_BYTES // max(1, sum(place[:, 0].nbytes for place in own.values()))
        for call, scalars in product(others, slices(forward.cotangents.shape[1], max(1, step))):
            more = {name: torch.empty_like(place[:, scalars]) for name, place in own.items()}
            write(module, call.scalars(scalars), more)
            for name, place in own.items():
                place[:, scalars].add_(more[name])
