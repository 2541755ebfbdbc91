"""Parameters that sums, products and matrix products use, wherever in a net that is, have a rule without torch.func."""

import copy

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from asserts import assert_close, assert_same_in_any_batch
from torch import nn

from sklearn_gradspace.gradients import GradientEngine
from sklearn_gradspace.gradients._lstm import unfold_lstms

RNG = np.random.default_rng(0)


class Net(nn.Module):
    """A parameter of its own, used by `use` in front of a layer."""

    def __init__(self, use, *shape, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.use, self.p = use, nn.Parameter(torch.randn(shape).double())
        self.h = nn.Linear(width, 3).double()

    def forward(self, x):
        return self.h(torch.tanh(self.use(x, self.p)).flatten(1))


class Sequence(nn.Module):
    """A module whose samples are the second axis, and what it returned in the end."""

    def __init__(self, make, axis=1):
        super().__init__()
        torch.manual_seed(0)
        self.m, self.h, self.axis = make().double(), nn.Linear(6, 3).double(), axis

    def forward(self, x):
        found = self.m(x.transpose(0, 1) if self.axis else x)
        found = found[0] if isinstance(found, tuple) else found
        return self.h(found[-1] if self.axis else found[:, -1])


def over_time(x, p):
    """Multiply a state by the same matrix at each time."""
    state = x[:, 0]
    for t in range(x.shape[1]):
        state = torch.tanh(state @ p + x[:, t])
    return state


VECTORS, STEPS, IMAGES = ((9, 6), (9, 5, 6), (9, 2, 3, 3))
NETS = {
    "added": (Net(lambda x, p: x + p, 6), VECTORS),
    "added to steps": (Net(lambda x, p: x + p, 5, 6, width=30), STEPS),
    "as many steps as rows that decide": (Net(lambda x, p: x + p, 4, 6, width=24), (9, 4, 6)),
    "added times a number": (Net(lambda x, p: torch.add(x, p, alpha=-3), 6), VECTORS),
    "taken from": (Net(lambda x, p: torch.sub(p, x, alpha=2), 6), VECTORS),
    "taken away": (Net(lambda x, p: torch.sub(x, p, alpha=2), 1), VECTORS),
    "multiplied": (Net(lambda x, p: x * p, 6), VECTORS),
    "multiplied from the left": (Net(lambda x, p: p * x, 5, 1, width=30), STEPS),
    "a number": (Net(lambda x, p: p * x), VECTORS),
    "multiplied with a part": (Net(lambda x, p: x[..., :1] * p, 6), VECTORS),
    "a scale of channels": (Net(lambda x, p: x * p.view(1, -1, 1, 1), 2, width=18), IMAGES),
    "a scale of channels by index": (Net(lambda x, p: x * p[None, :, None, None], 2, width=18), IMAGES),
    "expanded": (Net(lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], 1), 1, 1, 6, width=36), STEPS),
    "repeated": (Net(lambda x, p: torch.cat([p.repeat(len(x), 1, 1), x], 1), 1, 2, 6, width=42), STEPS),
    "a matrix": (Net(lambda x, p: x @ p, 6, 6), VECTORS),
    "a matrix of steps": (Net(lambda x, p: x @ p, 6, 4, width=20), STEPS),
    "a transposed matrix": (Net(lambda x, p: F.linear(x, p), 4, 6, width=20), STEPS),
    "added product": (Net(lambda x, p: torch.addmm(x, x, p, beta=0.5, alpha=2), 6, 6), VECTORS),
    "a scaled bias": (Net(lambda x, p: torch.addmm(p, x, torch.eye(6).double(), beta=0.5), 6), VECTORS),
    "in many ways": (Net(lambda x, p: (x @ p + F.linear(x, p)) * p[None], 6, 6, width=36), (9, 6, 6)),
    "at each time": (Net(over_time, 6, 6), STEPS),
    "steps first": (Sequence(lambda: nn.Linear(6, 6)), STEPS),
    "gru": (Sequence(lambda: nn.GRU(6, 6, 2, batch_first=True), 0), STEPS),
    "gru, steps first": (Sequence(lambda: nn.GRU(6, 6)), STEPS),
    "lstm": (Sequence(lambda: nn.LSTM(6, 6, batch_first=True), 0), STEPS),
    "rnn both ways": (Sequence(lambda: nn.RNN(6, 3, bidirectional=True, batch_first=True), 0), STEPS),
    "attention": (Sequence(lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True), 0), STEPS),
    "attention, steps first": (Sequence(lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0)), STEPS),
}  # fmt: skip
NOT_UNDERSTOOD = {
    "through a function": Net(lambda x, p: x * p.exp(), 6),
    "in part": Net(lambda x, p: x * p[:6], 8),
    "of all rows": Net(lambda x, p: x + p.expand(2, 3, 6).mean((0, 1)), 6),
    "also through a function": Net(lambda x, p: x * p + p.exp(), 6),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_the_loop(name, device):
    net, shape = NETS[name]
    net = net.eval()
    X = RNG.normal(size=shape)
    engine = GradientEngine(net, X, "all", device)
    rules = {rule.name: rule.rule for rule in engine.rules}
    assert not {"layer_transform", "net_transform", "loop"} & set(rules.values())
    assert "step_products" in rules.values()
    truth = reference.gradients(net, X)
    assert_close(engine(X), truth)
    assert_same_in_any_batch(engine, X)
    labels = torch.arange(len(X)) % 3
    assert_close(engine(X, labels), truth[np.arange(len(X)), labels.numpy()])
    assert engine.rules_for(engine.forward(X[:1])) is engine.rules


LSTMS = [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "num_layers": 2}]


@pytest.mark.parametrize("options", LSTMS, ids=str)
def test_lstms_in_single_precision_have_the_same_numbers(options, device):
    torch.manual_seed(0)
    layer, x = nn.LSTM(6, 5, **options).eval(), torch.randn(4, 3, 6)
    unfolded = copy.deepcopy(layer)
    unfold_lstms(unfolded)
    first = torch.randn(options.get("num_layers", 1) * (1 + options.get("bidirectional", False)), x.shape[1], 5)
    given = () if options.get("batch_first") else ((first, first + 1),)
    for hx in ((), given):
        (y, states), (z, others) = layer(x, *hx), unfolded(x, *hx)
        for found, expected in zip((z, *others), (y, *states)):
            assert_close(found.detach(), expected.detach(), 1e-6)


class LastState(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lstm, self.h = nn.LSTM(6, 5, batch_first=True, **options), nn.Linear(5, 3)

    def forward(self, x):
        return self.h(self.lstm(x)[1][0][-1])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_lstms_in_single_precision(options, device):
    torch.manual_seed(0)
    net, X = LastState(**options).eval(), RNG.normal(size=STEPS).astype(np.float32)
    engine = GradientEngine(net, X, "all", device)
    if device.type == "cpu":
        assert "step_products" in {rule.rule for rule in engine.rules}
    assert_close(engine(X), reference.gradients(net, X), 1e-5)
    assert type(net.lstm) is nn.LSTM


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_other_uses_have_another_rule(name, device):
    net, X = NOT_UNDERSTOOD[name].eval(), RNG.normal(size=VECTORS)
    engine = GradientEngine(net, X, "all", device)
    assert {rule.name: rule.rule for rule in engine.rules}["p"] != "step_products"
    assert_close(engine(X), reference.gradients(net, X))


@pytest.mark.parametrize("n_steps", [1, 2, 7])
@pytest.mark.parametrize("of_sample", [1, 3])
@pytest.mark.parametrize("name", ["gru", "gru, steps first", "steps first", "lstm", "attention, steps first"])
def test_sequences_of_another_length(name, of_sample, n_steps, device):
    net = NETS[name][0].eval()
    engine = GradientEngine(net, RNG.normal(size=(5, of_sample, 6)), "all", device)
    X = RNG.normal(size=(5, n_steps, 6))
    assert_close(engine(X), reference.gradients(net, X))


def test_rows_may_go_another_way(device):
    def use(x, p):
        is_large = x.abs().amax(1, keepdim=True) > 10
        return torch.where(is_large, x * p.exp(), x * p) if is_large.any() else x * p

    net, X = Net(use, 6).eval(), RNG.normal(size=VECTORS)
    engine = GradientEngine(net, X, "all", device)
    assert engine.ways.keys() == {"p"}
    X[::3] *= 100
    assert_close(engine(X), reference.gradients(net, X))
