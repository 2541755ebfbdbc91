"""Steps in path values, beside automatic differentiation through the map from path values to weights."""

import copy

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, NETS, data, loss_of
from pathspace.cases import BY_NAME
from torch import nn
from torch.func import functional_call

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, scale_graph
from sklearn_gradspace.pathspace._skeleton import find_skeleton


class AutogradChart:
    """The weights of a net as a function of coordinates, of which one a unit stays as it is.

    Entries of all parameters are counted through. Entry e has the path value in(r) w_e out(t), with products of
    skeleton weights. Those that lead on are held, so that `out` stays, and `in` follows from the path values. Nothing
    leads on from filters in front of a batch norm: their `out` is such that the skeleton weight that leads to them has
    the value 1, and this value stays.
    """

    def __init__(self, net, units, canonical=True):
        self.net, graph = copy.deepcopy(net), scale_graph(net)
        if canonical:
            balance(self.net)
        weights = dict(self.net.named_parameters())
        self.names = list(graph.edges)
        self.shapes = {name: weights[name].shape for name in self.names}
        self.w = torch.cat([weights[name].detach().flatten() for name in self.names])
        ids = [[e[k].expand(self.shapes[n]).flatten() for n, e in graph.edges.items()] for k in range(2)]
        self.write, self.read = (torch.cat(parts) for parts in ids)
        skeleton = find_skeleton(graph, weights)
        self.into, self.onward = skeleton.entry_in.tolist(), skeleton.entry_out.tolist()
        self.order = [j for batch in skeleton.order_in for j in batch.tolist()]
        self.held = {e for e in self.onward[1:] if e >= 0}
        value_in = self.values_in(lambda e: self.w[e])
        self.out = torch.ones(len(self.into), dtype=self.w.dtype)
        for j in [j for batch in skeleton.order_out for j in batch.tolist()]:
            self.out[j] = self.w[self.onward[j]] * self.out[self.write[self.onward[j]]]
        ends = [j for j in range(1, len(self.into)) if self.onward[j] < 0]
        self.out[ends] = 1 / value_in[ends]
        fixed = self.held | {self.into[j] for j in ends}
        self.free = torch.tensor([e for e in range(len(self.w)) if e not in fixed])
        self.values = value_in[self.read] * self.w * self.out[self.write]
        length = self.values / self.lengths() if units == "q" else torch.ones_like(self.w)
        self.scale = length[self.free]
        self.coordinates = nn.Parameter(self.values[self.free] / self.scale)

    def values_in(self, weight):
        found = [torch.ones((), dtype=self.w.dtype)] + [None] * (len(self.into) - 1)
        for j in self.order:
            found[j] = found[self.read[self.into[j]]] * weight(self.into[j])
        return torch.stack(found)

    def lengths(self):
        """Return q: of a moving weight the length of the change of all weights that it moves, of others themselves."""
        moving = [0] * len(self.into)
        for j in self.order:
            moving[j] = self.into[j] if self.into[j] not in self.held else moving[self.read[self.into[j]]]
        squares = self.w**2
        for e in range(len(self.w)):
            k = moving[self.read[e]] if self.read[e] else None
            if k is not None and e not in self.held and self.onward[self.read[e]] >= 0:
                squares[k] += self.w[e] ** 2
        lengths = self.w.clone()
        for k in set(moving[1:]):
            lengths[k] = squares[k].sqrt()
        return lengths

    def path_values(self):
        values = self.values.clone()
        values[self.free] = self.coordinates * self.scale
        return values

    def weights(self):
        """Weight allocation."""
        values, held = self.path_values(), torch.tensor(sorted(self.held), dtype=torch.long)
        into = self.solved(values)
        w = values / (into[self.read] * self.out[self.write])
        w = w.index_put((held,), self.w[held])
        parts = w.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(self.names, parts)}

    def solved(self, values):
        """Return `in` of all units: a held weight times that before it, or the skeleton path's value over `out`."""
        found = [torch.ones((), dtype=self.w.dtype)] + [None] * (len(self.into) - 1)
        for j in self.order:
            e = self.into[j]
            found[j] = found[self.read[e]] * self.w[e] if e in self.held else values[e] / self.out[j]
        return torch.stack(found)

    def train(self, optimizer, X, y, steps, penalty):
        """Yield the weights after each step."""
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(lambda X: functional_call(self.net, self.weights(), (X,)), X, y)
            (loss + penalty * (self.path_values()[self.free] ** 2).sum()).backward()
            optimizer.step()
            yield {name: weight.detach() for name, weight in self.weights().items()}


def compare(name, kind, options, units, penalty=0.0, steps=8):
    case = BY_NAME[name]
    net, (X, y) = case.net(), data(case)
    chart = AutogradChart(net, units)
    expected = chart.train(kind([chart.coordinates], **options), X, y, steps, penalty)
    optimizer = ECOptimizer(net, kind, method="path", init="keep", units=units, path_penalty=penalty, **options)
    start = copy.deepcopy(chart.net.state_dict())
    for weights in expected:
        optimizer.zero_grad()
        loss_of(net, X, y).backward()
        optimizer.step()
        for name, parameter in net.named_parameters():
            assert_close(parameter, weights[name], 1e-11)
    moved = max((p - start[name]).abs().max() for name, p in net.named_parameters())
    assert moved > 1e-4


@pytest.mark.parametrize("name", [*NETS, "dense block", "groups", "inverted residual"])
@pytest.mark.parametrize("inner", INNER)
def test_in_units_of_q(inner, name):
    compare(name, INNER[inner][0], INNER[inner][1], "q")


@pytest.mark.parametrize("name", ["mlp", "bottleneck", "average-pool", "residual, two blocks"])
@pytest.mark.parametrize("inner", INNER)
def test_in_path_values_themselves(inner, name):
    kind, options = INNER[inner]
    compare(name, kind, options | {"lr": 1e-3}, "raw")


@pytest.mark.parametrize("name", ["mlp", "residual, two blocks", "batch norm behind leaky relu"])
@pytest.mark.parametrize("units", ["q", "raw"])
def test_with_a_penalty_on_the_basis_path_norm(units, name):
    compare(name, *INNER["momentum"], units, penalty=1e-2)


@pytest.mark.parametrize("units", ["q", "raw"])
def test_weight_decay_is_of_the_coordinates(units):
    compare("bottleneck", torch.optim.SGD, {"lr": 0.01, "weight_decay": 0.1}, units)
    compare("bottleneck", torch.optim.AdamW, {"lr": 0.001, "weight_decay": 0.1}, units)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Adamax])
def test_any_optimizer_runs_on_coordinates(kind):
    compare("residual, two blocks", kind, {"lr": 0.002}, "q")


@pytest.mark.parametrize("name", ["deep mlp", "average-pool", "residual, two blocks"])
@pytest.mark.parametrize("inner", ["momentum", "adam"])
def test_the_state_comes_along_into_a_new_chart(monkeypatch, inner, name):
    """Averaged gradients of what is a coordinate in both charts scale with its inverse; others begin anew."""
    monkeypatch.setattr("sklearn_gradspace.optim._path_steps._SAFE_RATIO", 1.0)
    case, (kind, options) = BY_NAME[name], INNER[inner]
    options = options | {"lr": 0.05}
    net, (X, y) = case.net(), data(case)
    old = AutogradChart(net, "q")
    reference = kind([old.coordinates], **options)
    list(old.train(reference, X, y, 6, 0.0))
    optimizer = ECOptimizer(net, kind, method="path", init="keep", chart_every=6, **options)
    for _ in range(6):
        optimizer.zero_grad()
        loss_of(net, X, y).backward()
        optimizer.step()
    new = AutogradChart(net, "q", canonical=False)

    powers = {"momentum_buffer": -1} if inner == "momentum" else {"exp_avg": -1, "exp_avg_sq": -2}
    skeletons = [{*chart.into[1:], *chart.onward[1:]} for chart in (old, new)]
    outside = torch.tensor([e not in skeletons[0] | skeletons[1] for e in range(len(new.w))])
    assert outside.sum() > len(new.w) / 3
    moving = optimizer._space._chart.identity
    was_moving = torch.isin(moving, old.free) & torch.isin(moving, torch.tensor(sorted(skeletons[0])))
    assert was_moving.any()
    for state, power in powers.items():
        expected = torch.zeros_like(new.w)
        expected[old.free] = reference.state[old.coordinates][state] * (old.coordinates.detach() ** -power)
        expected[new.free] *= new.coordinates.detach() ** power
        found = torch.cat([optimizer.inner.state[net.get_parameter(name)][state].flatten() for name in new.names])
        assert_close(found[outside], expected[outside], 1e-10)
        assert not found[sorted(skeletons[0] - skeletons[1])].any()
        of_chains = optimizer.inner.state[optimizer.inner.param_groups[0]["params"][-1]][state]
        assert_close(of_chains[was_moving], expected[moving][was_moving], 1e-10)
        assert not of_chains[~was_moving].any()


@pytest.mark.parametrize("kind, options, state, first", [
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}, "sum", 0.5), (torch.optim.Rprop, {}, "step_size", 0.01),
])  # fmt: skip
def test_state_begins_anew_where_the_optimizer_lets_it_begin(monkeypatch, kind, options, state, first):
    case = BY_NAME["deep mlp"]
    net, (X, y) = case.net(), data(case)
    optimizer = ECOptimizer(net, kind, lr=0.01, chart_every=1, **options)
    loss_of(net, X, y).backward()
    optimizer.step()
    monkeypatch.setattr("sklearn_gradspace.optim._path_steps._SAFE_RATIO", 0.5)  # a new chart after each step
    before = optimizer._space._chart
    optimizer.step()
    after, chains = optimizer._space._chart, optimizer.inner.param_groups[0]["params"][-1]
    values = optimizer.inner.state[chains][state]
    anew = ~torch.isin(after.identity, before.identity)
    assert (values > 0).all() and (values[anew] == first).all()
    if kind is torch.optim.Adagrad:  # it makes its state beforehand
        assert (torch.cat([optimizer.inner.state[p][state].flatten() for p in net.parameters()]) >= 1e-3).all()
