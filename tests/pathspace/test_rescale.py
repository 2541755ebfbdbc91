"""Rescaling leaves the function as it is, in training and in evaluation mode."""

import copy

import pytest
import torch
from asserts import assert_close, random_state_untouched
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import mlp
from pathspace.twins import graph_of, random_factors, with_modes
from torch import nn

from sklearn_gradspace.pathspace import rescale, scale_graph


@pytest.mark.parametrize(("case", "training"), with_modes(CASES))
def test_outputs_stay(case, training):
    net, X = case.net().train(training), case.X(12)
    expected = copy.deepcopy(net)(X)
    graph = graph_of(case)
    factors = torch.where(graph.approximate, 1, random_factors(graph))
    with random_state_untouched():
        assert rescale(net, factors, graph) is net
    assert_close(net(X), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_factors_multiply_what_writes_and_divide_what_reads(case):
    net = case.net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    graph = graph_of(case)
    c = torch.cat([torch.ones(1), random_factors(graph)])
    rescale(net, c[1:], graph)
    for name, parameter in net.named_parameters():
        write, read = graph.edges[name][:2]
        assert_close(parameter, before[name] * (c[write] / c[read]), 1e-15)


@pytest.mark.parametrize("case", [case for case in CASES if case.approximate], ids=lambda case: case.name)
def test_in_front_of_a_batch_norm_with_eps_outputs_stay_but_for_eps(case):
    net, X = case.net(), case.X(12)
    graph = scale_graph(net)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = 1e-9
    expected = copy.deepcopy(net)(X)
    rescale(net, torch.where(graph.approximate, random_factors(graph), 1))
    error = (net(X) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 1e-5


def test_factors_multiply():
    case = BY_NAME["residual with batch norm, projected"]
    once, twice = case.net(), case.net()
    graph = scale_graph(once)
    a, b = random_factors(graph), random_factors(graph, seed=1)
    rescale(once, a * b)
    rescale(rescale(twice, a), b)
    for one, two in zip(once.parameters(), twice.parameters()):
        assert_close(one, two, 1e-14)
    for one, two in zip(once.buffers(), twice.buffers()):
        assert_close(one, two, 1e-14)
    rescale(once, 1 / (a * b))
    for one, original in zip(once.state_dict().values(), case.net().state_dict().values()):
        assert_close(one, original, 1e-14)


@pytest.mark.parametrize("kind", [list, tuple, torch.Tensor.numpy, torch.Tensor.float, lambda f: f.requires_grad_()])
def test_any_array_like(kind):
    net, X = BY_NAME["mlp"].net(), BY_NAME["mlp"].X(3)
    expected = net(X)
    rescale(net, kind(torch.tensor([0.5, 1, 2, 4, 3], dtype=torch.float64)))
    assert_close(net(X), expected)
    assert all(p.requires_grad and p.grad_fn is None for p in net.parameters())


def test_memory_and_gradients_stay(device):
    net = mlp(3, 4, 2).to(device)
    net(torch.ones(2, 3, device=device)).sum().backward()
    before = [(p.data_ptr(), p.grad.clone(), p.dtype, p.device) for p in net.parameters()]
    rescale(net, [2.0, 3.0, 4.0, 5.0])
    for parameter, (pointer, grad, dtype, where) in zip(net.parameters(), before):
        assert (parameter.data_ptr(), parameter.dtype, parameter.device) == (pointer, dtype, where)
        assert torch.equal(parameter.grad, grad)


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        ([1, 1, 0, 1], r"positive.*0\[2\]"),
        ([1, -2, 1, 1], r"positive.*0\[1\]"),
        ([1, 1, 1, float("nan")], r"finite.*0\[3\]"),
        ([float("inf"), 1, 1, 1], r"finite.*0\[0\]"),
        ([1, 1, 1], r"factors.*\(4,\).*\(3,\)"),
        (2.0, r"factors.*\(4,\)"),
        ([[1, 1, 1, 1]], r"factors.*\(4,\)"),
    ],
)
def test_bad_factors_are_refused_and_nothing_changes(factors, match):
    net = mlp(3, 4, 2)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=match):
        rescale(net, factors)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("other", [mlp(3, 5, 2), mlp(3, 4, 2, bias=False), nn.Sequential(nn.Linear(3, 4))])
def test_a_graph_of_another_module_is_refused(other):
    with pytest.raises(ValueError, match=r"graph.*module"):
        rescale(mlp(3, 4, 2), [1.0] * 4, scale_graph(other))
    with pytest.raises(TypeError, match="graph"):
        rescale(mlp(3, 4, 2), [1.0] * 4, {"0.weight": (1, 0)})


def test_a_graph_serves_a_copy_as_well():
    net = mlp(3, 4, 2).double()
    graph, twin, X = scale_graph(net), copy.deepcopy(net), torch.randn(3, 3, dtype=torch.float64)
    rescale(twin, [2.0, 3.0, 4.0, 5.0], graph)
    assert_close(twin(X), net(X), 1e-14)
    assert not torch.equal(twin[0].weight, net[0].weight)
