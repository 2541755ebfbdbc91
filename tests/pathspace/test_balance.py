"""The canonical twin: one for all rescaled twins, of the smallest norm, and the same function."""

import copy

import numpy as np
import pytest
import torch
from asserts import assert_close, random_state_untouched
from pathspace.cases import BY_NAME, CASES, SUPPORTED
from pathspace.nets import mlp
from pathspace.twins import powers_of_two, random_factors, twin, with_modes
from scipy.optimize import minimize
from torch import nn

from sklearn_gradspace.pathspace import ScaleGraph, balance, rescale, scale_graph

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def squared_norm(graph):
    """Return the sum of squares of all weights that do not write what only a batch norm reads, and its gradient in the
    logarithms of the scales, slowly."""
    parameters = dict(graph.module.named_parameters())
    fixed = torch.cat([torch.tensor([True]), graph.private | graph.approximate])
    total, gradient = 0.0, np.zeros(graph.n_units + 1)
    for name, edges in graph.edges.items():
        shape = parameters[name].shape
        for write, read, weight in zip(
            edges.write.expand(shape).flatten().tolist(),
            edges.read.expand(shape).flatten().tolist(),
            parameters[name].flatten().tolist(),
        ):
            if not (graph.private | graph.approximate)[write - 1] or write == 0:
                total += weight**2
                gradient[write] += 2 * weight**2
                gradient[read] -= 2 * weight**2
    return total, np.where(fixed, 0, gradient)[1:]


@pytest.mark.parametrize(("case", "training"), with_modes(CASES))
def test_the_function_stays(case, training):
    net, X = case.net().train(training), case.X(12)
    expected = copy.deepcopy(net)(X)
    with random_state_untouched():
        assert balance(net) is net
    assert_close(net(X), expected)


@every_case
def test_twins_become_the_same(case):
    expected = balance(case.net())
    for seed in range(2):
        net = balance(twin(case.net(), seed))
        for (name, mine), others in zip(net.state_dict().items(), expected.state_dict().values()):
            if not name.endswith("num_batches_tracked"):
                assert_close(mine, others, 1e-12)


@every_case
def test_it_is_a_fixed_point(case):
    net = balance(case.net())
    again = balance(copy.deepcopy(net))
    for mine, others in zip(again.parameters(), net.parameters()):
        assert_close(mine, others, 1e-12)


@every_case
def test_of_the_smallest_norm(case):
    """No weights' norm is smaller than that, among all that a general minimiser tries."""
    net = balance(case.net())
    graph = scale_graph(net)
    least, gradient = squared_norm(graph)
    assert np.abs(gradient).max(initial=0) <= 1e-10 * least
    if not 0 < graph.n_units <= 14:
        return
    start = case.net()

    def at(logs):
        return squared_norm(scale_graph(rescale(copy.deepcopy(start), np.exp(logs))))

    found = minimize(at, np.zeros(graph.n_units), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    assert least <= found.fun * (1 + 1e-12)


@pytest.mark.parametrize("name", ["mlp", "bottleneck", "two convolutions", "residual, two blocks", "inverted residual"])
def test_a_minimiser_comes_to_the_same_weights(name):
    case = BY_NAME[name]
    start, graph = case.net(), scale_graph(case.net())
    free = ~(graph.private | graph.approximate)

    def at(logs):
        factors = torch.ones(graph.n_units, dtype=torch.float64)
        factors[free] = torch.from_numpy(np.exp(logs))
        norm, gradient = squared_norm(scale_graph(rescale(copy.deepcopy(start), factors)))
        return norm, gradient[free]

    found = minimize(at, np.zeros(int(free.sum())), jac=True, method="BFGS", options={"gtol": 1e-10})
    factors = torch.ones(graph.n_units, dtype=torch.float64)
    factors[free] = torch.from_numpy(np.exp(found.x))
    expected = dict(rescale(start, factors).named_parameters())
    for name, parameter in balance(case.net()).named_parameters():
        write, read = graph.edges[name][:2]
        if not graph.private[write.flatten() - 1].any() or not write.any():
            assert_close(parameter, expected[name], 1e-6)


def test_incoming_and_outgoing_norms_are_equal():
    net = balance(BY_NAME["deep mlp"].net())
    for first, second in zip(net[::2], net[2::2]):
        incoming = (first.weight**2).sum(1) + first.bias**2
        assert_close((second.weight**2).sum(0), incoming, 1e-12)


@pytest.mark.parametrize("name", ["batch norm", "batch norm behind leaky relu", "residual with batch norm"])
def test_what_only_batch_norms_read_has_norm_one(name):
    net = balance(BY_NAME[name].net())
    graph = scale_graph(net)
    squares = torch.zeros(graph.n_units + 1, dtype=torch.float64)
    for weight, edges in zip(dict(net.named_parameters()).values(), map(graph.edges.get, dict(net.named_parameters()))):
        squares.index_add_(0, edges.write.expand(weight.shape).flatten(), weight.detach().flatten() ** 2)
    assert_close(squares[1:][graph.private], torch.ones(int(graph.private.sum())), 1e-12)


def test_what_a_batch_norm_normalises_but_for_eps_stays():
    case = BY_NAME["batch norm with eps"]
    net = balance(case.net())
    assert torch.equal(net[0].weight, case.net()[0].weight) and not torch.equal(net[3].weight, case.net()[3].weight)


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_twins_by_powers_of_two_become_the_same_to_the_bit_in_single_precision(case):
    expected = balance(case.net(torch.float32))
    net = balance(twin(case.net(torch.float32), factors=powers_of_two))
    for (name, mine), others in zip(net.named_parameters(), expected.parameters()):
        assert mine.dtype == torch.float32 and torch.equal(mine, others), name


def test_far_from_balance():
    """From scales that are apart by 10^±20, and in deep nets."""
    for net in (mlp(3, 4, 2), mlp(*[4] * 12), mlp(2, 30, 1, 30, 2)):
        graph = scale_graph(net.double())
        expected = balance(copy.deepcopy(net))
        far = rescale(net, random_factors(graph, size=20))
        for mine, others in zip(balance(far).parameters(), expected.parameters()):
            assert_close(mine, others, 1e-11)


@pytest.mark.parametrize("dead", ["0.weight and bias", "2.weight", "both", "nearly"])
def test_units_of_norm_zero(dead):
    """A unit that nothing writes, or nothing reads, has no canonical scale: nothing becomes infinite, and others do not mind."""
    net = BY_NAME["mlp"].net()
    X = BY_NAME["mlp"].X(5)
    with torch.no_grad():
        if dead != "2.weight":
            net[0].weight[1], net[0].bias[1] = (1e-200, 1e-200) if dead == "nearly" else (0, 0)
        if dead in ("2.weight", "both"):
            net[2].weight[:, 1] = 0
    expected = net(X)
    assert_close(balance(net)(X), expected)
    assert all(p.isfinite().all() for p in net.parameters())
    alive = [0, 2, 3, 4]
    assert_close((net[2].weight[:, alive] ** 2).sum(0), ((net[0].weight ** 2).sum(1) + net[0].bias ** 2)[alive], 1e-12)
    again = copy.deepcopy(net)
    for mine, others in zip(balance(again).parameters(), net.parameters()):
        assert_close(mine, others, 1e-12)


def test_a_net_of_zeros():
    net = mlp(3, 4, 4, 2)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert not any(p.any() for p in balance(net).parameters())


def test_weights_that_are_not_finite_are_refused():
    net = mlp(3, 4, 2)
    net[0].weight.data[0, 0] = float("nan")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"0\.weight"):
        balance(net)
    assert all(torch.equal(a, b) for a, b in zip(list(before.values())[1:], list(net.state_dict().values())[1:]))


def test_a_net_without_free_units_stays():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    balance(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_graph_by_hand():
    net = BY_NAME["mlp"].net()
    unit = torch.arange(1, 6)
    edges = {"0.weight": (unit[:, None], 0), "0.bias": (unit, 0), "2.weight": (0, unit)}
    for mine, others in zip(
        balance(net, ScaleGraph.from_edges(net, edges)).parameters(), balance(BY_NAME["mlp"].net()).parameters()
    ):
        assert_close(mine, others, 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision(dtype, device):
    net = BY_NAME["mlp"].net(dtype).to(device)
    expected = balance(BY_NAME["mlp"].net())
    for mine, others in zip(balance(net).parameters(), expected.parameters()):
        assert mine.dtype == dtype
        assert_close(mine.double(), others, 3 * torch.finfo(dtype).eps)


def test_a_graph_of_another_module_is_refused():
    with pytest.raises(ValueError, match=r"graph.*module"):
        balance(mlp(3, 4, 2), scale_graph(mlp(3, 5, 2)))
