"""Training that is interrupted and resumed, copied or pickled goes on to the bit."""

import copy
import io
import pickle

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, METHODS, data, loss_of, small, train
from pathspace.cases import BY_NAME
from pathspace.nets import mlp
from torch import nn

from sklearn_gradspace.optim import ECOptimizer

every_method = pytest.mark.parametrize("method", METHODS)
every_inner = pytest.mark.parametrize("inner", INNER)


def build(net, method="balanced", inner="momentum", **options):
    kind, parameters = INNER[inner]
    return ECOptimizer(
        net, kind, method=method, **{"init": "keep", "chart_every": 3, "balance_every": 5, **parameters, **options}
    )


def assert_same(net, other):
    for (name, mine), others in zip(net.state_dict().items(), other.state_dict().values()):
        assert torch.equal(mine, others), name


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


def saved(*objects):
    """Return what torch saves and loads as plain tensors and containers."""
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in objects], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("inner", "loaded", "n_before"),
    [
        ("sgd", "before", 13),
        ("adam", "before", 13),
        ("momentum", "before", 0),
        ("momentum", "before", 1),
        ("momentum", "after", 13),
        ("momentum", "after the state", 13),
        ("adam", "after the state", 1),
    ],
)
@every_method
def test_resumed_training_is_the_same_to_the_bit(method, inner, loaded, n_before):
    case, net, X, y = small("residual with batch norm" if n_before == 1 else "residual, two blocks", torch.float32)
    optimizer = build(net, method, inner, lr=0.1)
    train(net, optimizer, X, y, n_before)
    net_state, state = saved(net, optimizer)
    train(net, optimizer, X, y, 15)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = case.build()
    assert not torch.equal(next(other.parameters()), next(case.net(torch.float32).parameters()))
    other.train(net.training)
    if loaded == "before":
        other.load_state_dict(net_state)
    resumed = build(other, method, inner, lr=1e-9)
    if loaded == "after":
        other.load_state_dict(net_state)
    resumed.load_state_dict(state)
    if loaded == "after the state":
        other.load_state_dict(net_state)
    assert resumed.param_groups[0]["lr"] == 0.1
    train(other, resumed, X, y, 15)
    assert_same(net, other)


@every_method
def test_two_optimizers_share_nothing_but_the_state_that_was_loaded(method):
    _, net, X, y = small("bottleneck")
    optimizer = build(net, method)
    train(net, optimizer, X, y, 5)
    state, other = optimizer.state_dict(), copy.deepcopy(net)
    resumed = build(other, method)
    resumed.load_state_dict(copy.deepcopy(state))
    train(other, resumed, X, y, 5)
    expected = copy.deepcopy(other.state_dict())
    train(net, optimizer, X, y, 5)
    assert_same(net, other)
    assert all(torch.equal(expected[name], value) for name, value in other.state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@pytest.mark.parametrize("n_before", [0, 6])
@every_inner
@every_method
def test_a_copy_of_net_and_optimizer_goes_on_alike(method, inner, n_before, copied):
    net, (X, y) = mlp(4, 5, 6, 3).double(), data(BY_NAME["mlp"])
    optimizer = build(net, method, inner)
    train(net, optimizer, X, y, n_before)
    other, own = copied((net, optimizer))
    assert own.graph.module is other
    assert {id(p) for group in own.param_groups for p in group["params"]} == {id(p) for p in other.parameters()}
    before = copy.deepcopy(net.state_dict())
    train(other, own, X, y, 8)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    train(net, optimizer, X, y, 8)
    assert_same(net, other)


def test_another_optimizers_state_is_refused():
    net = mlp(4, 5, 3)
    with pytest.raises(ValueError, match="ECOptimizer"):
        build(net).load_state_dict(torch.optim.SGD(net.parameters(), lr=0.1).state_dict())


@pytest.mark.parametrize(("mine", "others"), [("balanced", "path"), ("path", "balanced")])
def test_a_state_of_the_other_method_is_refused(mine, others):
    _, net, X, y = small()
    optimizer = build(net, others)
    train(net, optimizer, X, y, 2)
    with pytest.raises(ValueError, match="method"):
        build(mlp(4, 5, 3).double(), mine).load_state_dict(optimizer.state_dict())


@every_method
def test_a_state_of_another_net_is_refused(method):
    _, net, X, y = small()
    optimizer = build(net, method)
    train(net, optimizer, X, y, 2)
    with pytest.raises(ValueError):
        build(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), method).load_state_dict(
            optimizer.state_dict()
        )


@every_method
def test_a_scheduler_goes_on_as_well(method):
    case, net, X, y = small("mlp")
    optimizer = build(net, method)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    train(net, optimizer, X, y, 7, scheduler.step)
    net_state, state, schedule = saved(net, optimizer, scheduler)
    other = case.net()
    other.load_state_dict(net_state)
    resumed = build(other, method)
    going_on = torch.optim.lr_scheduler.CosineAnnealingLR(resumed, 20)
    resumed.load_state_dict(state)
    going_on.load_state_dict(schedule)
    train(net, optimizer, X, y, 7, scheduler.step)
    train(other, resumed, X, y, 7, going_on.step)
    assert_same(net, other)
    assert loss_of(net, X, y) == loss_of(other, X, y)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@every_method
def test_a_copy_beside_a_scheduler_trains_the_copy(method, copied):
    _, net, X, y = small()
    optimizer = build(net, method)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    train(net, optimizer, X, y, 2, scheduler.step)
    other, own = copied((net, optimizer))
    before = copy.deepcopy(net.state_dict())
    train(other, own, X, y, 3)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not torch.equal(before["0.weight"], other[0].weight)


@pytest.mark.parametrize("how", ["copy", "pickle", "load"])
def test_weights_that_are_set_in_a_copy_stay(how):
    _, net, X, y = small("bottleneck")
    optimizer = build(net, "path")
    train(net, optimizer, X, y, 3)
    earlier = copy.deepcopy(net.state_dict())
    train(net, optimizer, X, y, 8)
    if how == "load":
        other = copy.deepcopy(net)
        own = build(other, "path")
        own.load_state_dict(optimizer.state_dict())
    else:
        other, own = pickled((net, optimizer)) if how == "pickle" else copy.deepcopy((net, optimizer))
    other.load_state_dict(earlier)
    outputs = other(X)
    own.param_groups[0].update(lr=0.0, momentum=0.0)
    train(other, own, X, y, 1)
    assert_close(other(X), outputs, 1e-12)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"units": "raw"}, "units"), ({"inner": "adam"}, "optimizer"), ({}, "n_units")],
)
def test_a_state_of_another_kind_is_refused(options, name):
    _, net, X, y = small()
    optimizer = build(net, "path")
    train(net, optimizer, X, y, 2)
    other = copy.deepcopy(net) if options else mlp(4, 6, 3).double()
    with pytest.raises(ValueError, match=f"ECOptimizer with {name}="):
        build(other, "path", **options).load_state_dict(optimizer.state_dict())


class Counting(torch.optim.SGD):
    """SGD that counts in its group, and keeps what nobody knows or raises if it is told to."""

    keeps, raises = False, False

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                if self.keeps:
                    self.state[parameter]["own"] = torch.zeros_like(parameter)
        if self.raises:
            raise RuntimeError("on purpose")


@every_method
def test_what_the_inner_optimizer_counts_in_its_group(method):
    _, net, X, y = small()
    optimizer = ECOptimizer(net, Counting, method=method, lr=0.1)
    train(net, optimizer, X, y, 4)
    assert optimizer.inner.param_groups[0]["k"] == optimizer.param_groups[0]["k"] == 4


@every_method
def test_a_state_of_which_nothing_is_known_is_refused_at_once(method):
    _, net, X, y = small()
    optimizer = ECOptimizer(net, Counting, method=method, lr=0.0)
    optimizer.inner.keeps = True
    expected = net(X)
    with pytest.raises(ValueError, match="how 'own' of Counting changes"):
        train(net, optimizer, X, y, 1)
    assert_close(net(X), expected, 1e-12)


@every_method
def test_an_inner_step_that_fails_leaves_a_net(method):
    _, net, X, y = small()
    optimizer = ECOptimizer(net, Counting, method=method, lr=0.0)
    train(net, optimizer, X, y, 3)
    expected, optimizer.inner.raises = net(X), True
    with pytest.raises(RuntimeError, match="on purpose"):
        train(net, optimizer, X, y, 1)
    assert_close(net(X), expected, 1e-12)
    optimizer.inner.raises = False
    train(net, optimizer, X, y, 1)
    assert_close(net(X), expected, 1e-12)


@pytest.mark.parametrize("init", ["skeleton", "identity"])
@every_method
def test_training_from_another_start_is_resumed(method, init):
    net, (X, y) = mlp(4, 5, 6, 3).double(), data(BY_NAME["mlp"])
    optimizer = build(net, method, init=init, lr=0.01)
    train(net, optimizer, X, y, 6)
    net_state, state = saved(net, optimizer)
    other = mlp(4, 5, 6, 3).double()
    resumed = build(other, method, init=init, lr=0.01)
    other.load_state_dict(net_state)
    resumed.load_state_dict(state)
    train(net, optimizer, X, y, 6)
    train(other, resumed, X, y, 6)
    assert_same(net, other)
