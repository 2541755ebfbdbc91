"""The engine equals a loop of backward passes, keeps the laws of the cross-entropy and leaves the net alone."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from unittest.mock import Mock

import numpy as np
import pytest
import reference
import torch
from asserts import (
    assert_close,
    assert_rank_below_labels,
    assert_same_in_any_batch,
    assert_sums_to_zero,
    random_state_untouched,
    untouched,
)
from cases import BY_NAME, CASES
from nets import Doubled, OnDemand
from resnet import ResNet18
from torch import nn

from sklearn_gradspace.gradients import GradientEngine, NotFiniteError, _engine, _trial, check_gradients

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_classifier = pytest.mark.parametrize(
    "case", [case for case in CASES if case.scalar == "cross_entropy"], ids=lambda case: case.name
)


@cache
def truth(case):
    return reference.gradients(case.net(), case.X, **case.options)


def test_there_are_many_architectures():
    assert len(BY_NAME) == len(CASES) >= 135


@every_case
def test_all_labels_equal_the_loop(case, device):
    assert_close(case.engine(device)(case.X), truth(case))


@every_case
def test_one_backward_pass_for_all_labels_equals_the_loop(case, device, monkeypatch):
    monkeypatch.setattr(_trial, "_FEW_LABELS", 1)
    engine = case.engine(device)
    assert bool(engine.together_bytes) is (engine.n_labels > 1 and "distances" not in case.name)
    assert_close(engine(case.X), truth(case))


@pytest.mark.parametrize("bytes_at_once, expected", [(1, 1), (2.5, 2), (5.5, 5), (12, 12), (100, 100)])
def test_as_many_labels_go_back_together_as_memory_allows(bytes_at_once, expected, device, monkeypatch):
    case = BY_NAME["many classes"]
    engine = case.engine(device)
    for name in ("_SCRATCH_BYTES", "_PART_BYTES_ELSEWHERE"):
        monkeypatch.setattr(_engine, name, int(bytes_at_once * case.n * engine.together_bytes))
    passes = Mock(side_effect=_engine.forward_pass)
    monkeypatch.setattr(_engine, "forward_pass", passes)
    assert_close(engine(case.X), truth(case))
    assert passes.call_args.kwargs["scalars_a_pass"] == expected


def test_rows_that_are_not_finite_are_named_after_one_pass(monkeypatch, device):
    net = nn.Linear(4, 6)
    X = np.ones((3, 4), np.float32)
    engine = GradientEngine(net, X, device=device)
    monkeypatch.setattr(_engine, "forward_pass", Mock(side_effect=_engine.forward_pass))
    X[1] = np.nan
    with pytest.raises(NotFiniteError, match=r"rows \[1\]"):
        engine(X)
    assert _engine.forward_pass.call_count == 1


def test_no_rows_of_a_net_that_sorts_them_have_no_gradients(device):
    case = BY_NAME["rows sorted"]
    engine = case.engine(device)
    assert engine(case.X[:0]).shape == (0, engine.n_labels, engine.n_params)
    engine.forward(case.X[:0])


@pytest.mark.parametrize("batch_size", [0, -1, "auto", 1.5])
def test_a_batch_size_is_a_number_of_rows(batch_size):
    engine = GradientEngine(nn.Linear(4, 6), np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=f"batch_size={batch_size!r} is no positive number of rows."):
        engine(np.ones((2, 4), np.float32), batch_size=batch_size)


@pytest.mark.parametrize("everywhere", [True, False])
def test_steps_that_go_back_for_one_label_at_a_time(everywhere, device):
    net = nn.Sequential(nn.Linear(4, 5), Doubled(everywhere), nn.Linear(5, 6)).double()
    X = np.random.default_rng(0).normal(size=(5, 4))
    engine = GradientEngine(net, X, layers="all", device=device)
    assert (engine.together_bytes == 0) is everywhere
    X[1] += 10  # where each of them is doubled
    assert_close(engine(X), reference.gradients(net, X))
    assert engine.together_bytes == 0


def test_memory_that_runs_out_in_a_pass_for_all_labels_is_no_such_step(monkeypatch):
    engine = GradientEngine(nn.Linear(4, 6), np.ones((2, 4), np.float32))
    monkeypatch.setattr(_engine, "forward_pass", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        engine.forward(np.ones((2, 4), np.float32))
    assert _engine.forward_pass.call_count == 1


@every_case
def test_one_label_equals_the_loop(case, device):
    engine = case.engine(device)
    labels = np.arange(case.n)[::-1] % engine.n_labels
    assert_close(engine(case.X, torch.tensor(labels.copy())), truth(case)[np.arange(case.n), labels])


@every_case
def test_single_precision_is_near_the_truth(case, device):
    engine = case.engine(device, net=case.net().float())
    double = reference.gradients(
        case.net().float().double(), case.X_of(np.float32).astype(case.X.dtype), **case.options
    )
    for X in (case.X, case.X_of(np.float32)):
        gradients = engine(X)
        assert gradients.dtype == torch.float32
        assert_close(gradients, double, 1e-5)


@every_case
def test_batches_do_not_show(case, device):
    engine = case.engine(device)
    assert_same_in_any_batch(engine, case.X)
    assert_same_in_any_batch(engine.outputs, case.X)


@every_classifier
def test_laws_of_the_cross_entropy(case, device):
    engine = case.engine(device)
    gradients, outputs = engine(case.X), engine.outputs(case.X)
    logits = outputs if outputs.shape[1] > 1 else torch.cat([torch.zeros_like(outputs), outputs], 1)
    assert_close(logits.softmax(1), reference.probabilities(case.net(), case.X, case.output))
    assert_sums_to_zero(gradients, logits.softmax(1))
    assert_rank_below_labels(gradients)


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_net_data_and_random_state_stay_as_they_were(case, training, device):
    net, X = case.net().train(training), case.X
    for parameter in list(net.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    with untouched(net), random_state_untouched():
        case.engine(device, net=net)(X)
    np.testing.assert_array_equal(X, case.X)


@every_case
def test_training_in_place_is_seen(case, device):
    if case.name == "plain tensor" and device.type != "cpu":
        pytest.skip("Module.to leaves plain tensors where they are")
    net = case.net().to(device)
    engine = case.engine(net=net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.25)
    assert_close(engine(case.X), reference.gradients(net.cpu(), case.X, **case.options))


def test_resnet18_equals_the_loop(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResNet18(10).double()
    X = np.random.default_rng(0).normal(size=(2, 3, 32, 32))
    layers = [
        "conv1.*",
        "bn1.*",
        "layer1.1.*",
        "layer2.0.downsample.*",
        "layer4.0.downsample.*",
        "layer4.1.bn*",
        "fc.*",
    ]
    engine = GradientEngine(net, X, layers=layers, device=device)
    assert {rule.rule for rule in engine.rules} == {"closed_form"}
    found = engine(X)
    chosen = {block.name for block in engine.blocks}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)
    assert_close(found, reference.gradients(net, X))


@pytest.mark.parametrize("decisive", [-1, 1], ids=["not called", "called"])
def test_rows_that_go_another_way_than_those_that_decided(decisive, device):
    net = OnDemand().double()
    X = np.random.default_rng(0).normal(size=(8, 6))
    engine = GradientEngine(net, X[X[:, 0] * decisive > 0], "all", device)
    assert_close(engine(X), reference.gradients(net, X))
    assert_same_in_any_batch(engine, X)


def test_rows_may_come_in_the_order_in_which_the_net_sorts_them(device):
    case = BY_NAME["rows sorted"]
    X = case.X[np.linalg.norm(case.X, axis=1).argsort()]
    engine = GradientEngine(case.net(), X, "all", device)
    assert_close(engine(X[::-1]), reference.gradients(case.net(), X[::-1].copy()))


class SortedByLength(nn.Module):
    """Rows in the order of their lengths, as a packed sequence wants them, and back."""

    def __init__(self):
        super().__init__()
        self.hidden, self.output = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        order = (x != 0).sum(1).argsort(descending=True, stable=True)
        return self.output(self.hidden(x[order]).tanh()[order.argsort()])


class Experts(nn.Module):
    """Two layers, each of which gets the rows that a gate sends to it first, and then those that come second."""

    def __init__(self):
        super().__init__()
        self.gate, self.output = nn.Linear(6, 2), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(1).topk(2)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            place, rows = torch.where((chosen == number).T)
            mixed = mixed.index_add(0, rows, expert(x[rows]) * weights[rows, place, None])
        return self.output(mixed.tanh())


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("make", [SortedByLength, Experts])
def test_rows_that_a_layer_gets_in_another_order_than_those_that_decided(make, dtype, device):
    torch.manual_seed(0)
    net = make().double()
    X = np.random.default_rng(0).normal(size=(70, 6))
    gate = net.gate(torch.from_numpy(X)).argmax(1).numpy() if make is Experts else np.arange(70) % 9 == 0
    if make is SortedByLength:
        X[gate == 1, 2:] = 0
    engine = GradientEngine(net, X[gate == 0], "all", device, dtype=dtype)
    assert {rule.rule for rule in engine.rules} == {"closed_form"}
    expected = reference.gradients(net, X)
    assert_close(engine(X), expected, {"float64": 1e-10, "float32": 1e-5, "bfloat16": 0.05}[dtype])
    if dtype == "float64":
        assert_same_in_any_batch(engine, X)


@pytest.mark.parametrize("name", ["transformer", "conv2d twice"])
def test_autocast_around_it_changes_nothing(name, device):
    case = BY_NAME[name]
    engine = case.engine(device, net=case.net().float())
    expected = engine(case.X)
    with torch.autocast(engine.device.type, dtype=torch.bfloat16):
        assert torch.equal(engine(case.X), expected)
        assert torch.equal(case.engine(device, net=case.net().float())(case.X), expected)


def test_engines_of_older_files_work(device):
    case = BY_NAME["conv2d"]
    engine, older = case.engine(device), GradientEngine.__new__(GradientEngine)
    news = ("n_axes", "uses", "transform_bytes", "together_bytes")
    older.__setstate__(
        {key: value for key, value in engine.__getstate__().items() if key not in news} | {"net": engine.net}
    )
    assert_close(older(case.X), engine(case.X))


def test_rows_are_an_array_a_list_or_a_tensor(device):
    case = BY_NAME["conv2d"]
    expected = case.engine(device)(case.X)
    for rows in (case.X.tolist(), torch.from_numpy(case.X).to(device).requires_grad_()):
        assert torch.equal(GradientEngine(case.net(), rows, "all", device)(rows), expected)
        assert check_gradients(case.net(), rows, device=device).ok


def test_what_a_call_cannot_mean_is_refused():
    engine = GradientEngine(nn.Linear(4, 3), np.ones((2, 4)), "all")
    for shape in ((9, 3, 15), (2, 15), (2, 3, 14)):
        with pytest.raises(ValueError, match=r"out has shape .*; the gradients of X have \(2, 3, 15\)"):
            engine(np.ones((2, 4)), out=torch.empty(shape))
    for out in (torch.empty(2, 3, 15, dtype=torch.int32), np.empty((2, 3, 15), np.float32)):
        with pytest.raises(ValueError, match=r"out must be a tensor of torch.float32, of shape \(2, 3, 15\)"):
            engine(np.ones((2, 4)), out=out)
    with pytest.raises(ValueError, match="of an integer type"):
        engine(np.ones((2, 4)), torch.full((2,), 1.7))
    with pytest.raises(ValueError, match=r"2 numbers from 0 to 2, one for each row; of shape \(2, 1\), they are"):
        engine(np.ones((2, 4)), torch.ones(2, 1, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"shape \(4,\), but 2 axes as in `sample` are needed. A single row is X\[:1\]"
    ):
        engine(np.ones(4))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4\), but 2 axes as in `sample` are needed\.$"):
        engine(np.ones((2, 1, 4)))
    for kind in ("object", "complex", "str"):
        with pytest.raises(ValueError, match=f"rows must be real numbers; these are of .*{kind[:3]}|<U"):
            engine(np.ones((2, 4)).astype(kind))
        with pytest.raises(ValueError, match="rows must be real numbers"):
            GradientEngine(nn.Linear(4, 3), np.ones((2, 4)).astype(kind))
    with pytest.raises(ValueError, match="sample has no rows"):
        GradientEngine(nn.Linear(4, 3), np.ones((0, 4)))


@pytest.mark.parametrize("name", ["conv2d twice", "transformer", "tied weights", "lstm", "parameters without axes"])
@pytest.mark.parametrize("part_bytes", [1, 5000, 2**24])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_parts_are_consecutive_and_equal_the_whole(name, part_bytes, batch_size, device, monkeypatch):
    case = BY_NAME[name]
    engine = case.engine(device)
    monkeypatch.setitem(_engine._PART_BYTES, device.type, part_bytes)
    labels = torch.arange(case.n) % engine.n_labels
    for of_rows, k in ((None, engine.n_labels), (labels, 1)):
        passes = []
        given = engine.parts(
            case.X, of_rows, None, batch_size, lambda *args, passes=passes: passes.append((args[0], args[1].clone()))
        )
        parts = [(rows, found.clone()) for rows, found in given]
        assert [i for rows, _ in parts for i in range(rows.start, rows.stop)] == list(range(case.n))
        assert all(len(found) == rows.stop - rows.start for rows, found in parts)
        for (rows, found), (forward, finished) in zip(parts, passes, strict=True):
            assert torch.equal(forward.inputs, engine.inputs(case.X[rows]))
            assert torch.equal(found, finished)
        assert max(len(found) for _, found in parts) <= (batch_size or case.n)
        whole = truth(case) if of_rows is None else truth(case)[np.arange(case.n), labels][:, None]
        assert_close(torch.cat([found for _, found in parts]), whole)
        out = torch.full((case.n, k, engine.n_params + 1), torch.nan, dtype=torch.float64, device=device)
        for rows, found in engine.parts(case.X, of_rows, out[..., 1:], batch_size):
            assert found.data_ptr() == out[rows, :, 1:].data_ptr()
        assert_close(out[..., 1:], whole)
        assert out[..., 0].isnan().all()


def test_the_place_that_is_given_is_written_to(device):
    case = BY_NAME["conv2d twice"]
    engine = case.engine(device)
    labels = torch.arange(case.n) % engine.n_labels
    for given in (None, labels):
        out = engine.allocate(case.n, given is None).fill_(torch.nan)
        assert engine(case.X, given, out) is out
        assert_close(out, engine(case.X, given), 0)


def test_parts_in_inference_mode_do_not_show_later(device):
    case = BY_NAME["conv2d twice"]
    engine = case.engine(device)
    for mode in (torch.inference_mode, torch.enable_grad):
        with mode():
            assert_close(torch.cat([found.clone() for _, found in engine.parts(case.X)]), truth(case))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 0, 3], [0, 0, -1, 0, 0]], ids=str)
def test_labels_that_are_none(labels, device):
    case = BY_NAME["mlp of two layers"]
    with pytest.raises(ValueError, match="labels must be 5 numbers from 0 to 2"):
        case.engine(device)(case.X, torch.tensor(labels))


def test_no_rows_have_no_gradients(device):
    case = BY_NAME["mlp of two layers"]
    engine = case.engine(device)
    assert engine(case.X[:0]).shape == (0, 3, engine.n_params)
    assert list(engine.parts(case.X[:0])) == []


@pytest.mark.parametrize("name", ["conv2d twice", "transformer", "called twice"])
def test_results_do_not_change_one_another(name, device):
    case = BY_NAME[name]
    engine = case.engine(device)
    first = engine(case.X)
    before = first.clone()
    engine(case.X + 1)
    assert torch.equal(first, before)


@pytest.mark.parametrize("name", ["conv2d twice", "transformer", "called twice"])
def test_passes_within_a_pass_do_not_show(name, device, monkeypatch):
    case = BY_NAME[name]
    engine = case.engine(device)
    expected = engine(case.X)
    monkeypatch.setitem(_engine._PART_BYTES, device.type, 1)
    for rows, found in engine.parts(case.X):
        for inner_rows, inner in engine.parts(case.X[::-1]):
            assert_close(inner, expected.flip(0)[inner_rows], 1e-13)
        assert_close(engine(case.X[::-1]), expected.flip(0), 1e-13)
        assert_close(found, expected[rows], 1e-13)


@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d twice", "called twice", "transformer", "tied weights"])
def test_threads_may_share_an_engine(name, device):
    case = BY_NAME[name]
    engine = case.engine(device)
    rows = [case.X, case.X[::-1].copy()]
    expected = [engine(X) for X in rows]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda i: (i, engine(rows[i % 2])), range(60)))
    finally:
        sys.setswitchinterval(interval)
    for i, gradients in found:
        assert_close(gradients, expected[i % 2], 1e-13)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d", "layer norm", "borrowed weight", "prelu", "lstm"])
def test_grad_modes_of_the_caller_do_not_show(name, mode, device):
    case = BY_NAME[name]
    with mode():
        gradients = case.engine(device)(case.X)
    assert not gradients.requires_grad
    assert_close(gradients.clone(), truth(case))


@pytest.mark.parametrize("margin", [10, 60, 600])
def test_sure_predictions_keep_their_precision(margin, device):
    net = nn.Linear(1, 2, bias=False, dtype=torch.float64, device=device)
    net.weight.data = torch.tensor([[margin], [0.0]], dtype=torch.float64, device=device)
    gradients = GradientEngine(net, np.ones((1, 1)))(np.ones((1, 1)))
    small = np.exp(-margin) / (1 + np.exp(-margin))
    expected = np.array([[[-small, small], [1 - small, small - 1]]])
    np.testing.assert_allclose(gradients.cpu(), expected, rtol=1e-12)


def test_threads_have_modules_of_their_own_on_the_same_weights(device):
    engine = BY_NAME["conv2d"].engine(device)
    with ThreadPoolExecutor(1) as pool:
        mine, theirs = ([engine.module, engine.module], list(pool.map(lambda _: engine.module, range(2))))
    assert mine[0] is mine[1] and theirs[0] is theirs[1]
    for name, layer in mine[0].named_modules():
        assert layer is not theirs[0].get_submodule(name)
    for name, parameter in mine[0].named_parameters():
        assert parameter.data_ptr() == theirs[0].get_parameter(name).data_ptr()


def test_half_precision_gives_single_precision_gradients(device):
    case = BY_NAME["mlp of two layers"]
    net = case.net().bfloat16()
    gradients = case.engine(device, net=net)(case.X)
    assert gradients.dtype == torch.float32
    assert_close(gradients, reference.gradients(net.double(), case.X), 0.05)


@pytest.mark.parametrize("size", [3, 2])
@pytest.mark.parametrize("kind", ["frozen before", "first layer"])
def test_group_norm_whose_input_has_no_gradient(kind, size):
    """torch dies there where channels come last, as the engine has them: not at once, but soon."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 6, 2).requires_grad_(kind == "first layer")
    layers = [convolution, nn.GroupNorm(2, 6)] if kind == "frozen before" else [nn.GroupNorm(2, 6), convolution]
    net = nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(6 * (size - 1) ** 2, 3)).double()
    X = np.random.default_rng(0).normal(size=(4, 6, size, size))
    for _ in range(20):
        found = GradientEngine(net, X, "all")(X)
    assert_close(found, reference.gradients(net, X))


@pytest.mark.parametrize(
    "dtype, exact, expected", [(None, False, "ieee"), ("tf32", False, "tf32"), ("tf32", True, "ieee")]
)
def test_rounding_to_tf32_on_cuda_devices(dtype, exact, expected):
    """torch rounds convolutions and recurrent layers by default; afterwards all is as before."""
    cudnn = torch.backends.cudnn
    switches = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    engine = BY_NAME["mlp of two layers"].engine("cpu", dtype=dtype)
    engine.device = torch.device("cuda")
    with engine.computing(exact):
        assert [switch.fp32_precision for switch in switches] == 3 * [expected]
    assert [switch.fp32_precision for switch in switches] == before
