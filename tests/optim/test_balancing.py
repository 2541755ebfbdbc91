"""Steps in the balanced representative: those of the inner optimizer, and sweeps that change no function."""

import copy

import pytest
import torch
from asserts import assert_close
from optim.training import INNER, NETS, SGD, data, loss_of, small, train, trained
from pathspace.cases import BY_NAME
from pathspace.twins import balanced, graph_of

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, rescale

NEVER = 10**9
STATES = [  # optimizers of torch that keep something, and the powers with which that scales
    (SGD, {"momentum": 0.9}, {"momentum_buffer": -1}),
    (SGD, {"momentum": 0.9, "nesterov": True, "foreach": False}, {"momentum_buffer": -1}),
    (torch.optim.Adam, {"amsgrad": True}, {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}),
    (torch.optim.AdamW, {"weight_decay": 0.1}, {"exp_avg": -1, "exp_avg_sq": -2}),
    (torch.optim.NAdam, {}, {"exp_avg": -1, "exp_avg_sq": -2}),
    (torch.optim.RAdam, {}, {"exp_avg": -1, "exp_avg_sq": -2}),
    (torch.optim.Adamax, {}, {"exp_avg": -1, "exp_inf": -1}),
    (torch.optim.Adagrad, {}, {"sum": -2}),
    (torch.optim.Adadelta, {}, {"square_avg": -2, "acc_delta": 2}),
    (torch.optim.RMSprop, {"centered": True}, {"square_avg": -2, "grad_avg": -1}),
    (torch.optim.RMSprop, {"momentum": 0.9}, {"square_avg": -2, "momentum_buffer": 0}),
]


def optimizer(net, every, kind=SGD, **options):
    return ECOptimizer(net, kind, method="balanced", init="keep", balance_every=every, **{"lr": 0.05, **options})


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("inner", INNER)
def test_the_inner_optimizer_makes_the_steps_from_the_canonical_twin(inner, name):
    case, (kind, options) = BY_NAME[name], INNER[inner]
    plain = balanced(case)
    train(plain, kind(plain.parameters(), **options), *data(case), 20)
    net = trained(case, "balanced", inner, 20, balance_every=NEVER)
    for mine, others in zip(net.parameters(), plain.parameters()):
        assert_close(mine, others, 1e-11)


@pytest.mark.parametrize("name", [*NETS, "dense block", "inverted residual", "transposed with groups"])
def test_a_sweep_does_not_change_the_function(name):
    """Two optimizers are in the same state, and one of them then goes back towards balance."""
    case = BY_NAME[name]
    net, swept, (X, y) = case.net(), case.net(), data(case)
    train(net, optimizer(net, NEVER), X, y, 5)
    train(swept, optimizer(swept, 5), X, y, 5)
    assert_close(swept(X), net(X), 1e-12)
    assert_close(swept.eval()(X), net.eval()(X), 1e-12)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(net.parameters(), swept.parameters()))


@pytest.mark.parametrize(("kind", "options", "powers"), STATES, ids=lambda value: getattr(value, "__name__", None))
def test_the_state_is_carried_along(kind, options, powers):
    """A weight and its state scale together in a sweep, each with its power."""
    case, net, X, y = small("residual, two blocks")
    swept = case.net()
    never, every = (optimizer(*pair, kind, **{"lr": 0.01, **options}) for pair in ((net, NEVER), (swept, 6)))
    train(net, never, X, y, 6)
    train(swept, every, X, y, 6)
    moved = False
    for mine, others in zip(swept.parameters(), net.parameters()):
        factor = mine.detach() / others.detach()
        moved |= bool((factor - 1).abs().max() > 1e-5)
        assert set(powers) <= set(every.inner.state[mine])
        for name, value in never.inner.state[others].items():
            if isinstance(value, torch.Tensor) and value.shape == mine.shape:
                assert_close(every.inner.state[mine][name], value * factor ** powers[name], 1e-10)
    assert moved


def test_it_stays_near_to_balance():
    """Without sweeps it does not."""
    case = BY_NAME["bottleneck"]
    imbalance = []
    for every in (4, NEVER):
        net = trained(case, "balanced", "momentum", 200, balance_every=every)
        sums = [((a.weight**2).sum(1) + a.bias**2, (b.weight**2).sum(0)) for a, b in zip(net[::2], net[2::2])]
        imbalance.append(max((incoming / outgoing).log().abs().max().item() for incoming, outgoing in sums))
    assert imbalance[0] < 0.5 * imbalance[1] and imbalance[0] < 0.3, imbalance


def test_sweeps_come_to_balance():
    """Steps without a rate, of a net that was taken out of balance behind the optimizer's back."""
    case, net, X, y = small("two convolutions")
    own = optimizer(net, 1, lr=0.0)
    train(net, own, X, y, 1)
    expected = copy.deepcopy(net)
    rescale(net, torch.linspace(0.5, 2, case.units), graph_of(case))
    train(net, own, X, y, 200)
    for mine, others in zip(net.parameters(), expected.parameters()):
        assert_close(mine, others, 1e-6)


@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adafactor])
def test_others_train_or_are_refused_by_name(kind):
    _, net, X, y = small()
    start = loss_of(net, X, y).item()
    try:
        train(net, optimizer(net, 2, kind, lr=0.01), X, y, 30)
    except ValueError as refused:
        assert kind.__name__ in str(refused)
    else:
        assert loss_of(net, X, y).item() < start


def test_running_statistics_follow():
    """A sweep changes nothing in evaluation mode either, and balance agrees."""
    _, net, X, y = small("residual with batch norm")
    train(net, optimizer(net, 1), X, y, 10)
    expected = net.eval()(X)
    assert_close(balance(copy.deepcopy(net))(X), expected)
