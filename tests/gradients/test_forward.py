"""One forward pass records what enters the layers, and what comes back to them."""

import pytest
import torch
from asserts import assert_close
from nets import BorrowedWeight, CalledTwice, PairProduct, UnusedLayer
from torch import nn

from sklearn_gradspace.gradients._forward import ForwardPass, captured


def pass_through(net, names, n=4, k=2):
    net, X = net.double(), torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with captured({name: net.get_submodule(name) for name in names}) as calls:
        logits = net(X)
    cotangents = torch.randn(n, k, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return ForwardPass(net, X, logits, calls, cotangents)


def test_deltas_are_products_with_the_jacobian_of_the_outputs():
    head = nn.Linear(5, 3).double()
    forward = pass_through(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), head), ["0", "2"])
    h = forward.module[0](forward.inputs)
    at_first = (forward.cotangents @ head.weight) * (1 - h.tanh() ** 2).unsqueeze(1)
    assert_close(forward.deltas["0"][0], at_first)
    assert_close(forward.deltas["2"][0], forward.cotangents)
    assert torch.equal(forward.calls["2"][0].inputs, h.tanh())


def test_every_call_of_a_layer_is_recorded():
    forward = pass_through(CalledTwice(), ["step", "head"])
    assert [len(forward.calls[name]) for name in ("step", "head")] == [2, 1]
    assert [delta.shape for delta in forward.deltas["step"]] == [(4, 2, 6), (4, 2, 6)]


@pytest.mark.parametrize("inplace", [False, True])
def test_deltas_arrive_in_front_of_an_activation_in_place(inplace):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 3))
    forward = pass_through(net, ["0"])
    open_gates = forward.module[0](forward.inputs) > 0
    assert torch.equal(forward.deltas["0"][0] != 0, open_gates.unsqueeze(1).expand(-1, 2, -1))


def test_input_that_is_written_over_is_noticed():
    def forward(net, x):
        h = x * 2
        y = net[0](h)
        h.zero_()
        return y

    net = nn.Sequential(nn.Linear(6, 3).requires_grad_(False)).double()
    net[0].bias.requires_grad_(True)
    with captured({"0": net[0]}) as calls:
        net(torch.ones(4, 6, dtype=torch.float64))
        forward(net, torch.ones(4, 6, dtype=torch.float64))
    assert [call.is_intact for call in calls["0"]] == [True, False]


def test_calls_of_another_form_are_none():
    assert pass_through(PairProduct(), ["pair"]).calls["pair"] == [None]
    assert pass_through(BorrowedWeight(1.0), ["encoder"]).calls["encoder"] != [None]


def test_a_layer_that_is_not_called_has_no_calls():
    forward = pass_through(UnusedLayer(), ["idle", "head"])
    assert forward.calls["idle"] == [] and "idle" not in forward.deltas


def test_hooks_are_gone_afterwards_even_after_an_error():
    net = nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match="shapes"), captured({"": net}):
        net(torch.ones(2, 5))
    assert not net._forward_hooks
