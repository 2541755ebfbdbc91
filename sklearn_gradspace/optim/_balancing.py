"""Steps in the balanced representative of a class: ``method="balanced"``."""

import torch

from ..pathspace import ScaleGraph
from ._parameter_units import parameter_units
from ._state import check_state, rescale_state


class Balancing:
    """Goes back towards the balanced representative, a sweep after every few steps.

    In the balanced representative the weights that write a unit have the same norm as those that read it.

    Parameters
    ----------
    graph : ScaleGraph
        The net's scale graph.
    inner : Optimizer
        It moves the weights.
    every : int
        Number of steps after which a sweep follows.
    """

    def __init__(self, graph: ScaleGraph, inner: torch.optim.Optimizer, every: int) -> None:
        self._inner, self._every = inner, every
        self._n_steps = 0
        self._units = parameter_units(graph)
        device = self._units[0].parameter.device
        self._private = torch.cat([torch.zeros(1, dtype=torch.bool), graph.private]).to(device)
        buffers = dict(graph.module.named_buffers())
        self._statistics = [
            (buffers[name], ids.to(device), power) for name, (ids, power) in graph.statistics.items() if ids.any()
        ]

    def step(self) -> None:
        """Let the inner optimizer make its step."""
        self._inner.step()
        self._n_steps += 1
        if self._n_steps == 1:
            check_state(self._inner)
        if self._n_steps % self._every == 0:
            self._sweep()

    def _sweep(self) -> None:
        like = self._units[0].parameter
        kind = torch.promote_types(like.dtype, torch.float32)
        incoming, outgoing = torch.zeros(2, len(self._private), dtype=kind, device=like.device)
        for units in self._units:
            squares = units.parameter.square()
            units.sums(squares, units.write, incoming)
            units.sums(squares, units.read, outgoing)
        # All units change at once: half of what would balance each by itself does not overshoot.
        scales = torch.where(self._private, incoming.pow(-0.5), (outgoing / incoming).pow(0.125))
        scales = torch.where(scales.isfinite() & (scales > 0), scales, 1.0)  # units that nothing writes or reads
        scales[0] = 1
        inverse = 1 / scales
        for units in self._units:
            factor = units.factor(inverse, scales)
            units.parameter.mul_(factor)
            rescale_state(self._inner, units.parameter, factor)
        for buffer, ids, power in self._statistics:
            buffer.mul_((scales[ids] ** power).to(buffer.dtype))

    def state_dict(self) -> dict:
        """Return what a resumed training needs."""
        return {"n_steps": self._n_steps}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`."""
        self._n_steps = state["n_steps"]
