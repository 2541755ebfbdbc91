"""What a few rows decide: the kind of input, the order of memory, the number of scalars, the error of a precision."""

import numpy as np
import pytest
import reference
import torch
from asserts import assert_close, random_state_untouched, untouched
from cases import BY_NAME
from torch import nn

from sklearn_gradspace.gradients import DTYPES, GradientEngine, _trial

NAMES = [
    "mlp of two layers", "conv2d twice", "layer norm", "batch norm 2d", "transformer", "tied weights", "lstm",
    "embedding", "one logit", "regression", "transposed conv2d every option", "rms norm of steps",
]  # fmt: skip
each = pytest.mark.parametrize("name", NAMES)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_precision_changes_neither_net_nor_rows(name, dtype, device):
    case = BY_NAME[name]
    net, X = case.net().float(), case.X
    with untouched(net), random_state_untouched():
        engine = case.engine(device, net=net, dtype=dtype)
        engine(X)
    np.testing.assert_array_equal(X, case.X)
    expected = {"float64": torch.float64}.get(dtype, torch.float32)
    assert engine.feature_dtype == engine(X).dtype == expected
    assert (engine.rounding_error is None) == (dtype not in ("bfloat16", "tf32"))


@each
def test_double_precision_of_a_single_precision_net_is_exact(name, device):
    case = BY_NAME[name]
    engine = case.engine(device, net=case.net().float(), dtype="float64")
    assert_close(engine(case.X), reference.gradients(case.net().float().double(), case.X, **case.options))


@each
def test_single_precision_of_a_double_precision_net_is_that_of_a_single_precision_net(name, device):
    case = BY_NAME[name]
    expected = case.engine(device, net=case.net().float())(case.X)
    assert_close(case.engine(device, dtype="float32")(case.X), expected, 1e-5)


@each
def test_rounding_error_is_the_real_error(name, device):
    case = BY_NAME[name]
    X, net = case.X[:4], case.net().float()
    engine = GradientEngine(net, X, "all", device, dtype="bfloat16", **case.options)
    labels = np.arange(4) % engine.n_labels
    found = engine(X, torch.tensor(labels)).cpu().numpy()
    truth = reference.gradients(net.double(), X, **case.options)[np.arange(4), labels]
    errors = [
        np.abs(found[:, block.slice] - truth[:, block.slice]).max() / np.abs(truth[:, block.slice]).max()
        for block in engine.blocks
    ]
    assert engine.rounding_error == pytest.approx(max(errors), rel=0.05)
    assert 0 < engine.rounding_error < 0.2


def test_a_precision_that_changes_nothing_makes_no_error():
    case = BY_NAME["mlp of two layers"]
    engine = case.engine("cpu", net=case.net().float(), dtype="tf32")  # which only CUDA devices have
    assert 0 <= engine.rounding_error < 1e-5
    assert torch.equal(engine(case.X), case.engine("cpu", net=case.net().float())(case.X))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.int8, np.uint8, bool])
def test_rows_of_any_kind_are_cast(dtype, device):
    net = BY_NAME["mlp of two layers"].net()
    X = np.random.default_rng(0).integers(0, 2, size=(5, 6)).astype(dtype)
    engine = GradientEngine(net, X, "all", device)
    assert_close(engine(X), reference.gradients(net, X.astype(float)))


def test_rows_in_any_order_of_memory_are_the_same(device):
    case = BY_NAME["conv2d twice"]
    engine = case.engine(device)
    expected = engine(case.X)
    for X in (np.asfortranarray(case.X), case.X[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]):
        assert torch.equal(engine(X), expected)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_indices_stay_whole(dtype, device):
    case = BY_NAME["embedding"]
    X = case.X.astype(dtype)
    engine = GradientEngine(case.net(), X, "all", device)
    assert engine.inputs(X).dtype == torch.int64
    assert_close(engine(X), reference.gradients(case.net(), case.X))


def test_images_are_channels_last_on_the_cpu():
    case = BY_NAME["conv2d twice"]
    engine = case.engine("cpu")
    assert engine.inputs(case.X).is_contiguous(memory_format=torch.channels_last)
    assert engine.inputs(case.X, plain=True).is_contiguous()
    assert engine.inputs(case.X[:1]).stride() == engine.inputs(case.X).stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["viewed as vectors", "strided as vectors", "linear on a grid", "conv3d", "conv1d"])
def test_nets_that_need_the_usual_order_of_memory_get_it(name, dtype):
    case = BY_NAME[name]
    assert case.engine("cpu", net=case.net().float(), dtype=dtype).inputs(case.X).is_contiguous()


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_fewer_rows_may_decide(n_rows, device, monkeypatch):
    case = BY_NAME["conv2d twice"]
    expected = case.engine(device)
    assert GradientEngine(case.net(), case.X[:n_rows], "all", device).rules == expected.rules
    monkeypatch.setattr(_trial, "_MANY", 1)
    assert case.engine(device).rules == expected.rules


def test_the_first_and_the_last_row_decide(device):
    seen = []

    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            seen.append(x.detach().cpu().numpy().copy())
            return self.head(x)

    X = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    GradientEngine(Sees(), X, device=device)
    np.testing.assert_array_equal(seen[0], X[[0, 33, 66, 99]])
    assert max(len(rows) for rows in seen) == 16


class Trimmed(nn.Module):
    """It cuts off the padding that all rows of a batch have, and averages over what is left."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(30, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.words(x[:, : (x != 0).sum(1).max()]).mean(1))


class BySum(nn.Module):
    """Its branch depends on all rows."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x):
        x = x.float()
        return self.one(x) if x.sum() > 1200 else self.other(x)


@pytest.mark.parametrize("net", [Trimmed(), BySum()])
@pytest.mark.parametrize("seed", range(10))
def test_nets_that_mix_some_rows_alone_are_refused(net, seed, device):
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(200) < 0.8, 12, rng.integers(2, 12, 200))
    X = np.where(np.arange(12) < lengths[:, None], rng.integers(1, 30, (200, 12)), 0)
    with pytest.raises(ValueError, match="net mixes the rows of a batch"):
        GradientEngine(net, X, device=device)
