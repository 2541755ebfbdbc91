"""Parameters outside of the graph, frozen ones, ones without gradients or with bad ones, and units of norm zero."""

import copy
import warnings

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, METHODS, build, data, loss_of, small, train
from pathspace.cases import BY_NAME
from pathspace.nets import mlp
from torch import nn

from sklearn_gradspace.optim import ECOptimizer

every_method = pytest.mark.parametrize("method", METHODS)
every_inner = pytest.mark.parametrize("inner", INNER)


@every_method
@every_inner
def test_parameters_outside_of_the_graph_train_as_usual(inner, method):
    _, net, X, y = small()
    kind, options = INNER[inner]
    extra, alone = (nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64)) for _ in range(2))
    optimizer = ECOptimizer(net, kind, params=[*net.parameters(), extra], method=method, init="keep", **options)
    plain = kind([alone], **options)
    for _ in range(10):
        optimizer.zero_grad()
        plain.zero_grad()
        (loss_of(net, X, y) + (extra - 2).square().sum()).backward()
        (alone - 2).square().sum().backward()
        optimizer.step()
        plain.step()
    assert torch.equal(extra, alone)


@every_method
def test_sparse_gradients_outside_of_the_graph(method):
    def trained(sparse, make):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), *mlp(6, 4, 2))
        optimizer, X = make(net), torch.randint(0, 5, (20, 2))
        train(net, optimizer, X, torch.arange(20) % 2, 5)
        return net(X)

    def make(net):
        return ECOptimizer(net, lr=0.1, method=method)

    assert_close(trained(True, make), trained(False, make), 1e-6)


@every_method
@every_inner
def test_a_net_without_free_units_is_trained_by_the_inner_optimizer_and_says_so_once(inner, method):
    """To the bit."""
    _, _, X, y = small()
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    other, (kind, options) = copy.deepcopy(net), INNER[inner]
    with pytest.warns(UserWarning, match="no unit") as caught:
        optimizer = ECOptimizer(net, kind, method=method, **options)
    assert len(caught) == 1
    with warnings.catch_warnings(action="error"):
        train(net, optimizer, X, y, 10)
    train(other, kind(other.parameters(), **options), X, y, 10)
    assert all(torch.equal(mine, others) for mine, others in zip(net.parameters(), other.parameters()))
    again = copy.deepcopy(other)
    with pytest.warns(UserWarning, match="no unit"):
        resumed = ECOptimizer(again, kind, method=method, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, X, y, 3)
    train(again, resumed, X, y, 3)
    assert all(torch.equal(mine, others) for mine, others in zip(net.parameters(), again.parameters()))


@every_method
@every_inner
def test_pinned_layers_train_as_usual(inner, method):
    """A net in two parts that share no units: the one with tanh is trained as it would be alone."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.free = mlp(4, 5, 3)
            self.tanh = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

        def forward(self, x):
            return torch.cat([self.free(x), self.tanh(x)], 1)

    net, (X, y) = Two().double(), data(BY_NAME["mlp"])
    alone, (kind, options) = copy.deepcopy(net.tanh), INNER[inner]
    optimizer, plain = (
        ECOptimizer(net, kind, method=method, init="keep", **options),
        kind(alone.parameters(), **options),
    )
    for _ in range(8):
        optimizer.zero_grad()
        plain.zero_grad()
        outputs = net(X)
        (nn.functional.cross_entropy(outputs[:, :3], y) + nn.functional.cross_entropy(outputs[:, 3:], y)).backward()
        nn.functional.cross_entropy(alone(X), y).backward()
        optimizer.step()
        plain.step()
    for mine, others in zip(net.tanh.parameters(), alone.parameters()):
        assert_close(mine, others, 1e-14)


@every_method
@every_inner
@pytest.mark.parametrize("frozen", [["2.weight"], ["0.weight", "0.bias"], ["2.bias", "4.weight"]], ids=str)
def test_frozen_parameters_stay_to_the_bit(frozen, inner, method):
    case, net, X, y = small("deep mlp")
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    optimizer = build(net, method, inner, chart_every=2, balance_every=2)
    assert any("froz" in pin.layer + pin.reason for pin in optimizer.graph.pinned)
    train(net, optimizer, X, y, 12)
    original = dict(case.net().named_parameters())
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, original[name]) == (name in frozen)


@every_method
def test_parameters_that_are_left_out_stay_to_the_bit(method):
    case, net, X, y = small("deep mlp")
    train(net, build(net, method, params=[*net[0].parameters(), *net[4:].parameters()]), X, y, 12)
    assert all(torch.equal(a, b) for a, b in zip(net[2].parameters(), case.net()[2].parameters()))
    assert not torch.equal(net[0].weight, case.net()[0].weight)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = mlp(4, 6, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x):
        x = self.body(x).relu()
        return torch.cat([self.head(x), self.other(x)], 1)


@every_method
@every_inner
def test_parameters_without_gradients(inner, method):
    """The scales of their units may change; without a rate what they compute stays, and with one all is finite."""
    net, (X, y) = TwoHeads().double(), data(BY_NAME["mlp"])
    for lr in (0.0, 0.01):
        optimizer = build(net, method, inner, lr=lr, chart_every=3, balance_every=2)
        expected, bias = net(X).detach(), net.other.bias.detach().clone()
        for _ in range(10):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(net.head(net.body(X).relu()), y).backward()
            assert net.other.weight.grad is None
            optimizer.step()
        assert net(X).isfinite().all() and torch.equal(net.other.bias, bias)
        if lr:
            assert not torch.allclose(net(X), expected)
        else:
            assert_close(net(X), expected)


class Towers(nn.Module):
    """Two nets beside each other."""

    def __init__(self):
        super().__init__()
        self.one, self.other = mlp(4, 6, 5, 3), mlp(4, 6, 5, 3)

    def forward(self, x):
        return torch.cat([self.one(x), self.other(x)], 1)


@every_method
@every_inner
@pytest.mark.parametrize("n_before", [0, 3])
def test_units_without_gradients_rest(n_before, inner, method):
    """As torch leaves parameters alone that have no gradient: no decay, and no momentum."""
    net, (X, y) = Towers().double(), data(BY_NAME["mlp"])
    optimizer = build(net, method, inner, lr=0.01, weight_decay=0.1, chart_every=2)
    train(net, optimizer, X, y, n_before)
    expected = net.other(X).detach()
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.one(X), y).backward()
        optimizer.step()
    assert_close(net.other(X), expected)
    before = net(X).detach()
    for _ in range(10):
        optimizer.zero_grad()
        optimizer.step()
    assert_close(net(X), before)
    train(net, optimizer, X, y, 1)
    assert net(X).isfinite().all() and not torch.allclose(net.other(X), expected)


@every_method
def test_no_gradient_at_all(method):
    _, net, X, y = small()
    optimizer = build(net, method, "adam")
    expected = net(X).detach()
    optimizer.step()
    assert_close(net(X), expected, 1e-14)
    train(net, optimizer, X, y, 3)
    assert net(X).isfinite().all()


@every_method
@every_inner
@pytest.mark.parametrize("n_before", [0, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(value, n_before, inner, method):
    """Weights and state stay to the bit, and training goes on as if there had been no such step."""
    case, net, X, y = small("bottleneck")
    other = case.net()
    optimizer, plain = build(net, method, inner, chart_every=3), build(other, method, inner, chart_every=3)
    train(net, optimizer, X, y, n_before)
    train(other, plain, X, y, n_before)
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    loss_of(net, X, y).backward()
    net[2].weight.grad[1, 1] = value
    with pytest.warns(UserWarning, match="refused"):
        optimizer.step()
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
    assert_same_state(state, optimizer.state_dict())
    train(net, optimizer, X, y, 5)
    train(other, plain, X, y, 5)
    assert all(torch.equal(mine, others) for mine, others in zip(net.parameters(), other.parameters()))


def assert_same_state(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_same_state(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@every_method
def test_large_gradients_are_finite(method):
    """Their sum of squares overflows in single precision, and so may their sum; they do not."""
    _, net, X, y = small(dtype=torch.float32)
    optimizer = build(net, method, lr=1e-38)
    train(net, optimizer, X, y, 1)
    before = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    with warnings.catch_warnings(action="error"):
        optimizer.step()
    assert not torch.equal(before[0].weight, net[0].weight)
    assert all(p.isfinite().all() for p in net.parameters())


@every_method
@every_inner
@pytest.mark.parametrize("dead", ["nothing writes", "nothing reads", "neither"])
def test_units_of_norm_zero(dead, inner, method):
    _, net, X, y = small("deep mlp")
    with torch.no_grad():
        if dead != "nothing reads":
            net[2].weight[1], net[2].bias[1] = 0, 0
        if dead != "nothing writes":
            net[4].weight[:, 1] = 0
    expected = net(X).detach()
    optimizer = build(net, method, inner, lr=0.0, chart_every=1, balance_every=1)
    train(net, optimizer, X, y, 3)
    assert_close(net(X), expected)
    optimizer.param_groups[0]["lr"] = 0.01
    start = loss_of(net, X, y).item()
    train(net, optimizer, X, y, 30)
    assert all(p.isfinite().all() for p in net.parameters()) and loss_of(net, X, y).item() < start


@every_method
def test_all_weights_zero(method):
    """As plain descent from there: the last bias moves, and nothing else."""
    net, (X, y) = mlp(4, 5, 3).double(), data(BY_NAME["mlp"])
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    train(net, build(net, method), X, y, 5)
    assert all(p.isfinite().all() for p in net.parameters()) and net[2].bias.any()


def test_parameters_of_another_net_are_refused():
    with pytest.raises(ValueError, match="params holds no parameter of the module"):
        ECOptimizer(mlp(4, 3, 2), lr=0.1, params=list(mlp(4, 3, 2).parameters()))
