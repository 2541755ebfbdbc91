"""The path norm against an enumeration of all paths, each net's drawn by hand."""

import math
from itertools import product

import pytest
import torch
from asserts import random_state_untouched, untouched
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import Block, Net, mlp
from pathspace.twins import graph_of, twin
from torch import nn

from sklearn_gradspace.pathspace import path_norm

invariant = [
    "deep mlp", "bottleneck", "prelu of a slope a unit", "conv3d", "groups", "depthwise separable",
    "transposed with groups", "average-pool", "flattened by a view", "mean over positions", "zero padding",
    "bilinear upsampling", "batch norm", "read by two batch norms", "residual, two blocks", "residual, subtracted",
    "residual with batch norm, projected", "pre-activation, two blocks", "inverted residual", "dense block",
    "joined with the input", "parallel branches", "u-net", "chunks", "split by sizes", "slices", "times a constant",
    "tokens", "joined along positions",
]  # fmt: skip


@pytest.mark.parametrize("name", invariant)
def test_twins_have_the_same(name):
    case = BY_NAME[name]
    net = case.net()
    with untouched(net), random_state_untouched():
        norm = path_norm(net)
    assert isinstance(norm, float) and 0 < norm < math.inf
    assert path_norm(twin(case)) == pytest.approx(norm, rel=1e-10)


def brute_force(edges, inputs, outputs):
    """Return the root of the sum, over all paths, of the squared product of the weights along it.

    Each edge is (from, to, weight); paths are followed one by one.
    """

    def paths(node, value):
        ends = [value] if node in outputs else []
        return ends + [end for start, to, weight in edges if start == node for end in paths(to, value * weight)]

    return math.sqrt(sum(value**2 for node in inputs for value in paths(node, 1.0)))


def layer(name, before, after, module):
    """Return the edges of a layer between nodes (before, i) and (after, j), a tap each, and of its bias."""
    rows = module.weight.reshape(*module.weight.shape[:2], -1).tolist()
    edges = [((before, i), (after, j), tap) for j, row in enumerate(rows) for i, taps in enumerate(row) for tap in taps]
    return edges if module.bias is None else edges + bias_of(name, after, module)


def bias_of(name, after, module):
    return [((name, "1"), (after, j), bias) for j, bias in enumerate(module.bias.tolist())]


def nodes(name, n):
    return [(name, i) for i in range(n)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU])
def test_mlp(bias, activation):
    net = mlp(2, 3, 2, 3, 2, bias=bias, activation=activation).double()
    edges = [e for k in range(4) for e in layer(str(k), f"h{k}", f"h{k + 1}", net[2 * k])]
    inputs = nodes("h0", 2) + [(str(k), "1") for k in range(4)]
    assert path_norm(net) == pytest.approx(brute_force(edges, inputs, nodes("h4", 2)), rel=1e-13)


def test_convolutions():
    """Paths go through channels, once for each tap, and through each column of a channel."""
    first, second, head = nn.Conv2d(2, 2, 2), nn.Conv2d(2, 2, 2), nn.Linear(8, 2)
    net = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2, 1, 1), second, nn.ReLU(), nn.Flatten(), head).double()
    edges = layer("a", "x", "y", first) + layer("b", "y", "z", second) + bias_of("c", "o", head)
    columns = head.weight.tolist()
    edges += [(("z", i // 4), ("o", k), columns[k][i]) for k, i in product(range(2), range(8))]
    inputs = [*nodes("x", 2), ("a", "1"), ("b", "1"), ("c", "1")]
    assert path_norm(net) == pytest.approx(brute_force(edges, inputs, nodes("o", 2)), rel=1e-13)


def test_depthwise_convolution():
    net = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(), nn.Conv1d(2, 2, 2, groups=2, bias=False)).double()
    edges = layer("a", "x", "y", net[0])
    edges += [(("y", i), ("z", i), tap) for i in range(2) for tap in net[2].weight[i, 0].tolist()]
    inputs = [*nodes("x", 2), ("a", "1")]
    assert path_norm(net) == pytest.approx(brute_force(edges, inputs, nodes("z", 2)), rel=1e-13)


@pytest.mark.parametrize("projected", [False, True])
def test_residual(projected):
    """The shortcut is an edge of weight 1, or a layer."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Block(2, 3, 2 if projected else None), nn.Linear(2, 2)).double()
    block = net[2]
    edges = layer("a", "x", "h", net[0]) + layer("b", "h", "m", block.first) + layer("c", "m", "s", block.second)
    edges += layer("d", "h", "s", block.shortcut) if projected else [(("h", i), ("s", i), 1.0) for i in range(2)]
    edges += layer("e", "s", "o", net[3])
    inputs = nodes("x", 2) + [(name, "1") for name in "abce"]
    assert path_norm(net) == pytest.approx(brute_force(edges, inputs, nodes("o", 2)), rel=1e-13)


@pytest.mark.parametrize("input_first", [False, True])
def test_residual_on_the_input(input_first):
    def forward(net, x):
        y = net.first(x).relu()
        return net.head(x + y if input_first else y + x)

    net = Net(forward, first=nn.Linear(3, 3), head=nn.Linear(3, 2)).double()
    edges = layer("a", "x", "s", net.first) + [(("x", i), ("s", i), 1.0) for i in range(3)]
    edges += layer("b", "s", "o", net.head)
    inputs = nodes("x", 3) + [(name, "1") for name in "ab"]
    assert path_norm(net) == pytest.approx(brute_force(edges, inputs, nodes("o", 2)), rel=1e-13)


def test_constants_count():
    net = mlp(2, 3, 2).double()
    halved = BY_NAME["times a constant"].build().double()
    plain = nn.Sequential(halved.first, nn.ReLU(), halved.second, nn.ReLU(), halved.head)
    scaled = nn.Sequential(halved.first, nn.ReLU(), nn.Linear(4, 3).double(), nn.ReLU(), halved.head)
    with torch.no_grad():
        scaled[2].weight.copy_(0.75 * halved.second.weight)
        scaled[2].bias.copy_(halved.second.bias)
    assert path_norm(halved) == pytest.approx(path_norm(scaled), rel=1e-14)
    assert path_norm(plain) != path_norm(scaled) and path_norm(net) > 0


def test_behind_a_batch_norm_paths_start_anew():
    net = BY_NAME["batch norm"].net()
    norm, head = net[1], net[3]
    squares = (head.weight**2 * (norm.weight**2 + norm.bias**2)).sum() + (head.bias**2).sum()
    assert path_norm(net) == pytest.approx(squares.sqrt().item(), rel=1e-14)


@pytest.mark.parametrize("name", ["sigmoid", "product of two branches", "attention", "plus a constant"])
def test_what_paths_do_not_go_through_is_refused(name):
    case = next(case for case in CASES if case.name == name)
    where = graph_of(case).pinned[0].layer.split(" ")[0]
    with pytest.raises(ValueError, match=f"path_norm.*{where}"):
        path_norm(case.net())


def test_single_precision_and_device(device):
    case = BY_NAME["two convolutions"]
    expected = path_norm(case.net())
    assert path_norm(case.net(torch.float32).to(device)) == pytest.approx(expected, rel=1e-5)


def test_operations_in_place():
    def over(net, x):
        h = net.a(x)
        h.mul_(2.0)
        h.relu_()
        h.add_(h)
        h *= 0.5
        return net.b(h)

    def new(net, x):
        h = (net.a(x) * 2.0).relu()
        return net.b((h + h) * 0.5)

    layers = {"a": nn.Linear(2, 3), "b": nn.Linear(3, 1)}
    assert path_norm(Net(over, **layers)) == pytest.approx(path_norm(Net(new, **layers)), rel=1e-12)


def test_a_batch_norm_without_bias():
    net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    assert path_norm(net) == pytest.approx(abs(net[3].weight.item()))
