"""Steps in basis path values: ``method="path"``.

Weights become coordinates of a `Chart`, and their gradients those of the coordinates, by the inverse chain rule; the
inner optimizer moves the coordinates; weight allocation makes weights of them.
"""

from dataclasses import fields

import torch
from torch import Tensor

from ..pathspace import ScaleGraph
from ._chart import Chart, Entries, make_chart
from ._state import clear_state, replace_state, rescale_state
from ._units import ParameterUnits, parameter_units

_LARGEST_STEP = 2.0  # by which a step may multiply or divide a chain's ratio: it never changes its sign
_SAFE_RATIO = 2.0  # beyond which a new chart is made


class PathSteps:
    """Moves the coordinates of a chart, and the weights with them.

    Parameters
    ----------
    graph : ScaleGraph
        The net's scale graph.
    inner : Optimizer
        It moves the coordinates; each of its groups gets a vector of chain coordinates.
    raw : bool
        Whether coordinates are path values themselves.
    penalty : float
        Factor of the sum of squared basis path values that is added to the loss.
    every : int
        Number of steps after which a new chart is made if a chain's ratio has left the safe range.
    """

    def __init__(self, graph: ScaleGraph, inner: torch.optim.Optimizer, raw: bool, penalty: float, every: int) -> None:
        self._graph, self._inner, self._raw, self._penalty, self._every = graph, inner, raw, penalty, every
        self._units, self._parameters = parameter_units(graph), dict(graph.module.named_parameters())
        like = self._units[0].parameter
        self._like = torch.empty(0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        group_of = {id(parameter): i for i, group in enumerate(inner.param_groups) for parameter in group["params"]}
        self._group_of = {name: group_of.get(id(parameter), 0) for name, parameter in self._parameters.items()}
        self._coordinates = [torch.zeros_like(self._like) for _ in inner.param_groups]
        for group, coordinate in zip(inner.param_groups, self._coordinates, strict=True):
            group["params"].append(coordinate)
        self._n_steps, self._chart = 0, None

    def step(self) -> None:
        """Let the inner optimizer make its step."""
        if self._chart is None:
            self._set_chart(self._new_chart())
        ratio = self._ratio()
        self._set_chain_gradients(ratio)
        gradients = self._to_coordinates(ratio)
        frozen = {name: self._parameters[name][entries.index] for name, entries in self._chart.frozen.items()}
        self._inner.step()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        after = self._ratio()
        after = torch.where(after.isfinite(), after, ratio).clamp(ratio / _LARGEST_STEP, ratio * _LARGEST_STEP)
        self._set_ratio(after)
        self._to_weights(after, frozen)
        self._n_steps += 1
        if self._n_steps % self._every == 0 and ((after > _SAFE_RATIO) | (after < 1 / _SAFE_RATIO)).any():
            self._renew(after)

    def _set_chain_gradients(self, ratio: Tensor) -> None:
        """Inverse chain rule: a chain's gradient, from w dL/dw of the weights that it moves."""
        chart = self._chart
        by_unit, by_chain = self._like.new_zeros(len(chart.chain)), self._like.new_zeros(chart.n_chains + 1)
        for units in self._units:
            if units.read is not None and units.parameter.grad is not None:
                units.sums(units.parameter * units.parameter.grad, units.read, by_unit)
        by_chain.index_add_(0, chart.chain, by_unit, alpha=-1)
        for entries_of in (chart.moving, chart.held):  # those held were subtracted with the others
            for name, entries in entries_of.items():
                parameter = self._parameters[name]
                if parameter.grad is not None:
                    products = parameter[entries.index] * parameter.grad[entries.index]
                    by_chain.index_add_(0, entries.chain, products.to(by_chain.dtype))
        gradient = (by_chain[:-1] / ratio + 2 * self._penalty * ratio * chart.value**2) / chart.length
        for coordinate, part in zip(self._coordinates, gradient.split(chart.sizes), strict=True):
            coordinate.grad = part

    def _to_coordinates(self, ratio: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Make coordinates of weights, and of their gradients; return the gradients, which are put back afterwards."""
        gradients = []
        for units, factor in self._factors(self._chart, ratio):
            parameter, gradient = units.parameter, units.parameter.grad
            if factor is not None:
                parameter.mul_(factor)
            if gradient is None or (factor is None and not self._penalty):
                continue
            parameter.grad = gradient / factor if factor is not None else gradient.clone()
            if self._penalty:
                parameter.grad.addcmul_(parameter, self._path_lengths(units) ** 2, value=2 * self._penalty)
            gradients.append((parameter, gradient))
        return gradients

    def _to_weights(self, ratio: Tensor, frozen: dict[str, Tensor]) -> None:
        """Weight allocation."""
        chart = self._chart
        self._write(chart.frozen, frozen)
        for units, factor in self._factors(chart, ratio):
            if factor is not None:
                units.parameter.div_(factor)
        self._write(chart.held, self._held)
        moving = chart.start * ratio / torch.cat([ratio, ratio.new_ones(1)])[chart.parent]
        self._write(chart.moving, {name: moving[entries.chain] for name, entries in chart.moving.items()})

    def _write(self, entries_of: dict[str, Entries], values: dict[str, Tensor]) -> None:
        for name, entries in entries_of.items():
            self._parameters[name][entries.index] = values[name].to(self._parameters[name].dtype)

    def _factors(self, chart: Chart, ratio: Tensor):
        """Yield each parameter with what makes coordinates of its weights, None for 1."""
        reading = torch.cat([ratio, ratio.new_ones(1)])[chart.chain] * chart.reading
        for units in self._units:
            yield units, units.factor(reading, chart.writing if self._raw else None)

    def _path_lengths(self, units: ParameterUnits) -> Tensor:
        """Return what makes path values of coordinates."""
        chart = self._chart
        factor = units.factor(chart.values_in / chart.reading, chart.values_out / chart.writing)
        return torch.ones_like(units.parameter) if factor is None else factor

    def _ratio(self) -> Tensor:
        return torch.cat(self._coordinates) / self._chart.length

    def _set_ratio(self, ratio: Tensor) -> None:
        parts = (ratio * self._chart.length).split(self._chart.sizes)
        for coordinate, part in zip(self._coordinates, parts, strict=True):
            coordinate.copy_(part)

    def _new_chart(self) -> Chart:
        return make_chart(self._graph, self._raw, self._group_of, len(self._coordinates), self._like)

    def _set_chart(self, chart: Chart) -> None:
        self._chart = chart
        self._held = {name: self._parameters[name][entries.index] for name, entries in chart.held.items()}
        for coordinate, length in zip(self._coordinates, chart.length.split(chart.sizes), strict=True):
            coordinate.data = length.clone()

    def _renew(self, ratio: Tensor) -> None:
        """Go on in a new chart; the inner optimizer's state comes along, but for weights that were no coordinates."""
        old, new = self._chart, self._new_chart()
        for entries_of in (old.moving, old.held, old.frozen):
            for name, entries in entries_of.items():
                clear_state(self._inner, self._parameters[name], entries.index)
        factors = zip(self._factors(old, ratio), self._factors(new, torch.ones_like(new.start)), strict=True)
        for (units, before), (_, after) in factors:
            if before is not None:
                rescale_state(self._inner, units.parameter, after / before)
        old_length = torch.cat([old.length * ratio, ratio.new_ones(1)])
        first = 0
        for coordinate, now, length in zip(
            self._coordinates, new.identity.split(new.sizes), new.length.split(new.sizes), strict=True
        ):
            same = now[:, None] == old.identity[first : first + len(coordinate)]
            kept = torch.where(same.any(1), same.int().argmax(1) if same.shape[1] else -1, -1)
            replace_state(self._inner, coordinate, kept, length / old_length[first + kept])
            first += len(coordinate)
        self._set_chart(new)

    def state_dict(self) -> dict:
        """Return what a resumed training needs."""
        chart = None
        if self._chart is not None:
            chart = {field.name: getattr(self._chart, field.name) for field in fields(Chart)}
            for kind in _ENTRIES:
                chart[kind] = {name: tuple(entries) for name, entries in chart[kind].items()}
        return {
            "n_steps": self._n_steps,
            "chart": chart,
            "held": None if chart is None else dict(self._held),
            "coordinates": [coordinate.clone() for coordinate in self._coordinates],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`."""
        self._n_steps, self._chart = state["n_steps"], None
        if state["chart"] is not None:
            chart = dict(state["chart"])
            for kind in _ENTRIES:
                chart[kind] = {name: Entries(*self._here(tuple(entries))) for name, entries in chart[kind].items()}
            self._chart = Chart(
                **{name: self._here(value) if isinstance(value, Tensor) else value for name, value in chart.items()}
            )
            self._held = {name: self._here(value) for name, value in state["held"].items()}
        for coordinate, value in zip(self._coordinates, state["coordinates"], strict=True):
            coordinate.data = self._here(value).clone()

    def _here(self, value):
        if isinstance(value, tuple):
            return tuple(map(self._here, value))
        return value.to(self._like.device)


_ENTRIES = ("moving", "held", "frozen")
