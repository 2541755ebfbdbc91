"""The canonical twin: one for all rescaled twins, of the smallest norm, and the same function."""

import copy

import numpy as np
import pytest
import torch
from asserts import assert_close, random_state_untouched
from pathspace.cases import BY_NAME, CASES, SUPPORTED
from pathspace.nets import mlp
from pathspace.twins import balanced, graph_of, powers_of_two, random_factors, twin, with_modes
from scipy.optimize import minimize
from torch import nn

from sklearn_gradspace.pathspace import ScaleGraph, balance, rescale, scale_graph

# In front of a batch norm the scale of a filter is free, and its norm can be as small as one likes.
with_smallest_norm = [case for case in CASES if case.units and not case.has_batch_norm(case.net())]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def squared_norm(graph, net):
    """Return the sum of squares of a net's weights, and its gradient in the logarithms of the scales, by definition."""
    total, gradient = 0.0, torch.zeros(graph.n_units + 1, dtype=torch.float64)
    for name, parameter in net.named_parameters():
        write, read = (ids.expand(parameter.shape).flatten() for ids in graph.edges[name][:2])
        squares = parameter.detach().flatten() ** 2
        total += float(squares.sum())
        gradient.index_add_(0, write, 2 * squares).index_add_(0, read, -2 * squares)
    return total, gradient[1:].numpy()


@pytest.mark.parametrize(("case", "training"), with_modes(CASES))
def test_the_function_stays(case, training):
    net, X = case.net().train(training), case.X(12)
    expected = copy.deepcopy(net)(X)
    with random_state_untouched():
        assert balance(net, graph_of(case)) is net
    assert_close(net(X), expected)


@every_case
def test_twins_become_the_same_and_then_stay(case):
    expected = balanced(case)
    for net in (balanced(case, twin(case)), balanced(case, copy.deepcopy(expected))):
        for mine, others in zip([*net.parameters(), *net.buffers()], [*expected.parameters(), *expected.buffers()]):
            assert_close(mine, others, 1e-12)


@pytest.mark.parametrize("case", with_smallest_norm, ids=lambda case: case.name)
def test_its_norm_is_the_smallest(case):
    """The sum of squares is convex in the logarithms of the scales, so it is enough that its gradient is zero."""
    graph = graph_of(case)
    least, gradient = squared_norm(graph, balanced(case))
    assert np.abs(gradient).max() <= 1e-11 * least
    assert least < squared_norm(graph, case.net())[0] and least < squared_norm(graph, twin(case))[0]


@pytest.mark.parametrize("name", ["mlp", "bottleneck", "two convolutions", "residual, two blocks", "u-net"])
def test_a_general_minimiser_comes_to_the_same_weights(name):
    start, graph = BY_NAME[name].net(), graph_of(BY_NAME[name])

    def norm_at(logs):
        return squared_norm(graph, rescale(copy.deepcopy(start), np.exp(logs), graph))

    found = minimize(norm_at, np.zeros(graph.n_units), jac=True, method="BFGS", options={"gtol": 1e-9})
    expected = rescale(copy.deepcopy(start), np.exp(found.x), graph)
    for mine, others in zip(balance(start).parameters(), expected.parameters()):
        assert_close(mine, others, 1e-7)


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
    for name, weight in net.named_parameters():
        squares.index_add_(0, graph.edges[name].write.expand(weight.shape).flatten(), weight.detach().flatten() ** 2)
    assert_close(squares[1:][graph.private], torch.ones(int(graph.private.sum())), 1e-12)


def test_what_a_batch_norm_normalises_but_for_eps_stays():
    case = BY_NAME["batch norm with eps"]
    net = balance(case.net())
    assert torch.equal(net[0].weight, case.net()[0].weight) and not torch.equal(net[3].weight, case.net()[3].weight)


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_twins_by_powers_of_two_become_the_same_to_the_bit_in_single_precision(case):
    expected = balanced(case, case.net(torch.float32))
    net = balanced(case, twin(case, factors=powers_of_two, net=case.net(torch.float32)))
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
    """A unit that nothing writes, or nothing reads, has no best scale: it stays finite, and the others do not mind."""
    net, X = BY_NAME["mlp"].net(), BY_NAME["mlp"].X(5)
    with torch.no_grad():
        if dead != "2.weight":
            net[0].weight[1], net[0].bias[1] = (1e-200, 1e-200) if dead == "nearly" else (0, 0)
        if dead in ("2.weight", "both"):
            net[2].weight[:, 1] = 0
    expected, other = net(X), rescale(copy.deepcopy(net), [0.1, 0.2, 0.3, 4, 5])
    assert_close(balance(net)(X), expected)
    alive = [0, 2, 3, 4]
    assert_close((net[2].weight[:, alive] ** 2).sum(0), ((net[0].weight ** 2).sum(1) + net[0].bias ** 2)[alive], 1e-12)
    for again in (copy.deepcopy(net), other):
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


@pytest.mark.parametrize("dead", [(0, "writes"), (2, "writes"), (2, "reads"), (4, "reads")])
def test_dead_units_of_deep_nets(dead):
    """What reads a unit that nothing writes may be anything, and twins still become the same."""
    net = mlp(4, 5, 5, 5, 3).double()
    layer, how = dead
    with torch.no_grad():
        if how == "writes":
            net[layer].weight[1], net[layer].bias[1] = 0, 0
        else:
            net[layer].weight[:, 1] = 0
    factors = 10 ** torch.linspace(-2, 2, 15, dtype=torch.float64)
    other = rescale(copy.deepcopy(net), factors[torch.randperm(15, generator=torch.Generator().manual_seed(0))])
    for mine, others in zip(balance(net).parameters(), balance(other).parameters()):
        assert_close(mine, others, 1e-12)


@pytest.mark.parametrize("spread", [3, 6])
def test_weights_of_all_sizes(spread):
    net = mlp(4, 8, 8, 8, 8, 3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(10 ** (spread * torch.randn(parameter.shape, generator=generator).double()))
    graph = scale_graph(net)
    total, gradient = squared_norm(graph, balance(net, graph))
    assert np.abs(gradient).max() <= 1e-11 * total
