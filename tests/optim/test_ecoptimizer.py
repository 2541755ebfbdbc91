"""What the optimizer starts from, what it leaves alone, and what it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
from asserts import assert_close, random_state_untouched, untouched
from optim.training import INNER, METHODS, SGD, Adam, build, data, loss_of, small, train
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import mlp
from pathspace.pinned_nets import Branching
from pathspace.twins import balanced, graph_of
from torch import nn

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import ScaleGraph, rescale, scale_graph

every_method = pytest.mark.parametrize("method", METHODS)
every_inner = pytest.mark.parametrize("inner", INNER)


def with_units(cases):
    return [case for case in cases if case.units]


@every_method
@pytest.mark.parametrize("case", with_units(CASES), ids=lambda case: case.name)
def test_without_a_rate_the_function_stays(case, method):
    """Whatever the net; in each step there is a sweep, or the look whether a new chart is due."""
    net, (X, y) = case.net(), data(case, 12)
    expected = net(X).detach()
    optimizer = build(replace(graph_of(case), module=net), method, lr=0.0, balance_every=1, chart_every=1)
    train(net, optimizer, X, y, 3)
    assert_close(net(X), expected)


@every_method
def test_nothing_happens_at_construction(method):
    net = BY_NAME["average-pool"].net()
    with untouched(net), random_state_untouched():
        build(net, method)


@every_method
@pytest.mark.parametrize("name", ["deep mlp", "average-pool", "residual, two blocks", "batch norm behind leaky relu"])
def test_the_first_step_begins_with_the_canonical_twin(name, method):
    case, net, X, y = small(name)
    train(net, build(net, method, lr=0.0), X, y, 1)
    for mine, others in zip(net.parameters(), balanced(case).parameters()):
        assert_close(mine, others, 1e-14)


def test_what_auto_means():
    """Deep plain nets get the start next to the identity, others keep their function."""
    deep, shallow = mlp(4, *[5] * 9, 3), mlp(4, 5, 5, 3)
    for net, diagonal in ((deep, 1), (shallow, None)):
        before = copy.deepcopy(net)
        ECOptimizer(net, lr=0.1, init="auto")
        for layer, old in zip(net[::2], before[::2]):
            if diagonal is None:
                assert torch.equal(layer.weight, old.weight)
            else:
                assert (layer.weight.diagonal() == 1).all() and not (old.weight.diagonal() == 1).any()
    narrow = BY_NAME["residual, two blocks"].net()
    with untouched(narrow):
        ECOptimizer(narrow, lr=0.1, init="auto")


@every_method
@pytest.mark.parametrize("widths", [(3, 5, 4), (6, 3, 2), (2, 4, 4, 7)], ids=str)
def test_skeleton_weights_of_linear_layers_become_one(widths, method):
    net = mlp(*widths)
    before = copy.deepcopy(net)
    build(net, method, init="skeleton")
    for layer, old in zip(net[::2], before[::2]):
        n_out, n_in = layer.weight.shape
        expected = old.weight.detach().clone()
        for i in range(max(n_out, n_in)):
            expected[i % n_out, i % n_in] = 1
        assert torch.equal(layer.weight, expected) and torch.equal(layer.bias, old.bias)


def test_skeleton_weights_of_convolutions_are_central_taps():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, (1, 5), groups=2), nn.ReLU(), nn.Conv2d(4, 3, 1))
    before = copy.deepcopy(net)
    build(net, init="skeleton")
    first, grouped = before[0].weight.detach().clone(), before[2].weight.detach().clone()
    first[range(4), [0, 1, 0, 1], 1, 1] = 1
    assert torch.equal(net[0].weight, first)
    changed = (net[2].weight != grouped).nonzero()
    assert (net[2].weight[:, :, 0, 2] == 1).sum() >= 4 and (changed[:, 3] == 2).all()


@every_method
def test_a_graph_that_is_handed_over(method):
    case, net, X, y = small()
    other, graph = case.net(), scale_graph(net)
    by_hand = ScaleGraph.from_edges(net, graph.edges)
    train(net, build(by_hand, method), X, y, 5)
    train(other, build(other, method), X, y, 5)
    for mine, others in zip(net.parameters(), other.parameters()):
        assert_close(mine, others, 1e-12)


def test_what_it_is_made_of():
    net = mlp(4, 5, 3)
    optimizer = ECOptimizer(net, Adam, lr=0.003, betas=(0.8, 0.9))
    assert optimizer.graph.module is net and optimizer.graph.n_units == 5
    assert type(optimizer.inner) is Adam and optimizer.defaults["lr"] == 0.003
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
    assert "ECOptimizer" in repr(optimizer) and "0.003" in repr(optimizer)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "euclidean"}, "method"),
        ({"init": "random"}, "init"),
        ({"method": "path", "units": "meters"}, "units"),
        ({"method": "balanced", "units": "raw"}, "units"),
        ({"method": "balanced", "path_penalty": 0.1}, "path_penalty"),
        ({"method": "path", "path_penalty": -0.1}, "path_penalty"),
        ({"balance_every": 0}, "balance_every"),
        ({"method": "path", "chart_every": 0}, "chart_every"),
        ({"lr": -1.0}, "learning rate"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, match):
    net = mlp(4, 5, 3)
    with untouched(net), pytest.raises(ValueError, match=match):
        ECOptimizer(net, SGD, **{"lr": 0.1, **options})


@pytest.mark.parametrize("option", [{"momentun": 0.9}, {"betas": (0.9, 0.99)}], ids=str)
def test_what_the_inner_optimizer_does_not_know_is_refused(option):
    with pytest.raises(TypeError, match=next(iter(option))):
        ECOptimizer(mlp(4, 5, 3), SGD, lr=0.1, **option)


@every_method
@pytest.mark.parametrize("inner", [SGD, Adam])
def test_on_cuda_devices_it_is_fused_unless_told_otherwise(inner, method, monkeypatch):
    """Only fused optimizers skip a step without waiting for the device."""
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    net = mlp(4, 5, 3)
    optimizer = ECOptimizer(net, inner, lr=0.1, method=method)
    assert all(group["fused"] for group in (*optimizer.param_groups, *optimizer.inner.param_groups))
    for option in ({"fused": False}, {"foreach": True}, {"foreach": False}):
        of_all = ECOptimizer(net, inner, lr=0.1, method=method, **option)
        of_group = ECOptimizer(net, inner, lr=0.1, method=method, params=[{"params": net.parameters(), **option}])
        for told in (of_all, of_group):
            assert not any(group["fused"] for group in (*told.param_groups, *told.inner.param_groups))
    monkeypatch.undo()
    assert not any(group["fused"] for group in ECOptimizer(net, inner, lr=0.1, method=method).param_groups)


def test_bad_modules_are_refused():
    with pytest.raises(ValueError, match=r"Branching.*trace"):
        ECOptimizer(Branching(), lr=0.1)
    with pytest.raises(TypeError, match="module"):
        ECOptimizer(list(mlp(4, 5, 3).parameters()), lr=0.1)
    with pytest.raises(ValueError, match=r"parameter"):
        ECOptimizer(nn.Sequential(nn.Flatten()), lr=0.1)


@every_method
@every_inner
def test_it_learns(inner, method):
    """From an unbalanced start, at a rate that is right for a balanced one."""
    _, net, X, y = small("bottleneck")
    rescale(net, 10 ** torch.linspace(-1.5, 1.5, 14))
    start = loss_of(net, X, y).item()
    train(net, build(net, method, inner), X, y, 150)
    assert loss_of(net, X, y).item() < 0.9 * start
