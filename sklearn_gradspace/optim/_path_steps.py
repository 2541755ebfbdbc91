"""Steps in basis path values: ``method="path"``.

Weights become coordinates of a `Chart`, and their gradients those of the coordinates, by the inverse chain rule; the
inner optimizer moves the coordinates; weight allocation makes weights of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..pathspace import ScaleGraph
from ._chart import Chart, make_chart
from ._parameter_units import parameter_units
from ._state import check_state, clear_state, replace_state, rescale_state

_LARGEST_STEP = 2.0  # by which a step may multiply or divide a chain's ratio: it never changes its sign
_SAFE_RATIO = 2.0  # beyond which a new chart is made
_LARGEST_RATIO = 4.0  # beyond which no ratio goes, until there is one


class _Coordinates(NamedTuple):
    """A parameter whose coordinates are not its weights: they are these times rho of chains, times a length.

    All are broadcastable to the parameter's shape; `length`, and `to_value`, which makes path values of coordinates,
    are None where they are 1.
    """

    parameter: nn.Parameter
    chain: Tensor
    length: Tensor | None
    to_value: Tensor | None


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
        self._versions: list[tuple[int, int]] | None = None

    def step(self) -> None:
        """Let the inner optimizer make its step."""
        if self._chart is None:
            self._first_chart()
        elif self._is_changed():
            self._renew()
        gradients, resting = self._to_coordinates()
        try:
            with self._at_rest(resting):
                self._inner.step()
        except BaseException:
            self._to_weights()
            raise
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
        change = torch.cat(self._chains).div_(self._at).nan_to_num_(1.0, 1.0, 1.0)
        self._ratio[:-1].mul_(change.clamp_(1 / _LARGEST_STEP, _LARGEST_STEP)).clamp_(
            1 / _LARGEST_RATIO, _LARGEST_RATIO
        )
        self._follow_ratio()
        self._to_weights()
        self._n_steps += 1
        if self._n_steps == 1:
            check_state(self._inner)
        if self._n_steps % self._every == 0 and self._is_far():
            self._renew()
        self._versions = self._seen()

    def _is_changed(self) -> bool:
        """Return whether weights that follow from chains were changed from outside."""
        if self._versions is not None:
            return self._versions != self._seen()
        return not all(torch.equal(parameter[index], weights) for parameter, index, weights in self._following())

    def _is_far(self) -> bool:
        return bool(((self._ratio > _SAFE_RATIO) | (self._ratio < 1 / _SAFE_RATIO)).any())

    def _seen(self) -> list[tuple[int, int]]:
        of_chart = [self._parameters[name] for name in self._chart.following]
        return [(parameter._version, parameter.data_ptr()) for parameter in of_chart]

    def __getstate__(self) -> dict:
        return vars(self) | {"_versions": None}  # a copy's parameters, and those that are loaded, have others

    def _to_coordinates(self) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor | None]:
        """Inverse chain rule: make coordinates of weights, and of their gradients.

        Returns
        -------
        gradients : list of tuple
            Parameters, and the gradients that are put back afterwards.
        resting : Tensor of shape (n_chains,) or None
            Which chains belong to parameters without a gradient alone; None if none does.
        """
        gradients: list[tuple[Tensor, Tensor | None]] = [(coordinates, None) for coordinates in self._chains]
        shares = [self._like]  # w dL/dw: of single weights, and summed up over those that a ratio divides
        missing = []
        for name, index in self._chart.following.items():
            gradient = self._parameters[name].grad
            missing.append(gradient is None)
            shares.append(self._like.new_zeros(len(index[0])) if gradient is None else gradient[index])
        for (parameter, chain, _, to_value), factor in zip(self._coordinates, self._factors, strict=True):
            gradient = parameter.grad
            missing.append(gradient is None)
            if gradient is None:
                shares.append(self._like.new_zeros(chain.numel()))
                parameter.mul_(factor)
                continue
            shares.append((parameter * gradient).sum_to_size(chain.shape).view(-1))
            parameter.mul_(factor)
            parameter.grad = gradient / factor
            if self._penalty:
                values = parameter if to_value is None else parameter * to_value**2
                parameter.grad.add_(values, alpha=2 * self._penalty)
            gradients.append((parameter, gradient))
        all_shares = torch.cat(shares).to(self._like.dtype).mul_(self._weights)
        of_chains = torch.zeros_like(self._ratio).index_add_(0, self._gains, all_shares)[:-1]
        if self._penalty:
            of_chains += 2 * self._penalty * (self._ratio[:-1] * self._chart.value) ** 2
        for coordinates, part in zip(self._chains, self._parts(of_chains.div_(self._at)), strict=True):
            coordinates.grad = part
        return gradients, self._resting([len(share) for share in shares[1:]], missing) if any(missing) else None

    def _resting(self, sizes: list[int], missing: list[bool]) -> Tensor:
        given = torch.tensor(missing, device=self._like.device).logical_not_()
        given = given.repeat_interleave(torch.tensor(sizes, device=self._like.device)).to(self._like.dtype)
        return torch.zeros_like(self._ratio).index_add_(0, self._gains, given)[:-1] == 0

    @contextmanager
    def _at_rest(self, resting: Tensor | None) -> Iterator[None]:
        """Keep the inner optimizer from some chains, as from parameters without a gradient; but steps are counted."""
        kept, new = [], []
        for coordinates, part in zip(self._chains, () if resting is None else self._parts(resting)):
            state = self._inner.state.get(coordinates, {})
            of_entries = [value for value in state.values() if isinstance(value, Tensor) and value.shape == part.shape]
            if part.all():
                coordinates.grad = None
            else:
                kept += [(tensor, part, tensor.clone()) for tensor in (coordinates, *of_entries)]
                new += [] if state else [(coordinates, part)]
        yield
        for tensor, part, before in kept:
            torch.where(part, before, tensor, out=tensor)
        for coordinates, part in new:
            clear_state(self._inner, coordinates, (part,))

    def _to_weights(self) -> None:
        """Weight allocation."""
        for of, factor in zip(self._coordinates, self._factors, strict=True):
            of.parameter.div_(factor)
        for parameter, index, weights in self._following():
            parameter.index_put_(index, weights)

    def _following(self) -> Iterator[tuple[nn.Parameter, tuple[Tensor, ...], Tensor]]:
        """Yield parameters, which of their weights follow from chains, and what those weights are to be."""
        for (name, index), weights in zip(self._chart.following.items(), self._weights.split(self._sizes)):
            parameter = self._parameters[name]
            yield parameter, index, weights.to(parameter.dtype)

    def _follow_ratio(self) -> None:
        """Set the chains' coordinates, the weights that follow from them, and what weights are multiplied by."""
        self._at = self._ratio[:-1] * self._chart.length
        for coordinates, part in zip(self._chains, self._parts(self._at), strict=True):
            coordinates.copy_(part)
        gains, reads, *factors = self._ratio.index_select(0, self._gathered).split(self._gathered_sizes)
        self._weights = (gains / reads).mul_(self._start)
        self._factors = []
        for (parameter, chain, length, _), factor in zip(self._coordinates, factors, strict=True):
            factor = factor.view(chain.shape).to(parameter.dtype)
            self._factors.append(factor if length is None else factor * length)

    def _parts(self, of_chains: Tensor) -> tuple[Tensor, ...]:
        return (of_chains,) if len(self._chains) == 1 else of_chains.split(self._chart.sizes)

    def _first_chart(self) -> None:
        chart = self._new_chart()
        for coordinates, length in zip(self._chains, chart.length.split(chart.sizes), strict=True):
            replace_state(self._inner, coordinates, torch.full_like(length, -1, dtype=torch.int64), length)
        self._set_chart(chart)

    def _new_chart(self) -> Chart:
        return make_chart(self._graph, self._raw, self._group_of, len(self._chains), self._like)

    def _set_chart(self, chart: Chart, ratio: Tensor | float = 1.0) -> None:
        self._chart, self._coordinates = chart, []
        none = torch.full((1,), chart.n_chains, device=self._like.device)
        for units in self._units:
            chain = none if units.read is None else chart.chain[units.read]
            if chart.raw or self._penalty or bool((chain < chart.n_chains).any()):
                self._coordinates.append(_Coordinates(units.parameter, chain, *chart.lengths(units)))
        # What a ratio divides takes part as one weight of -1 for each unit that is read.
        chains = [of.chain.flatten() for of in self._coordinates]
        self._gains = torch.cat([chart.gains, *chains])
        self._start = torch.cat([chart.start, chart.start.new_full((len(self._gains) - len(chart.start),), -1.0)])
        self._gathered = torch.cat([self._gains, chart.reads, *chains, *chains])
        self._gathered_sizes = [len(self._gains), len(self._gains), *map(len, chains)]
        self._sizes = [*(len(index[0]) for index in chart.following.values()), sum(map(len, chains))]
        for coordinates, size in zip(self._chains, chart.sizes, strict=True):
            coordinates.data = self._like.new_empty(size)
        self._ratio = self._like.new_ones(chart.n_chains + 1)
        self._ratio[:-1] = ratio
        self._follow_ratio()

    def _renew(self) -> None:
        """Go on in a new chart; the inner optimizer's state comes along, but for weights that were no coordinates."""
        old, before = self._chart, self._factor_of()
        old_length = torch.cat([self._at, self._ratio[-1:]])
        for name, index in old.following.items():
            clear_state(self._inner, self._parameters[name], index)
        new, first = self._new_chart(), 0
        parts = zip(self._chains, old.sizes, new.identity.split(new.sizes), new.length.split(new.sizes), strict=True)
        for coordinates, old_size, identity, length in parts:
            same = identity[:, None] == old.identity[first : first + old_size]
            kept = torch.where(same.any(1), same.int().argmax(1), -1) if old_size else torch.full_like(identity, -1)
            replace_state(self._inner, coordinates, kept, length / old_length[first + kept])
            first += old_size
        self._set_chart(new)
        after = self._factor_of()
        for parameter in before | after:
            rescale_state(self._inner, parameter, after.get(parameter, 1) / before.get(parameter, 1))

    def _factor_of(self) -> dict[nn.Parameter, Tensor]:
        return {of.parameter: factor for of, factor in zip(self._coordinates, self._factors, strict=True)}

    def state_dict(self) -> dict:
        """Return what a resumed training needs."""
        chart = None
        if self._chart is not None:
            chart = {field.name: getattr(self._chart, field.name) for field in fields(Chart)}
            chart["ratio"] = self._ratio[:-1].clone()
        return {"n_steps": self._n_steps, "chart": chart}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`."""
        self._n_steps, self._chart, self._versions = state["n_steps"], None, None
        if state["chart"] is not None:
            chart = {name: self._here(value) for name, value in state["chart"].items()}
            ratio = chart.pop("ratio")
            self._set_chart(Chart(**chart), ratio)

    def _here(self, value):
        return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self._like.device), value)
