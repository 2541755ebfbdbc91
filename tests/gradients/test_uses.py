"""Parameters that are used elsewhere than in their layer: seldom, in part, by other rows or for other scalars alone."""

import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import reference
import torch
from asserts import assert_close, assert_same_in_any_batch
from torch import nn
from torch.nn import functional as F

from sklearn_gradspace import check_gradients
from sklearn_gradspace.gradients import GradientEngine

X = np.random.default_rng(0).normal(size=(12, 6))
USUAL = X.clip(-0.9, 0.9)  # no row of which is large
X[-1, 0] = 2


class Net(nn.Module):
    """Two layers and a parameter of its own, which go into `forward`."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.h, self.rare = nn.Linear(6, 6), nn.Linear(6, 3), nn.Parameter(torch.randn(6))
        self._forward = forward
        self.double().eval()

    def forward(self, x):
        return self._forward(self, x)


def hidden(net, x):
    return torch.tanh(net.a(x))


def is_large(x):
    return x[:, :1] > 1


def sorted_and_back(function):
    def forward(net, x):
        order = x[:, 0].argsort()
        return function(net, x[order])[order.argsort()]

    return forward


def if_some_are_large(usual, otherwise):
    return Net(lambda net, x: (otherwise if is_large(x).any() else usual)(net, x))


def plain(net, x):
    return net.h(hidden(net, x))


NETS = {
    "a weight for later outputs": Net(lambda net, x: torch.cat([plain(net, x), hidden(net, x) @ net.a.weight], 1)),
    "a weight for some rows": Net(
        lambda net, x: net.h(torch.where(is_large(x), F.linear(x, net.a.weight), hidden(net, x)))
    ),
    "a weight with next to no share": Net(lambda net, x: net.h(hidden(net, x) + 1e-12 * x @ net.a.weight)),
    "a weight in a batch with a large row": if_some_are_large(
        plain, lambda net, x: plain(net, x) + is_large(x) * F.linear(x, net.a.weight)[:, :3]
    ),
    "a parameter in a batch with a large row": if_some_are_large(
        plain, lambda net, x: net.h(torch.where(is_large(x), hidden(net, x) * net.rare, hidden(net, x)))
    ),
    "rows sorted in a batch with a large one": if_some_are_large(plain, sorted_and_back(plain)),
}


@pytest.mark.parametrize("scalar", ["logit", "cross_entropy"])
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_the_whole(name, scalar, device):
    engine = GradientEngine(NETS[name], USUAL, "all", device, scalar=scalar)
    assert_close(engine(X), reference.gradients(NETS[name], X, scalar))
    assert_same_in_any_batch(engine, X)


def test_nets_without_double_precision_have_the_same_rules(device):
    def forward(net, x):
        x = x.float()
        return net.h(torch.tanh(net.a(x)) + 1e-3 * x @ net.a.weight)

    net, rows = Net(forward).float(), X.astype(np.float32)
    engine = GradientEngine(net, rows, "all", device)
    assert {rule.rule for rule in engine.rules if rule.name == "a.weight"} == {"step_products"}
    assert_close(engine(rows), reference.gradients(net, rows), 1e-5)


class Sliced(nn.Module):
    """Its attributes are parts of a parameter, computed once."""

    def __init__(self):
        super().__init__()
        self.both, self.h = nn.Parameter(torch.randn(6, 10)), nn.Linear(5, 3)
        self.first, self.second = self.both[:, :5], self.both[:, 5:]

    def forward(self, x):
        return self.h(torch.tanh(x @ self.first) * (x @ self.second))


class Tied(nn.Module):
    """A list holds a layer's weight, transposed once."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.transposed = [self.a.weight.t()]

    def forward(self, x):
        return F.linear(torch.tanh(self.a(x)), self.transposed[0])


@pytest.mark.parametrize(("make", "name"), [(Sliced, "both"), (Tied, "a.weight")])
def test_attributes_that_were_computed_from_parameters_are_refused(make, name):
    with pytest.raises(ValueError, match=f"holds on to {name} from outside.*an attribute was computed"):
        GradientEngine(make(), X, "all")
    with pytest.raises(ValueError, match=f"holds on to {name}"):
        check_gradients(make(), X)


def test_activations_that_a_net_keeps_do_no_harm(device):
    def forward(net, x):
        net.kept, net.listed, net.by_name = hidden(net, x), [hidden(net, x)], {"hidden": hidden(net, x)}
        return net.h(net.kept)

    net = Net(forward)
    net(torch.from_numpy(X))
    kept = net.kept
    assert_close(GradientEngine(net, X, "all", device)(X), reference.gradients(net, X))
    assert net.kept is not kept and net.kept.requires_grad  # by the reference


def test_hooks_on_gradients_are_told_not_to_be_called():
    net = Net(plain)
    net.a.weight.register_hook(lambda gradient: gradient * 0)
    with pytest.warns(UserWarning, match=r"hooks that a\.weight have .*are not called"):
        engine = GradientEngine(net, X, "weights")
    assert engine(X)[..., :36].any()


@contextmanager
def fast_path(is_on):
    """Whether encoders with frozen weights may make nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(is_on)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("layers", ["all", ["m.layers.1.*"], ["h.weight"]])
def test_encoders_of_padded_sequences(layers, device):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.m, self.h = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.h(self.m(x, src_key_padding_mask=x[..., 0] == 0).mean(1))

    torch.manual_seed(0)
    net, rows = Encoder().double().eval(), np.random.default_rng(0).normal(size=(6, 5, 8))
    rows[::2, 3:] = 0
    engine = GradientEngine(net, rows, layers, device)
    chosen = {block.name for block in engine.blocks}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)
    with fast_path(False):
        assert_close(engine(rows), reference.gradients(net, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_indices_that_the_net_makes_of_its_input_stay_exact(dtype, device):
    class OfTokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = nn.Embedding(3000, 6), nn.Linear(6, 3)

        def forward(self, tokens):
            return self.h(torch.tanh(self.e(tokens.long())).mean(1))

    net, tokens = OfTokens().to(dtype), np.random.default_rng(0).integers(1000, 3000, size=(8, 5))
    engine = GradientEngine(net, tokens, "all", device)
    torch.testing.assert_close(engine.outputs(tokens).cpu(), net(torch.from_numpy(tokens)).detach())


class ToSingle(nn.Module):
    """A step to single precision."""

    def forward(self, x):
        return x.float()


def test_the_input_is_in_the_precision_of_the_net_and_not_of_the_chosen_layer(device):
    body, head = Net(plain), nn.Linear(3, 2)
    engine = GradientEngine(nn.Sequential(body, ToSingle(), head), X, ["2.weight"], device)
    inputs = body(torch.from_numpy(X)).detach().float().numpy()
    assert_close(engine(X), reference.gradients(head, inputs)[..., :6], 1e-5)


class Passing(nn.Module):
    """A layer that returns its input as well."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return x, x @ self.w


class UsedUpstream(nn.Module):
    """The layer's weight is used in front of it, for large rows."""

    def __init__(self):
        super().__init__()
        self.layer, self.h = Passing(), nn.Linear(6, 3)

    def forward(self, x):
        x, y = self.layer(torch.where(is_large(x), torch.tanh(x @ self.layer.w), x))
        return self.h(x + torch.tanh(y))


def test_a_weight_that_is_used_in_front_of_its_layer(device):
    torch.manual_seed(0)
    net = UsedUpstream().double().eval()
    assert_close(GradientEngine(net, USUAL, "all", device)(X), reference.gradients(net, X))


def test_what_transforms_take_is_without_the_weights(device):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.scale, self.h = nn.Linear(6, 4000), nn.Parameter(torch.ones(6)), nn.Linear(4000, 3)

        def forward(self, x):
            return self.h(torch.tanh(self.wide(x * self.scale.exp())))

    engine = GradientEngine(Scaled().eval(), X.astype(np.float32), "all", device)
    assert {rule.rule for rule in engine.rules if rule.name == "scale"} != {"closed_form"}
    assert 0 < engine.transform_bytes < 4000 * 6 * 4 * 3


def test_sparse_tensors_in_lists_and_containers_that_hold_themselves_travel(device):
    net = Net(plain)
    net.filters, net.itself = [torch.eye(4).to_sparse()], {}
    net.itself["again"] = net.itself
    net._forward = plain
    engine = pickle.loads(pickle.dumps(GradientEngine(net, X, "all", device)))
    assert_close(engine(X), reference.gradients(net, X))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # torch's word on the layer that is meant to be empty
def test_layers_without_entries_have_no_gradients(device):
    net = nn.Sequential(nn.Linear(6, 3), Beside(nn.Linear(3, 0))).double()
    assert_close(GradientEngine(net, X, "all", device)(X), reference.gradients(net, X))


class Beside(nn.Module):
    """Something that is computed for nothing."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x).sum(1, keepdim=True)
