"""Path values that are driven towards zero, where there are no coordinates: no NaN, and no jump of the function."""

import copy
from contextlib import nullcontext

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, SGD, data, loss_of, small, train
from pathspace.cases import BY_NAME
from pathspace.nets import mlp
from torch import nn

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import scale_graph
from sklearn_gradspace.pathspace._skeleton import find_skeleton

every_inner = pytest.mark.parametrize("inner", INNER)
every_units = pytest.mark.parametrize("units", ["q", "raw"])


def path_optimizer(net, inner="sgd", **options):
    kind, parameters = INNER[inner]
    return ECOptimizer(net, kind, method="path", init="keep", **{**parameters, **options})


def largest_change(net, X, before):
    with torch.no_grad():
        after = net(X)
    assert after.isfinite().all() and all(p.isfinite().all() for p in net.parameters())
    return float((after - before).abs().max()), after


@every_units
@every_inner
def test_targets_on_the_other_side_of_zero(inner, units):
    """A net of a single unit is trained towards the negative of what it computes: its path value has to become zero."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(0.7)
        net[2].weight.fill_(1.3)
    X, optimizer = torch.linspace(0.1, 1, 10, dtype=torch.float64)[:, None], path_optimizer(net, inner, units=units)
    outputs, sizes = net(X).detach(), []
    for _ in range(300):
        optimizer.zero_grad()
        (net(X) + X).square().mean().backward()
        optimizer.step()
        change, outputs = largest_change(net, X, outputs)
        assert change < 0.25
        sizes.append(float(outputs.abs().max()))
    assert sizes[-1] < 0.05


def largest_step(name, lr, n_steps, **options):
    """Return the largest change of an output in a step, where targets change their signs every `n_steps`."""
    _, net, X, y = small(name)
    optimizer = path_optimizer(net, lr=lr, **options)
    targets = 3 * torch.nn.functional.one_hot(y, net(X).shape[1]).double()
    outputs, changes = net(X).detach(), []
    for turn in range(3):
        for _ in range(n_steps):
            optimizer.zero_grad()
            (net(X) - (-1) ** turn * targets).square().mean().backward()
            optimizer.step()
            change, outputs = largest_change(net, X, outputs)
            changes.append(change)
    return max(changes)


@pytest.mark.parametrize(("name", "units", "lr"), [("mlp", "q", 0.1), ("average-pool", "raw", 0.01)])
def test_small_steps_change_the_function_by_little(name, units, lr):
    """A tenth of the rate makes a tenth of the change, or nearly: where weights change their signs, in new charts."""
    step, small_step = largest_step(name, lr, 20, units=units), largest_step(name, lr / 10, 200, units=units)
    assert small_step < 0.4 * step and small_step < 1


@pytest.mark.parametrize("name", ["mlp", "residual, two blocks", "batch norm behind leaky relu"])
@every_inner
def test_a_new_chart_does_not_change_the_function(inner, name):
    """Without a rate a step changes nothing, whatever the ratios have become and whether a new chart is made."""
    _, net, X, y = small(name)
    optimizer = path_optimizer(net, inner, chart_every=1, lr=0.3 if inner == "sgd" else 0.03)
    for _ in range(15):
        train(net, optimizer, X, y, 1)
        twin, own = copy.deepcopy((net, optimizer))
        for group in own.param_groups:
            group["lr"] = 0.0
        before = twin(X).detach()
        train(twin, own, X, y, 2)
        assert_close(twin(X), before, 1e-11)


@every_units
@pytest.mark.parametrize("size", [1e2, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_large_gradient_on_a_moving_weight(dtype, size, units):
    """Within a chart a step at most halves or doubles it, and nothing grows beyond bounds."""
    _, net, X, y = small("deep mlp", dtype)
    optimizer = path_optimizer(net, units=units, lr=0.0, chart_every=10**9)
    train(net, optimizer, X, y, 1)
    graph = scale_graph(net)
    skeleton = find_skeleton(graph, dict(net.named_parameters()))
    sizes = [edges_of.numel() for edges_of in map(net.get_parameter, graph.edges)]
    entry = int(skeleton.moving[1])
    assert entry < sizes[0]
    optimizer.param_groups[0]["lr"] = 0.05
    moving, outputs = net[0].weight.view(-1), net(X).detach()
    sign = moving[entry].sign().item()
    for _ in range(60):
        before = moving[entry].item()
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        net[0].weight.grad.view(-1)[entry] = sign * size
        optimizer.step()
        _, outputs = largest_change(net, X, outputs)
        assert 0.49 < moving[entry] / before < 2.01
    assert all(p.abs().max() < 1e3 for p in net.parameters())


def test_in_single_precision_a_path_goes_towards_zero_for_long():
    """Weights that are slaved to a shrinking one grow; they stay finite, and so does what they compute."""
    net = mlp(2, 3, 3, 1, bias=False)
    X = torch.rand(10, 2)
    optimizer = path_optimizer(net, lr=0.5, chart_every=50)
    outputs = net(X).detach()
    for _ in range(300):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
        _, outputs = largest_change(net, X, outputs)
    assert outputs.abs().max() < 0.01


@pytest.mark.parametrize("every", [1, 20])
def test_as_good_as_the_inner_optimizer_where_signs_have_to_change(every):
    """Every output weight of a trained net has to change its sign."""
    net = mlp(3, 8, 2).double()
    X = torch.randn(40, 3, dtype=torch.float64)
    targets = -3 * net(X).detach()
    plain = copy.deepcopy(net)
    train_to(plain, SGD(plain.parameters(), lr=0.1), X, targets)
    train_to(net, path_optimizer(net, lr=0.1, chart_every=every), X, targets)
    losses = [float((model(X) - targets).square().mean().detach()) for model in (net, plain)]
    assert losses[0] < 3 * losses[1] + 1e-3


def train_to(net, optimizer, X, targets, steps=400):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(X) - targets).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["balanced", "path"])
def test_much_too_large_rates_diverge_as_they_do_elsewhere(method):
    """Gradients that are not finite are refused, with weights that are finite."""
    _, net, X, y = small("mlp")
    optimizer = ECOptimizer(net, SGD, method=method, init="keep", lr=1e150)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(net, X, y).backward()
        if not all(p.grad.isfinite().all() for p in net.parameters()):
            with pytest.warns(UserWarning, match="refused"):
                optimizer.step()
            break
        optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp", "average-pool"])
def test_a_chart_that_is_renewed_trains_as_well(name):
    case = BY_NAME[name]
    losses = []
    for every in (1, 3, 10**9):
        net, (X, y) = case.net(), data(case)
        train(net, path_optimizer(net, "momentum", chart_every=every, lr=0.05), X, y, 80)
        losses.append(loss_of(net, X, y).item())
    assert max(losses) < 0.9 * loss_of(case.net(), *data(case)).item() and max(losses) < 2 * min(losses) + 0.05


def test_a_sparse_gradient_that_is_not_finite_is_refused():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(5, 4, sparse=True), mlp(4, 6, 3)

        def forward(self, x):
            return self.head(self.words(x))

    net = Words()
    optimizer = ECOptimizer(net, torch.optim.SGD, lr=0.1)
    for factor in (1.0, torch.nan):
        before = copy.deepcopy(net.state_dict())
        optimizer.zero_grad()
        (factor * net(torch.tensor([0, 2, 3])).sum()).backward()
        with pytest.warns(UserWarning, match="refused") if factor != 1 else nullcontext():
            optimizer.step()
        same = [torch.equal(before[name], value) for name, value in net.state_dict().items()]
        assert all(same) if factor != 1 else not all(same)
