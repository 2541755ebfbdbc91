"""Steps in basis path values: ``method="path"``.

Weights become coordinates of a `Chart`, and their gradients those of the coordinates, by the inverse chain rule; the
inner optimizer moves the coordinates; weight allocation makes weights of them.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ..pathspace import ScaleGraph
from ._chart import Chart, Entries, make_chart
from ._parameter_units import ParameterUnits, parameter_units
from ._state import clear_state, replace_state, rescale_state

_LARGEST_STEP = 2.0  # by which a step may multiply or divide a chain's ratio: it never changes its sign
_SAFE_RATIO = 2.0  # beyond which a new chart is made
_LARGEST_RATIO = 4.0  # beyond which no ratio goes, until there is one


@dataclass(frozen=True)
class _Coordinates:
    """What makes coordinates of a parameter's weights: the ratio of the chain of the unit read, times a length.

    `chain` and `length`, and `to_value`, which makes path values of coordinates, are broadcastable to the parameter's
    shape, or None where they are 1.
    """

    parameter: nn.Parameter
    chain: Tensor | None
    length: Tensor | None
    to_value: Tensor | None

    @classmethod
    def of(cls, units: ParameterUnits, chart: Chart, raw: bool) -> "_Coordinates":
        chain, value = None, units.factor(chart.reading, chart.writing)
        if units.read is not None and bool((chart.chain[units.read] < chart.n_chains).any()):
            chain = chart.chain[units.read]
        return cls(units.parameter, chain, *((value, None) if raw else (None, value)))

    def factor(self, ratio: Tensor) -> Tensor | None:
        """Return what weights are multiplied by; `ratio` has an entry more for what is in no chain."""
        if self.chain is None:
            return self.length
        factor = ratio[self.chain].to(self.parameter.dtype)
        return factor if self.length is None else factor * self.length


def chain_coordinates(graph: ScaleGraph) -> Tensor:
    """Return a vector for the coordinates of chains, which has no entries yet."""
    like = parameter_units(graph)[0].parameter
    return torch.empty(0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


class PathSteps:
    """Moves the coordinates of a chart, and the weights with them.

    Parameters
    ----------
    graph : ScaleGraph
        The net's scale graph.
    inner : Optimizer
        It moves the coordinates; the last of each of its groups is made by `chain_coordinates`.
    raw : bool
        Whether coordinates are path values themselves.
    penalty : float
        Factor of the sum of squared basis path values that is added to the loss.
    every : int
        Number of steps after which a new chart is made if a chain's ratio has left the safe range.
    """

    def __init__(self, graph: ScaleGraph, inner: torch.optim.Optimizer, raw: bool, penalty: float, every: int) -> None:
        self._graph, self._inner, self._raw, self._penalty, self._every = graph, inner, raw, penalty, every
        self._units, self._parameters = (
            parameter_units(graph, without=penalty > 0),
            dict(graph.module.named_parameters()),
        )
        self._chains = [group["params"][-1] for group in inner.param_groups]
        self._like = torch.empty_like(self._chains[0])
        group_of = {id(parameter): i for i, group in enumerate(inner.param_groups) for parameter in group["params"]}
        self._group_of = {name: group_of.get(id(parameter), 0) for name, parameter in self._parameters.items()}
        self._n_steps = 0
        self._chart: Chart | None = None
        self._versions: list[int] | None = None

    def step(self) -> None:
        """Let the inner optimizer make its step."""
        if self._chart is None:
            self._first_chart()
        elif self._versions not in (None, self._seen()):  # weights were changed from outside
            self._renew()
        chart, ratio = self._chart, self._ratio[:-1]
        self._set_chain_gradients()
        gradients = self._to_coordinates()
        frozen = {name: self._parameters[name][entries.index] for name, entries in chart.frozen.items()}
        self._inner.step()
        for parameter, gradient in [*gradients, *((coordinates, None) for coordinates in self._chains)]:
            parameter.grad = gradient
        after = torch.cat(self._chains) / chart.length
        after = torch.where(after.isfinite(), after, ratio).clamp(ratio / _LARGEST_STEP, ratio * _LARGEST_STEP)
        after = after.clamp(1 / _LARGEST_RATIO, _LARGEST_RATIO)
        self._set_ratio(after)
        self._to_weights(frozen)
        self._n_steps += 1
        if self._n_steps % self._every == 0 and ((after > _SAFE_RATIO) | (after < 1 / _SAFE_RATIO)).any():
            self._renew()
        self._versions = self._seen()

    def _seen(self) -> list[int]:
        return [self._parameters[name]._version for name in self._chart.skeleton]

    def __getstate__(self) -> dict:
        return vars(self) | {"_versions": None}  # copies of weights have versions of their own

    def _set_chain_gradients(self) -> None:
        """Inverse chain rule: a chain's gradient, from w dL/dw of the weights that it moves."""
        chart, ratio = self._chart, self._ratio[:-1]
        total = torch.zeros_like(self._ratio)
        for of in self._coordinates:
            if of.chain is not None and of.parameter.grad is not None:
                products = (of.parameter * of.parameter.grad).sum_to_size(of.chain.shape).flatten()
                total.index_add_(0, of.chain.flatten(), products.to(total.dtype), alpha=-1)
        for name, entries in chart.skeleton.items():  # those that are held were subtracted with the others
            gradient = self._parameters[name].grad
            if gradient is not None:
                total.index_add_(
                    0, entries.chain, gradient[entries.index].to(total.dtype) * self._weights[entries.place]
                )
        gradient = total[:-1] / ratio
        if self._penalty:
            gradient += 2 * self._penalty * ratio * chart.value**2
        for coordinates, part in zip(self._chains, (gradient / chart.length).split(chart.sizes), strict=True):
            coordinates.grad = part

    def _to_coordinates(self) -> list[tuple[Tensor, Tensor]]:
        """Make coordinates of weights, and of their gradients; return the gradients, which are put back afterwards."""
        gradients: list[tuple[Tensor, Tensor]] = []
        for of in self._coordinates:
            parameter, gradient, factor = of.parameter, of.parameter.grad, of.factor(self._ratio)
            if factor is not None:
                parameter.mul_(factor)
            if gradient is None or (factor is None and not self._penalty):
                continue
            parameter.grad = gradient.clone() if factor is None else gradient / factor
            if self._penalty:
                values = parameter if of.to_value is None else parameter * of.to_value**2
                parameter.grad.add_(values, alpha=2 * self._penalty)
            gradients.append((parameter, gradient))
        return gradients

    def _to_weights(self, frozen: dict[str, Tensor]) -> None:
        """Weight allocation."""
        for name, entries in self._chart.frozen.items():
            self._parameters[name][entries.index] = frozen[name]
        for of in self._coordinates:
            factor = of.factor(self._ratio)
            if factor is not None:
                of.parameter.div_(factor)
        for name, entries in self._chart.skeleton.items():
            parameter = self._parameters[name]
            parameter[entries.index] = self._weights[entries.place].to(parameter.dtype)

    def _set_ratio(self, ratio: Tensor) -> None:
        """Set the chains' coordinates, and the skeleton's weights that follow from them."""
        chart, one = self._chart, ratio.new_ones(1)
        for coordinates, part in zip(self._chains, (ratio * chart.length).split(chart.sizes), strict=True):
            coordinates.copy_(part)
        self._ratio = torch.cat([ratio, one])
        self._weights = torch.cat([chart.start * ratio / self._ratio[chart.parent], chart.held])

    def _first_chart(self) -> None:
        chart = self._new_chart()
        for coordinates, length in zip(self._chains, chart.length.split(chart.sizes), strict=True):
            replace_state(self._inner, coordinates, torch.full_like(length, -1, dtype=torch.int64), length)
        self._set_chart(chart)

    def _new_chart(self) -> Chart:
        return make_chart(self._graph, self._raw, self._group_of, len(self._chains), self._like)

    def _set_chart(self, chart: Chart) -> None:
        self._chart = chart
        self._coordinates = [_Coordinates.of(units, chart, self._raw) for units in self._units]
        for coordinates, size in zip(self._chains, chart.sizes, strict=True):
            coordinates.data = self._like.new_empty(size)
        self._set_ratio(torch.ones_like(chart.start))

    def _renew(self) -> None:
        """Go on in a new chart; the inner optimizer's state comes along, but for weights that were no coordinates."""
        old, before = self._chart, [of.factor(self._ratio) for of in self._coordinates]
        old_length = torch.cat([old.length * self._ratio[:-1], self._ratio[-1:]])
        for entries_of in (old.skeleton, old.frozen):
            for name, entries in entries_of.items():
                clear_state(self._inner, self._parameters[name], entries.index)
        new, first = self._new_chart(), 0
        parts = zip(self._chains, old.sizes, new.identity.split(new.sizes), new.length.split(new.sizes), strict=True)
        for coordinates, old_size, identity, length in parts:
            same = identity[:, None] == old.identity[first : first + old_size]
            kept = torch.where(same.any(1), same.int().argmax(1), -1) if old_size else torch.full_like(identity, -1)
            replace_state(self._inner, coordinates, kept, length / old_length[first + kept])
            first += old_size
        self._set_chart(new)
        for of, factor in zip(self._coordinates, before, strict=True):
            after = of.factor(self._ratio)
            if factor is not None or after is not None:
                rescale_state(
                    self._inner, of.parameter, (1 if after is None else after) / (1 if factor is None else factor)
                )

    def state_dict(self) -> dict:
        """Return what a resumed training needs."""
        chart = None
        if self._chart is not None:
            chart = {field.name: getattr(self._chart, field.name) for field in fields(Chart)}
            for kind in ("skeleton", "frozen"):
                chart[kind] = {name: tuple(entries) for name, entries in chart[kind].items()}
            chart["ratio"] = self._ratio[:-1]
        return {"n_steps": self._n_steps, "chart": chart}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`."""
        self._n_steps, self._chart, self._versions = state["n_steps"], None, None
        if state["chart"] is not None:
            chart = {name: self._here(value) for name, value in state["chart"].items()}
            for kind in ("skeleton", "frozen"):
                chart[kind] = {name: Entries(*entries) for name, entries in chart[kind].items()}
            ratio = chart.pop("ratio")
            self._set_chart(Chart(**chart))
            self._set_ratio(ratio)

    def _here(self, value):
        return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self._like.device), value)
