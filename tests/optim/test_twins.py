"""Rescaled twins are trained alike."""

import copy

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, METHODS, NETS, SGD, data, train, trained
from pathspace.cases import BY_NAME
from pathspace.nets import mlp
from pathspace.random_nets import random_net
from pathspace.twins import powers_of_two, random_factors, twin

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, rescale, scale_graph

every_method = pytest.mark.parametrize("method", METHODS)


def assert_alike(case, first, second, X, relative=1e-8):
    """Assert equal outputs, which training has changed."""
    with torch.no_grad():
        outputs = first(X)
        assert outputs.isfinite().all()
        assert_close(second(X), outputs, relative)
        start = case.net(X.dtype).to(X.device)(X)
        assert (outputs - start).abs().max() > 1e-2 * start.abs().max()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("inner", INNER)
@every_method
def test_outputs_are_equal_after_training(method, inner, name):
    case = BY_NAME[name]
    nets = [trained(case, method, inner, 100, net) for net in (case.net(), twin(case))]
    assert_alike(case, *nets, data(case)[0])


@pytest.mark.parametrize("name", ["mlp", "average-pool", "residual, two blocks"])
def test_in_path_values_themselves(name):
    case = BY_NAME[name]
    nets = [trained(case, "path", "momentum", 60, net, units="raw", lr=1e-3) for net in (case.net(), twin(case))]
    assert_alike(case, *nets, data(case)[0])


@pytest.mark.parametrize("options", [{"balance_every": 1}, {"balance_every": 5}, {"weight_decay": 0.01}], ids=str)
def test_balanced_with_other_options(options):
    case = BY_NAME["residual, two blocks"]
    nets = [trained(case, "balanced", "momentum", 60, net, **options) for net in (case.net(), twin(case))]
    assert_alike(case, *nets, data(case)[0])


@pytest.mark.parametrize(
    "options",
    [{"chart_every": 1}, {"chart_every": 7}, {"path_penalty": 1e-3}, {"weight_decay": 0.01}, {"nesterov": True}],
    ids=str,
)
def test_path_values_with_other_options(options):
    case = BY_NAME["residual, two blocks"]
    nets = [trained(case, "path", "momentum", 60, net, **options) for net in (case.net(), twin(case))]
    assert_alike(case, *nets, data(case)[0])


@every_method
def test_with_another_rate_for_some_layers(method):
    case = BY_NAME["bottleneck"]
    X, y = data(case)
    nets = [case.net(), twin(case)]
    for net in nets:
        groups = [{"params": net[:3].parameters(), "lr": 0.1}, {"params": net[3:].parameters(), "momentum": 0.5}]
        train(net, ECOptimizer(net, SGD, params=groups, method=method, lr=0.02), X, y, 60)
    assert_alike(case, *nets, X)


@every_method
def test_gradients_clipped_behind_the_first_step(method):
    """The first gradient is that of the net as it was given, so its norm is no property of the class."""
    case = BY_NAME["mlp"]
    X, y = data(case)
    nets = [case.net(), twin(case)]
    for net in nets:
        optimizer = ECOptimizer(net, SGD, method=method, lr=0.0)
        train(net, optimizer, X, y, 1)
        for _ in range(40):
            optimizer.param_groups[0]["lr"] = 0.5
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(X), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            optimizer.step()
    assert_alike(case, *nets, X)


@pytest.mark.parametrize("name", [*NETS, "conv3d", "residual with batch norm, projected", "dense block"])
@every_method
def test_twins_by_powers_of_two_are_trained_alike_to_the_bit_in_single_precision(method, name):
    case = BY_NAME[name]
    nets = [case.net(torch.float32), twin(case, factors=powers_of_two, net=case.net(torch.float32))]
    for net in nets:
        trained(case, method, "momentum", 20, net, dtype=torch.float32)
    for mine, others in zip(nets[0].parameters(), nets[1].parameters()):
        assert torch.equal(mine, others)


@every_method
def test_on_the_device(method, device):
    case = BY_NAME["average-pool"]
    X, y = (part.to(device) for part in data(case))
    nets = [case.net().to(device), twin(case).to(device)]
    for net in nets:
        train(net, ECOptimizer(net, SGD, method=method, lr=0.02, momentum=0.9), X, y, 40)
        assert all(p.device.type == device.type for p in net.parameters())
    assert_alike(case, *nets, X)


@pytest.mark.parametrize("seed", range(0, 40, 4))
@every_method
def test_random_nets(method, seed):
    X = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    net = random_net(seed).train()
    graph, outputs = scale_graph(net), []
    if not graph.n_units:
        return
    for other in (copy.deepcopy(net), rescale(copy.deepcopy(net), random_factors(graph), graph)):
        size = copy.deepcopy(other)(X).detach().abs().max()
        optimizer = ECOptimizer(other, SGD, method=method, init="keep", lr=1e-3, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            (other(X) / size - 1).square().mean().backward()
            optimizer.step()
        outputs.append(other(X).detach())
    assert_close(outputs[1], outputs[0], 1e-7)


@pytest.mark.parametrize("init", ["skeleton", "identity"])
@every_method
def test_from_skeleton_weights_of_one(method, init):
    """Twins start alike where they were balanced before."""
    net = mlp(4, 6, 6, 6, 3).double()
    other = rescale(copy.deepcopy(net), random_factors(scale_graph(net)))
    X, y = data(BY_NAME["mlp"])
    for each in (net, other):
        train(each, ECOptimizer(balance(each), SGD, method=method, init=init, lr=0.01, momentum=0.9), X, y, 30)
    assert_close(other(X), net(X), 1e-8)


@every_method
def test_of_nets_with_dead_units(method):
    """Behind a unit that nothing writes, too."""
    net = mlp(4, 5, 5, 3).double()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 0
    other = rescale(copy.deepcopy(net), [1.0, 10, 0.1, 5, 2, 0.5, 3, 1, 0.2, 4])
    X, y = data(BY_NAME["mlp"])
    for each in (net, other):
        train(each, ECOptimizer(each, SGD, method=method, lr=0.05, momentum=0.9), X, y, 50)
    assert_close(other(X), net(X), 1e-8)
