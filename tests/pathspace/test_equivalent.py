"""Whether two nets are rescaled twins."""

import copy

import pytest
import torch
import torch.nn.functional as F
from asserts import untouched
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import Net, mlp
from pathspace.pinned_nets import Branching
from pathspace.twins import twin
from torch import nn

from sklearn_gradspace.pathspace import equivalent, rescale

some_cases = pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)


@some_cases
def test_twins_are_and_others_are_not(case):
    net, other = case.net(), twin(case)
    before = copy.deepcopy(other.state_dict())
    assert equivalent(net, other, rtol=1e-11) is True
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    largest = max(other.parameters(), key=lambda p: p.numel()).data.view(-1)
    largest[largest.abs().argmax()] *= 1.001
    assert equivalent(net, other) is False
    assert equivalent(other, net, rtol=0.1) is True


def test_the_sign_counts():
    net = mlp(3, 4, 2).double()
    other = copy.deepcopy(net)
    other[0].weight.data[1] *= -1
    other[0].bias.data[1] *= -1
    other[2].weight.data[:, 1] *= -1
    assert not equivalent(net, other)


def test_in_single_precision(device):
    case = BY_NAME["residual with batch norm"]
    assert equivalent(case.net(torch.float32).to(device), twin(case, net=case.net(torch.float32)))


def test_dead_units():
    net = mlp(3, 4, 2).double()
    net[0].weight.data[1], net[0].bias.data[1] = 0, 0
    net[2].weight.data[:, 2] = 0
    assert equivalent(net, rescale(copy.deepcopy(net), [1, 2, 3, 4]))


@pytest.mark.parametrize("other", [mlp(3, 5, 2), mlp(3, 4, 4, 2), mlp(3, 4, 2, bias=False)])
def test_another_architecture_is_an_error(other):
    with pytest.raises(ValueError, match=r"^module_a and module_b differ: the parameter '\d\.(weight|bias)' is"):
        equivalent(mlp(3, 4, 2), other)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.LeakyReLU, nn.Identity])
def test_the_same_weights_in_another_function_are_no_twin(activation):
    net = mlp(3, 4, 2)
    other = mlp(3, 4, 2, activation=activation)
    other.load_state_dict(net.state_dict())
    try:
        assert not equivalent(net, other) and not equivalent(other, net)
    except ValueError as refused:
        assert "differ" in str(refused)


def test_running_statistics_count():
    """In evaluation mode they are part of the function."""
    net = BY_NAME["batch norm"].net().eval()
    other = copy.deepcopy(net)
    other[1].running_mean += 1
    assert not equivalent(net, other)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_net_is_its_own_twin_and_its_copys(case):
    net = case.net()
    with untouched(net):
        assert equivalent(net, net) and equivalent(net, copy.deepcopy(net))


def standardized(mean, scale=(1.0, 2.0, 3.0)):
    """An MLP on inputs that are standardized by tensors that `forward` makes."""

    def forward(net, x):
        return net.head(net.hidden((x - torch.tensor(mean)) / torch.tensor(scale)).relu())

    return Net(forward, hidden=nn.Linear(3, 4), head=nn.Linear(4, 2))


def test_constants_are_compared_by_value():
    net, other = standardized([0.1, 0.2, 0.3]), standardized([0.1, 0.2, 0.3])
    other.load_state_dict(net.state_dict())
    with untouched(net):
        assert equivalent(net, other) and equivalent(net, net)
        assert equivalent(net, rescale(copy.deepcopy(other), [0.1, 1, 2, 30]))
    for mean, scale in (((0.1, 0.2, 0.4), (1.0, 2.0, 3.0)), ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)), ((0.1,), (1.0,))):
        changed = standardized(mean, scale)
        changed.load_state_dict(net.state_dict())
        assert not equivalent(net, changed)


def test_a_trace_by_others_does_not_matter():
    """torch.fx leaves constants on a net."""
    net = standardized([0.1, 0.2, 0.3])
    other = copy.deepcopy(net)
    torch.fx.symbolic_trace(other)
    assert "_tensor_constant0" in vars(other)
    assert equivalent(net, other) and equivalent(other, net)


@pytest.mark.parametrize("name", ["plain attribute", "buffer", "buffer that is not saved", "constant"])
def test_tensors_that_are_no_parameters_are_compared(name):
    def build(shift):
        if name == "constant":
            return Net(lambda net, x: net.head(x + torch.tensor(shift)), head=nn.Linear(2, 2))
        net = Net(lambda net, x: net.head(x + net.shift), head=nn.Linear(2, 2))
        if name == "plain attribute":
            net.shift = torch.tensor(shift)
        else:
            net.register_buffer("shift", torch.tensor(shift), persistent=name == "buffer")
        return net

    minus, nan = -float("inf"), float("nan")
    net = build([0.0, minus])
    same, *others = build([0.0, minus]), build([minus, 0.0]), build([0.5, minus]), build([nan, minus])
    for other in (same, *others):
        other.head.load_state_dict(net.head.state_dict())
    assert equivalent(net, same) and equivalent(others[-1], copy.deepcopy(others[-1]))
    assert not any(equivalent(net, other) or equivalent(other, net) for other in others)


class Held(nn.Module):
    """A submodule that torch.fx cannot trace, with a tensor and a number of its own."""

    def __init__(self, power=1, shift=0.0):
        super().__init__()
        self.power, self.shift = power, torch.tensor(shift)

    def forward(self, x):
        return x**self.power + self.shift if x.sum() > 0 else x


def attending(heads):
    return Net(lambda net, x: net.attention(x, x, x)[0], attention=nn.MultiheadAttention(4, heads))


def pooling(**options):
    layers = [nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(2, 2, 1, **options), nn.Flatten(), nn.Linear(18, 2)]
    return nn.Sequential(*layers)


DIFFERENT = {
    "padding counts": lambda: (pooling(), pooling(count_include_pad=False)),
    "divisor": lambda: (pooling(), pooling(divisor_override=3)),
    "heads": lambda: (attending(1), attending(4)),
    "activation of a transformer": lambda: tuple(
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, activation=kind)) for kind in (F.relu, F.gelu)
    ),
    "slope": lambda: tuple(mlp(3, 4, 2, activation=lambda s=s: nn.LeakyReLU(s)) for s in (0.1, 0.2)),
    "stride": lambda: tuple(nn.Sequential(nn.Conv1d(1, 2, 2, stride=stride)) for stride in (1, 2)),
    "eps": lambda: tuple(nn.Sequential(nn.BatchNorm1d(3, eps)) for eps in (1e-5, 1e-3)),
    "a number in what cannot be traced": lambda: (nn.Sequential(Held()), nn.Sequential(Held(2))),
    "a tensor in what cannot be traced": lambda: (nn.Sequential(Held()), nn.Sequential(Held(shift=1.0))),
    "a number in forward": lambda: tuple(Net(lambda net, x, c=c: net.a(x) * c, a=nn.Linear(2, 2)) for c in (2, 3)),
}


@pytest.mark.parametrize("build", DIFFERENT.values(), ids=DIFFERENT)
def test_the_same_weights_in_layers_that_compute_something_else_are_no_twin(build):
    net, other = build()
    other.load_state_dict(net.state_dict())
    assert not equivalent(net, other) and not equivalent(other, net)
    assert equivalent(net, copy.deepcopy(net)) and equivalent(other, copy.deepcopy(other))


def test_modes_hooks_and_frozen_parameters_do_not_matter():
    net = nn.Sequential(mlp(3, 4, 4), nn.Dropout(), nn.ReLU(), Branching(), nn.Linear(4, 2))
    other = copy.deepcopy(net).eval().requires_grad_(False)
    other[1].register_forward_hook(lambda layer, args, output: None)
    assert equivalent(net, other)
    dropping = Net(lambda net, x: F.dropout(net.a(x), 0.5, net.training), a=nn.Linear(3, 2))
    assert equivalent(dropping, copy.deepcopy(dropping).eval())
    dropping = Net(lambda net, x: torch.dropout(net.a(x), 0.5, net.training), a=nn.Linear(3, 2))
    assert equivalent(dropping, copy.deepcopy(dropping).eval())


def test_nets_of_other_buffers_are_no_twins():
    net = mlp(3, 4, 2)
    other = copy.deepcopy(net)
    net.register_buffer("mask", torch.ones(2))
    assert not equivalent(net, other) and not equivalent(other, net)
    other.register_buffer("mask", torch.ones(1))
    assert not equivalent(net, other)


def test_a_net_that_counts_is_its_own_twin():
    net = Net(lambda net, x: net.a(x + net.steps.add_(1)), a=nn.Linear(3, 2))
    net.register_buffer("steps", torch.zeros(()))
    assert equivalent(net, copy.deepcopy(net)) and not net.steps


def test_a_pruned_net_is_its_own_twin():
    net = mlp(3, 4, 2)
    nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    other = mlp(3, 4, 2)
    nn.utils.prune.random_unstructured(other[0], "weight", 0.5)
    assert equivalent(net, net)
    other.load_state_dict(net.state_dict())  # other[0].weight is computed in the next forward
    assert equivalent(net, other)
