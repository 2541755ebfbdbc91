"""The scale graph: as many units as the function's Jacobian in the parameters lacks in rank, and what it reports."""

import copy
import math

import pytest
import reference
import torch
import torch.nn.functional as F
from asserts import assert_close, random_state_untouched, untouched
from pathspace.cases import BY_NAME, CASES, PINNED, SUPPORTED
from pathspace.nets import Net, mlp
from pathspace.pinned_nets import Branching, written_in_part
from pathspace.twins import graph_of
from torch import nn

from sklearn_gradspace.pathspace import ScaleGraph, rescale, scale_graph


def deficiency(case):
    """Return by how much the Jacobian of the outputs for two batches falls short of full rank."""
    net = case.net()
    parameters = list(net.parameters())
    n_params, n_outputs = sum(p.numel() for p in parameters), net(case.X(2)).shape[1]
    n = 2 * math.ceil(1.25 * n_params / n_outputs)
    batches = case.X(max(n, 20)).chunk(2)
    rows = reference.jacobian(lambda: torch.cat([net(X) for X in batches]), parameters)
    return n_params - reference.rank(rows)


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_units_are_what_the_jacobian_lacks_in_rank(case):
    graph = graph_of(case)
    assert graph.n_units == case.units
    assert int(graph.approximate.sum()) == case.approximate
    assert graph.n_units - case.approximate + case.extra == deficiency(case)


@pytest.mark.parametrize("case", PINNED, ids=lambda case: case.name)
def test_no_more_units_than_the_jacobian_lacks_in_rank(case):
    assert graph_of(case).n_units == case.units <= deficiency(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_pins_units_is_named_with_a_reason(case):
    graph = graph_of(case)
    names = [pin.layer for pin in graph.pinned]
    assert bool(names) == bool(case.pinned)
    for part in case.pinned:
        assert any(part in name for name in names), names
    for pin in graph.pinned:
        assert len(pin.reason) > 10
        assert pin.layer in str(graph) and pin.reason in str(graph)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numbers_and_names(case):
    net = case.net()
    with untouched(net), random_state_untouched():
        graph = scale_graph(net)
        text = str(graph)
    m = sum(p.numel() for p in net.parameters())
    assert (graph.module, graph.n_params, graph.dimension) == (net, m, m - case.units)
    assert graph.invariant_ratio == case.units / m
    assert len(set(graph.unit_names)) == len(graph.private) == len(graph.approximate) == case.units
    for name, parameter in net.named_parameters():
        write, read = graph.edges[name][:2]
        assert torch.broadcast_shapes(write.shape, read.shape, parameter.shape) == parameter.shape
        assert name in text
    used = {unit for edges in graph.edges.values() for ids in edges[:2] for unit in ids.flatten().tolist()}
    assert used - {0} == set(range(1, case.units + 1))
    assert set(graph.edges) == set(dict(net.named_parameters()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_layer_in_a_units_name_writes_it(case):
    graph = graph_of(case)
    for unit, name in enumerate(graph.unit_names, 1):
        layer, _, channel = name.removesuffix("]").rpartition("[")
        assert int(channel) >= 0 and unit in graph.edges[f"{layer}.weight"].write


def test_entries_of_a_linear_layer():
    graph = scale_graph(mlp(2, 3, 2))
    n = [graph.unit_names.index(f"0[{i}]") + 1 for i in range(3)]
    shape = (3, 2)
    assert graph.edges["0.weight"].write.expand(shape).tolist() == [[i, i] for i in n]
    assert not graph.edges["0.weight"].read.any() and not graph.edges["0.bias"].read.any()
    assert graph.edges["0.bias"].write.tolist() == n
    assert graph.edges["2.weight"].read.expand(2, 3).tolist() == [n, n]
    assert not graph.edges["2.weight"].write.any() and not graph.edges["2.bias"].write.any()
    assert graph.edges["0.bias"].constant and graph.edges["2.bias"].constant
    assert not graph.edges["0.weight"].constant


@pytest.mark.parametrize(
    ("name", "private"),
    [
        ("mlp", 0),
        ("batch norm", 5),
        ("batch norm behind leaky relu", 5),
        ("batch norm with eps", 5),
        ("pre-activation", 5),
    ],
)
def test_what_only_batch_norms_read_is_private(name, private):
    """In the pre-activation net that is the stream, too."""
    assert int(graph_of(BY_NAME[name]).private.sum()) == private


def test_one_more_layer_pins_less():
    """What follows a pinned unit is free again."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = scale_graph(net)
    (pin,) = graph.pinned
    assert graph.n_units == 5 and pin.layer == "1" and pin.n_channels == 4
    assert all(name.startswith("2[") for name in graph.unit_names)


def test_a_net_without_free_units():
    for net in (
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.ReLU(),
        nn.Sequential(),
    ):
        graph = scale_graph(net)
        m = sum(p.numel() for p in net.parameters())
        assert (graph.n_units, graph.n_params, graph.dimension, graph.invariant_ratio) == (0, m, m, 0)
        assert str(graph)


def test_modes_and_frozen_parameters_do_not_matter():
    net = BY_NAME["residual with batch norm"].net()
    edges = scale_graph(net).edges
    net.eval().requires_grad_(False)
    again = scale_graph(net).edges
    assert list(edges) == list(again)
    assert all(torch.equal(a, b) for name in edges for a, b in zip(edges[name][:2], again[name][:2]))


def test_a_root_that_cannot_be_traced_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"Branching.*torch\.fx cannot trace.*from_edges"):
        scale_graph(Branching())
    with pytest.raises(ValueError, match="item assignment"):
        scale_graph(written_in_part())
    with pytest.raises(ValueError, match="Net"):
        scale_graph(Net(lambda net, x: net.head(x) if float(x.sum()) > 0 else x, head=nn.Linear(4, 2)))


@pytest.mark.parametrize("not_a_module", [None, 3, torch.ones(2), nn.Linear])
def test_what_is_no_module_is_refused(not_a_module):
    with pytest.raises(TypeError, match="module"):
        scale_graph(not_a_module)


def test_from_edges_is_the_graph_that_is_handed_over():
    class Loop(nn.Module):
        """A net that cannot be traced."""

        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x).relu()
            while x.norm() > 0:
                x = self.second(x).relu()
                break
            return self.head(x)

    net, X = Loop().double(), torch.ones(1, 3, dtype=torch.float64)
    for parameter in net.parameters():
        parameter.data.abs_()
    a, b = torch.arange(1, 5), torch.arange(5, 9)
    edges = {
        "first.weight": (a[:, None], 0),
        "first.bias": (a, 0),
        "second.weight": (b[:, None], a),
        "second.bias": (b.tolist(), [0]),
        "head.weight": (0, b),
    }
    graph = ScaleGraph.from_edges(net, edges)
    assert (graph.n_units, graph.n_params, len(graph.unit_names)) == (8, 46, 8)
    assert not graph.edges["head.bias"].write.any()
    before = net(X)
    with pytest.raises(ValueError, match="trace"):
        rescale(net, torch.rand(8) + 0.5)
    after = rescale(net, torch.rand(8) + 0.5, graph)(X)
    assert_close(after, before, 1e-14)
    with pytest.raises(ValueError, match="shape"):
        rescale(net, torch.ones(7), graph)


def test_from_edges_equals_the_graph_that_is_found():
    case = BY_NAME["two convolutions"]
    found, net = graph_of(case), case.net()
    graph = ScaleGraph.from_edges(net, {name: edges[:2] for name, edges in found.edges.items()})
    factors = torch.linspace(0.5, 2, 7).double()
    other = rescale(case.net(), factors, found)
    for mine, others in zip(rescale(net, factors, graph).parameters(), other.parameters()):
        assert torch.equal(mine, others)


@pytest.mark.parametrize(
    ("edges", "match"),
    [
        ({"9.weight": (1, 0)}, "9.weight"),
        ({"0.weight": ([1, 2], 0)}, "0.weight"),
        ({"0.weight": (torch.arange(5)[:, None] + 0.5, 0)}, "0.weight"),
        ({"0.weight": (-1, 0)}, "0.weight"),
        ({"0.bias": (torch.zeros(5, 5, dtype=torch.long), 0)}, "0.bias"),
    ],
)
def test_edges_that_cannot_be_are_refused(edges, match):
    with pytest.raises(ValueError, match=match):
        ScaleGraph.from_edges(mlp(4, 5, 3), edges)


def test_a_copy_of_a_net_has_a_graph_of_its_own():
    net = mlp(3, 4, 2)
    twin = copy.deepcopy(net)
    assert scale_graph(twin).module is twin


def test_a_compiled_or_parallel_net_is_looked_into():
    net = mlp(3, 4, 2)
    for wrapper in (torch.compile(net, backend="eager"), nn.DataParallel(net)):
        graph = scale_graph(wrapper)
        assert graph.module is net and graph.n_units == 4


@pytest.mark.parametrize("by", ["wrapper", "method"])
def test_compiled_parts_are_looked_into(by):
    net = nn.Sequential(mlp(3, 4, 5), nn.ReLU(), nn.Linear(5, 2))
    if by == "wrapper":
        net[0] = torch.compile(net[0], backend="eager")
    else:
        net[0].compile(backend="eager")
    compiled = net[0]._compiled_call_impl
    graph = scale_graph(net)
    assert graph.n_units == 9 and not graph.pinned
    assert net[0]._compiled_call_impl is compiled


class TokensCut(nn.Module):
    """Tokens lose some of their number, and then some of their features; or a matrix all of its columns so."""

    def __init__(self, cut):
        super().__init__()
        self.first, self.second, self._cut = nn.Linear(3, 8), nn.Linear(4, 2), cut

    def forward(self, x):
        return self.second(self._cut(self.first(x).relu()))


@pytest.mark.parametrize(
    ("cut", "n_units"),
    [
        (lambda h: h[:, 1:].chunk(2, -1)[0], 0),
        (lambda h: h[:, 2:].split(4, dim=-1)[0], 0),
        (lambda h: h[:, 1:].split([4, 3], -1)[0], 8),  # which eight features of a token are not
    ],
)
def test_features_cut_behind_tokens(cut, n_units):
    graph = scale_graph(TokensCut(cut))
    assert graph.n_units == n_units and bool(graph.pinned) == (n_units == 0)


class Normalised(nn.Module):
    """A batch norm, whose running statistics something else reads as well."""

    def __init__(self, other):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-38), nn.Linear(4, 4)
        self.again, self.last, self._other = nn.BatchNorm1d(4, eps=1e-38), nn.Linear(4, 2), other

    def forward(self, x):
        h = self.again(self.second(self.norm(self.first(x)).relu())).relu()
        more = F.batch_norm(x.tile(1, 2)[:, :4], self.norm.running_mean, self.norm.running_var) if self._other else 0
        return torch.cat([self.last(h), more], 1) if self._other else self.last(h)


class Centre(nn.Module):
    """It subtracts what it shares with a batch norm."""

    def __init__(self, mean, as_buffer):
        super().__init__()
        if as_buffer:
            self.register_buffer("mean", mean)
        else:
            self.mean = mean

    def forward(self, x):
        return x - self.mean


@pytest.mark.parametrize("as_buffer", [False, True])
def test_running_statistics_under_another_name_pin(as_buffer):
    net = nn.Sequential(nn.Identity(), nn.Linear(3, 3), nn.BatchNorm1d(3, eps=1e-38), nn.ReLU(), nn.Linear(3, 2))
    net = net.double().eval()
    net[2].running_mean.uniform_(1, 2)
    net[0] = Centre(net[2].running_mean, as_buffer)
    graph, X = scale_graph(net), torch.randn(5, 3, dtype=torch.float64)
    expected = net(X)
    assert graph.n_units == 3 and any("mean" in pin.layer for pin in graph.pinned)
    assert_close(rescale(net, [0.5, 2, 3], graph)(X), expected)


def test_hooks_of_a_compiled_part_pin():
    net = nn.Sequential(mlp(3, 4, 5), nn.ReLU(), nn.Linear(5, 2))
    net[0] = torch.compile(net[0], backend="eager")
    net[0].register_forward_hook(lambda layer, args, output: output + 1)
    graph = scale_graph(net)
    assert graph.n_units == 0 and graph.pinned


def test_sequences_that_were_flattened_are_not_split():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.u, self.v = nn.Linear(3, 9), nn.Linear(3, 9), nn.Linear(4, 2), nn.Linear(5, 2)

        def forward(self, x):
            h, g = self.a(x).relu(), self.b(x).relu()
            first, second = torch.cat([h[:, 1:], g[:, :1]], 1).flatten(1).split([4, 5], -1)
            return self.u(first) + self.v(second)

    graph = scale_graph(Joined())
    assert graph.n_units == 0 and graph.pinned


@pytest.mark.parametrize(("other", "n_units"), [(True, 12), (False, 8)])
def test_running_statistics_that_something_else_reads_pin(other, n_units):
    """Filters in front keep their scales; the units behind the batch norms do not have to."""
    net, X = Normalised(other).double().eval(), torch.randn(5, 3, dtype=torch.float64)
    net.norm.running_mean.uniform_(1, 2)
    if not other:
        net.again.running_mean, net.again.running_var = net.norm.running_mean, net.norm.running_var
    graph, expected = scale_graph(net), net(X)
    assert graph.n_units == n_units and any("norm.running_mean" in (*pin,)[0] + pin.reason for pin in graph.pinned)
    assert_close(rescale(net, torch.linspace(0.5, 2, n_units), graph)(X), expected)


def test_pooled_to_one_position_channels_are_columns():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.pool, self.b = nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(72, 4)
            self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            left, right = (self.pool(self.a(x).relu()).flatten(1) + self.b(x.flatten(1)).relu()).chunk(2, 1)
            return self.left(left) + self.right(right)

    net, X = Pooled().double(), torch.randn(5, 2, 6, 6, dtype=torch.float64)
    graph, expected = scale_graph(net), net(X)
    assert graph.n_units == 4
    assert_close(rescale(net, [0.5, 2, 3, 4], graph)(X), expected)


def test_hooks_pin():
    net = mlp(3, 4, 4, 2)
    net[2].register_forward_hook(lambda layer, args, output: output + 1)
    graph = scale_graph(net)
    assert graph.n_units == 0 and "hook" in graph.pinned[0].reason


def test_a_pruned_layer_pins():
    net = mlp(3, 4, 2)
    nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    (pin,) = scale_graph(net).pinned
    assert pin.layer == "0" and "hook" in pin.reason


@pytest.mark.parametrize("outputs", [lambda h, z: (h, z), lambda h, z: [z, h], lambda h, z: {"hidden": h, "z": z}])
def test_hidden_units_that_are_returned_are_reported(outputs):
    net = Net(lambda net, x: outputs(h := net.a(x).relu(), net.b(h)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    graph = scale_graph(net)
    (pin,) = graph.pinned
    assert graph.n_units == 0 and pin.layer == "output" and "'a'" in pin.reason and pin.n_channels == 4


def test_outputs_that_nothing_reads_are_no_news():
    net = Net(lambda net, x: (z := net.b(net.a(x).relu()), z.relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert scale_graph(net).n_units == 4 and not scale_graph(net).pinned


def test_what_has_no_units_of_its_own_is_no_news():
    """Operations on the input pin nothing."""
    net = nn.Sequential(nn.Sigmoid(), nn.Softmax(1), nn.LayerNorm(3, elementwise_affine=False), mlp(3, 4, 2))
    assert scale_graph(net).n_units == 4 and not scale_graph(net).pinned


def test_a_reason_without_channels_is_printed_without_a_number():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    assert str(scale_graph(net)).endswith("\npinned by 0: its weight is computed from other parameters")


def test_a_layer_that_is_called_output_is_reported():
    net = Net(lambda net, x: net.head(net.output(net.a(x))), a=nn.Linear(3, 4), output=nn.Tanh(), head=nn.Linear(4, 2))
    (pin,) = scale_graph(net).pinned
    assert pin.layer == "output" and "Tanh" in pin.reason
