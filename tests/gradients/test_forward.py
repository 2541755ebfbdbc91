"""One forward pass records what enters the layers, and what comes back to them."""

import pytest
import torch
from asserts import assert_close
from cases import BY_NAME
from nets import BorrowedWeight, CalledTwice, Checkpointed, GradientStopped, PairProduct, TimeFolded, UnusedLayer
from torch import nn

from sklearn_gradspace.gradients._forward import captured, forward_pass, leaves, net_output


def pass_through(net, names, n=4, k=2, shape=(6,), keep_graph=True):
    """Return a pass on random rows, each with k random linear forms of its outputs."""
    X = torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forms = torch.randn(n, k, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def scalar(outputs):
        return (forms * outputs.unsqueeze(1)).sum(2)

    return forward_pass(net_output(), net.double(), names, X, scalar, keep_graph=keep_graph)


def test_deltas_are_products_with_the_jacobian_of_the_outputs():
    head = nn.Linear(5, 3).double()
    forward = pass_through(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), head), ["0", "2"])
    h = forward.module[0](forward.inputs)
    at_first = (forward.cotangents @ head.weight) * (1 - h.tanh() ** 2).unsqueeze(1)
    assert_close(forward.calls["0"][0].deltas[0], at_first)
    assert_close(forward.calls["2"][0].deltas[0], forward.cotangents)
    assert torch.equal(forward.calls["2"][0].arguments[0], h.tanh())
    assert_close(forward.outputs, forward.module(forward.inputs))


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("k", [1, 3])
def test_outputs_can_be_differentiated_only_if_wanted(k, keep_graph):
    forward = pass_through(CalledTwice(), ["step"], k=k, keep_graph=keep_graph)
    assert forward.outputs.requires_grad == keep_graph
    assert not any(t.requires_grad for call in forward.calls["step"] for t in (*call.arguments, *call.deltas))
    if keep_graph:
        forward.outputs.sum().backward()


def test_every_call_of_a_layer_is_recorded():
    forward = pass_through(CalledTwice(), ["step", "head"])
    assert [len(forward.calls[name]) for name in ("step", "head")] == [2, 1]
    assert [call.deltas[0].shape for call in forward.calls["step"]] == [(4, 2, 6), (4, 2, 6)]


def test_what_a_checkpoint_computes_again_is_recorded_once():
    forward = pass_through(Checkpointed(), ["body.0", "body.2"])
    assert [len(calls) for calls in forward.calls.values()] == [1, 1]
    assert all(call.maps_rows for (call,) in forward.calls.values())


@pytest.mark.parametrize("inplace", [False, True])
def test_deltas_arrive_in_front_of_an_activation_in_place(inplace):
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 3))
    forward = pass_through(net, ["0"])
    open_gates = forward.module[0](forward.inputs) > 0
    assert torch.equal(forward.calls["0"][0].deltas[0] != 0, open_gates.unsqueeze(1).expand(-1, 2, -1))


def test_input_that_is_written_over_is_noticed():
    def forward(net, x):
        h = x * 2
        y = net[0](h)
        h.zero_()
        return y

    net = nn.Sequential(nn.Linear(6, 3).requires_grad_(False)).double()
    net[0].bias.requires_grad_(True)
    with captured({"0": net[0]}, 4) as calls:
        net(torch.ones(4, 6, dtype=torch.float64))
        forward(net, torch.ones(4, 6, dtype=torch.float64))
    assert [call.is_intact for call in calls["0"]] == [True, False]


def test_arguments_have_rows_or_none():
    pair = pass_through(PairProduct(), ["pair", "head"]).calls
    assert pair["pair"][0].by_row == (True, True) and not pair["pair"][0].maps_rows
    assert pair["head"][0].keywords == ("input",) and pair["head"][0].maps_rows
    assert pass_through(TimeFolded(), ["step"], shape=(3, 4)).calls["step"] == [None]
    assert pass_through(GradientStopped(), ["step"]).calls["step"][1] is None
    assert pass_through(BorrowedWeight(1.0), ["encoder"]).calls["encoder"][0].by_row == (True,)


def test_outputs_that_do_not_count_have_no_deltas():
    (call,) = pass_through(BY_NAME["attention"].net(), ["attention"], shape=(3, 4)).calls["attention"]
    assert call.outputs == (0,) and len(call.deltas) == 1
    (call,) = pass_through(BY_NAME["attention with its weights"].net(), ["attention"], shape=(3, 4)).calls["attention"]
    assert call.outputs == (0, 1) and [delta.shape for delta in call.deltas] == [(4, 2, 3, 4), (4, 2, 3, 3)]


def test_a_layer_that_is_not_called_has_no_calls():
    assert pass_through(UnusedLayer(), ["idle", "head"]).calls["idle"] == []


def test_rows_of_a_pass_are_the_pass_of_the_rows():
    for name, layer in (("attention under a mask", "attention"), ("called twice", "step")):
        case = BY_NAME[name]
        whole = pass_through(case.net(), [layer], shape=case.shape)
        part = whole.rows(slice(1, 3))
        assert whole.rows(slice(0, 4)) is whole
        assert torch.equal(part.inputs, whole.inputs[1:3]) and torch.equal(part.cotangents, whole.cotangents[1:3])
        for mine, call in zip(part.calls[layer], whole.calls[layer], strict=True):
            for argument, of_whole, by_row in zip(mine.arguments, call.arguments, call.by_row, strict=True):
                assert not by_row or torch.equal(argument, of_whole[1:3])
                assert by_row or argument is of_whole
            assert torch.equal(mine.deltas[0], call.deltas[0][1:3])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_mask_as_long_as_the_batch_is_no_row(n):
    net = BY_NAME["attention under a mask"].net()  # of three steps
    signature = pass_through(net, ["attention"], shape=(3, 4)).signature()
    forward = pass_through(net, ["attention"], n=n, shape=(3, 4)).like(signature)
    (call,) = forward.calls["attention"]
    assert call.by_row == signature["attention"][0] and sum(call.by_row) == 3


def test_layers_that_are_called_otherwise_are_unlike():
    forward = pass_through(CalledTwice(), ["step", "head"])
    assert forward.like(forward.signature()).calls == forward.calls
    assert forward.like({"head": [(True,)]}).calls["head"] == forward.calls["head"]
    for other in ([(True,)], [(True,)] * 3, [(True, True)] * 2, [None, (True,)]):
        assert forward.like({"step": other}) is None


def test_hooks_are_gone_afterwards_even_after_an_error():
    net = nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match="shapes"), captured({"": net}, 2):
        net(torch.ones(2, 5))
    assert not net._forward_hooks


def test_the_net_gets_a_copy_of_the_rows():
    net, X = BY_NAME["input shifted in place"].net(), torch.ones(4, 6, dtype=torch.float64)
    forward = forward_pass(net_output(), net, [], X, "logit")
    assert torch.equal(forward.inputs, torch.ones_like(X))


def test_leaves_are_the_tensors_in_order():
    a, b, c = torch.ones(3).unbind()
    assert [leaf is t for leaf, t in zip(leaves({"x": (a, [b, None]), "y": (c, "name")}), (a, b, c), strict=True)]
    assert leaves(None) == leaves(3) == []
