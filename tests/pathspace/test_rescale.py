"""Rescaling leaves the function as it is, in training and in evaluation mode."""

import copy
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from asserts import assert_close, random_state_untouched, untouched
from pathspace.cases import BY_NAME, CASES
from pathspace.nets import Net, mlp
from pathspace.twins import graph_of, random_factors, with_modes
from torch import nn

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import ScaleGraph, _graph, balance, basis_path_norm, path_values, rescale, scale_graph


@pytest.mark.parametrize(("case", "training"), with_modes(CASES))
def test_outputs_stay(case, training):
    net, X = case.net().train(training), case.X(12)
    expected = copy.deepcopy(net)(X)
    graph = graph_of(case)
    factors = torch.where(graph.approximate, 1, random_factors(graph))
    with random_state_untouched():
        assert rescale(net, factors, graph) is net
    assert_close(net(X), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_factors_multiply_what_writes_and_divide_what_reads(case):
    net = case.net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    graph = graph_of(case)
    c = torch.cat([torch.ones(1), random_factors(graph)])
    rescale(net, c[1:], graph)
    for name, parameter in net.named_parameters():
        write, read = graph.edges[name][:2]
        assert_close(parameter, before[name] * (c[write] / c[read]), 1e-15)


@pytest.mark.parametrize("case", [case for case in CASES if case.approximate], ids=lambda case: case.name)
def test_in_front_of_a_batch_norm_with_eps_outputs_stay_but_for_eps(case):
    net, X = case.net(), case.X(12)
    graph = scale_graph(net)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = 1e-9
    expected = copy.deepcopy(net)(X)
    rescale(net, torch.where(graph.approximate, random_factors(graph), 1))
    error = (net(X) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 1e-5


def test_factors_multiply():
    case = BY_NAME["residual with batch norm, projected"]
    once, twice = case.net(), case.net()
    graph = scale_graph(once)
    a, b = random_factors(graph), random_factors(graph, seed=1)
    rescale(once, a * b)
    rescale(rescale(twice, a), b)
    for one, two in zip(once.parameters(), twice.parameters()):
        assert_close(one, two, 1e-14)
    for one, two in zip(once.buffers(), twice.buffers()):
        assert_close(one, two, 1e-14)
    rescale(once, 1 / (a * b))
    for one, original in zip(once.state_dict().values(), case.net().state_dict().values()):
        assert_close(one, original, 1e-14)


@pytest.mark.parametrize("kind", [list, tuple, torch.Tensor.numpy, torch.Tensor.float, lambda f: f.requires_grad_()])
def test_any_array_like(kind):
    net, X = BY_NAME["mlp"].net(), BY_NAME["mlp"].X(3)
    expected = net(X)
    rescale(net, kind(torch.tensor([0.5, 1, 2, 4, 3], dtype=torch.float64)))
    assert_close(net(X), expected)
    assert all(p.requires_grad and p.grad_fn is None for p in net.parameters())


def test_memory_and_gradients_stay(device):
    net = mlp(3, 4, 2).to(device)
    net(torch.ones(2, 3, device=device)).sum().backward()
    before = [(p.data_ptr(), p.grad.clone(), p.dtype, p.device) for p in net.parameters()]
    rescale(net, [2.0, 3.0, 4.0, 5.0])
    for parameter, (pointer, grad, dtype, where) in zip(net.parameters(), before):
        assert (parameter.data_ptr(), parameter.dtype, parameter.device) == (pointer, dtype, where)
        assert torch.equal(parameter.grad, grad)


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        ([1, 1, 0, 1], r"positive.*0\[2\]"),
        ([1, -2, 1, 1], r"positive.*0\[1\]"),
        ([1, 1, 1, float("nan")], r"finite.*0\[3\]"),
        ([float("inf"), 1, 1, 1], r"finite.*0\[0\]"),
        ([1, 1, 1], r"factors.*\(4,\).*\(3,\)"),
        (2.0, r"factors.*\(4,\)"),
        ([[1, 1, 1, 1]], r"factors.*\(4,\)"),
    ],
)
def test_bad_factors_are_refused_and_nothing_changes(factors, match):
    net = mlp(3, 4, 2)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=match):
        rescale(net, factors)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("other", [mlp(3, 5, 2), mlp(3, 4, 2, bias=False), nn.Sequential(nn.Linear(3, 4))])
def test_a_graph_of_another_module_is_refused(other):
    with pytest.raises(ValueError, match=r"graph.*module"):
        rescale(mlp(3, 4, 2), [1.0] * 4, scale_graph(other))
    with pytest.raises(TypeError, match="graph"):
        rescale(mlp(3, 4, 2), [1.0] * 4, {"0.weight": (1, 0)})


def test_a_graph_serves_a_copy_as_well():
    net = mlp(3, 4, 2).double()
    graph, twin, X = scale_graph(net), copy.deepcopy(net), torch.randn(3, 3, dtype=torch.float64)
    rescale(twin, [2.0, 3.0, 4.0, 5.0], graph)
    assert_close(twin(X), net(X), 1e-14)
    assert not torch.equal(twin[0].weight, net[0].weight)


def by_hand(function):
    return Net(function, first=nn.Linear(3, 4), head=nn.Linear(4, 2))


OTHERS = {
    "another layer": (mlp(3, 4, 2), mlp(3, 4, 2, activation=nn.Tanh)),
    "another option": tuple(mlp(3, 4, 2, activation=lambda s=s: nn.LeakyReLU(s)) for s in (0.1, -0.1)),
    "one more layer": (mlp(3, 4, 2), nn.Sequential(*mlp(3, 4, 2), nn.ReLU())),
    "one layer less": (nn.Sequential(*mlp(3, 4, 2), nn.ReLU()), mlp(3, 4, 2)),
    "another function": tuple(by_hand(lambda net, x, f=f: net.head(f(net.first(x)))) for f in (F.relu, torch.tanh)),
    "another method": tuple(by_hand(lambda net, x, f=f: getattr(net.head(net.first(x)), f)()) for f in ("relu", "exp")),
    "another order": (
        by_hand(lambda net, x: net.head(net.first(x).relu())),
        by_hand(lambda net, x: net.head(net.first(x.relu()))),
    ),
    "another number": tuple(by_hand(lambda net, x, c=c: net.head(net.first(x) + c)) for c in (0, 1)),
    "something else that is returned": (
        by_hand(lambda net, x: net.head(net.first(x).relu())),
        by_hand(lambda net, x: (h := net.first(x).relu(), net.head(h))),
    ),
}


@pytest.mark.parametrize(("net", "other"), OTHERS.values(), ids=OTHERS)
def test_a_graph_of_a_net_that_does_something_else_is_refused_and_nothing_changes(net, other):
    before = copy.deepcopy(other.state_dict())
    graph = scale_graph(net)
    for work in (partial(rescale, factors=[2.0] * graph.n_units), balance, path_values, basis_path_norm):
        with pytest.raises(ValueError, match=r"^graph is of a module that does something else .*scale_graph\(module\)"):
            work(other, graph=graph)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_the_error_says_what_differs():
    message = r"'1 is [\w.]*ReLU\(inplace=False\)' is expected, and there is '1 is [\w.]*Tanh\(\)'\. Make"
    with pytest.raises(ValueError, match=message):
        rescale(mlp(3, 4, 2, activation=nn.Tanh), [1.0] * 4, scale_graph(mlp(3, 4, 2)))


def test_a_graph_serves_nets_of_other_modes_and_constants_and_dtypes():
    def build(shift):
        def forward(net, x):
            return net.head(F.dropout(net.first(x - torch.tensor(shift)).relu(), 0.5, net.training))

        return by_hand(forward)

    graph = scale_graph(build([0.1, 0.2, 0.3]))
    other = build([1.0, 2.0, 3.0]).double().eval()
    X = torch.randn(3, 3, dtype=torch.float64)
    before = other(X)
    assert_close(rescale(other, [2.0, 3.0, 4.0, 5.0], graph)(X), before, 1e-14)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_graph_serves_another_net_of_the_same_code(case):
    """Also after it was pickled: it holds no addresses."""
    operations = pickle.loads(pickle.dumps(graph_of(case).operations))
    assert operations == scale_graph(case.net()).operations
    assert not any(" at 0x" in line for line in operations)


def test_operations_are_the_same_in_another_process():
    code = (
        "import torch; from torch import nn; from sklearn_gradspace.pathspace import scale_graph; "
        "print(*scale_graph(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).operations, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.splitlines()) == scale_graph(mlp(3, 4, 2)).operations


def test_a_graph_that_was_handed_over_is_compared_by_names_and_shapes():
    net, other = mlp(3, 4, 2), mlp(3, 4, 2, activation=nn.LeakyReLU)
    graph = ScaleGraph.from_edges(net, {name: edges[:2] for name, edges in scale_graph(net).edges.items()})
    assert graph.operations is None
    assert rescale(other, [2.0] * 4, graph) is other
    with pytest.raises(ValueError, match="another module"):
        rescale(mlp(3, 4, 3), [2.0] * 4, graph)


def test_a_net_is_traced_once(monkeypatch):
    net = mlp(3, 4, 2)
    graph = scale_graph(net)
    monkeypatch.delattr(_graph, "trace")
    rescale(net, [2.0] * 4, graph)
    balance(net, graph)
    ECOptimizer(graph, lr=0.1)
    assert graph.without(torch.tensor([True, False, False, False])).operations == graph.operations


def test_factors_that_weights_cannot_hold():
    net = mlp(4, 5, 3)
    with untouched(net), pytest.raises(ValueError, match=r"'0\.weight' larger than torch.float32"):
        rescale(net, [1e39] * 5)


def test_small_factors_in_front_of_a_batch_norm_are_told():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.warns(UserWarning, match=r"2 units in front of a batch norm, such as '0\[0\]'") as warned:
        rescale(net, [0.01, 0.02, 0.5, 1, 2, 3])
    assert warned[0].filename == __file__
