"""Features are selection, scaling and power of the loop's gradients, one after the other."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from asserts import assert_close, assert_same_in_any_batch
from cases import BY_NAME

from sklearn_gradspace.gradients import (
    SCALES,
    GradientArray,
    GradientEngine,
    GradientFeatures,
    ScaleStatistics,
    _engine,
    _features,
    _selection,
)
from sklearn_gradspace.gradients._memory import PeakBytes

NAMES = ["mlp of two layers", "conv2d twice", "layer norm", "tied weights"]


def make_features(case, device, percentile=15, how="minmax", power=0.5):
    features = GradientFeatures(GradientEngine(case.net(), case.X, "all", device), percentile, batch_size=2)
    scaler = None
    if how is not None:
        statistics = ScaleStatistics(how, features.blocks)
        for batch in GradientArray(features, case.X).batches():
            statistics.merge(statistics.of(batch))
        scaler = statistics.scaler(features.engine.feature_dtype)
    return GradientFeatures(features.engine, percentile, scaler, power)


def expected_features(case, X, percentile=15, how="minmax", power=0.5):
    net = case.net()
    sizes = np.array([p.numel() for p in net.parameters() if p.requires_grad])
    train, new = (reference.select(reference.gradients(net, rows), sizes, percentile) for rows in (case.X, X))
    scaled = new if how is None else reference.scale(train, new, how, sizes)
    return scaled if power is None else reference.power_norm(scaled, power)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("percentile", [15, 50, 100])
@pytest.mark.parametrize("how", SCALES)
@pytest.mark.parametrize("power", [None, 1, 0.5])
def test_equal_the_method(name, percentile, how, power, device):
    case = BY_NAME[name]
    features = make_features(case, device, percentile, how, power)
    for X in (case.X, case.X[::-1] + 0.1):
        # The root of a difference that is rounding error in the loop is 1e-8.
        assert_close(features(X), expected_features(case, X, percentile, how, power), 1e-7 if power == 0.5 else 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_one_label_is_a_part_of_all(name, device):
    case = BY_NAME[name]
    features = make_features(case, device)
    labels = torch.arange(case.n) % features.engine.n_labels
    assert_close(features(case.X, labels), features(case.X)[torch.arange(case.n), labels])


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_show(name, device):
    case = BY_NAME[name]
    assert_same_in_any_batch(make_features(case, device, power=None), case.X)


def test_by_default_features_are_gradients(device):
    case = BY_NAME["conv2d"]
    engine = GradientEngine(case.net(), case.X, device=device)
    features = GradientFeatures(engine)
    assert features.blocks is engine.blocks
    assert torch.equal(features(case.X), engine(case.X))


def test_calls_do_not_change_one_another(device):
    case = BY_NAME["mlp of two layers"]
    features = make_features(case, device)
    first = features(case.X).clone()
    features(case.X + 1)
    assert torch.equal(features(case.X), first)


@pytest.mark.parametrize("percentile", [15, 100])
@pytest.mark.parametrize("how, power", [("minmax", 0.5), ("maxabs", 2), (None, 0.5)])
def test_the_place_that_is_given_is_written_to(percentile, how, power, device):
    case = BY_NAME["conv2d twice"]
    features = make_features(case, device, percentile, how, power)
    expected = features(case.X)
    n, k, n_params = expected.shape
    for place in (np.s_[:, :k], np.s_[:, 1:]):
        whole = torch.full((n, k + 1, n_params), torch.nan, dtype=torch.float64, device=device)
        parts = list(features.parts(case.X, None, whole[place]))
        assert_close(whole[place], expected, 0)
        assert sum(len(part) for part in parts) == n and whole.isnan().sum() == n * n_params


def test_parts_are_those_of_the_whole(device, monkeypatch):
    case = BY_NAME["conv2d twice"]
    features = replace(make_features(case, device, power=None), batch_size=4)
    expected = features(case.X)
    labels = torch.arange(case.n) % 3
    monkeypatch.setitem(_engine._PART_BYTES, device.type, 1)
    assert_close(torch.cat([part.clone() for part in features.parts(case.X)]), expected)
    one = torch.cat([part.clone() for part in features.parts(case.X, labels)])
    assert_close(one[:, 0], expected[torch.arange(case.n), labels])


@pytest.mark.parametrize("piece", [1, 100, 2**18])
@pytest.mark.parametrize("how", SCALES)
def test_pieces_do_not_show(how, piece, device, monkeypatch):
    case = BY_NAME["mlp of two layers"]
    features = make_features(case, device, how=how)
    expected = features(case.X)
    monkeypatch.setattr(_features, "_PIECE", piece)
    assert torch.equal(features(case.X), expected)


@pytest.mark.parametrize("name", [*NAMES, "transformer", "embedding"])
def test_sampled_selection_of_small_layers_is_exact(name, device):
    case = BY_NAME[name]
    exact = GradientFeatures(case.engine(device), 15)
    sampled = replace(exact, selection="sampled")
    assert sampled.selection_error(case.X) == exact.selection_error(case.X) == 0
    assert torch.equal(sampled(case.X), exact(case.X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("percentile", [1, 15, 50, 100])
def test_selection_error_is_the_share_of_entries_that_differ(percentile, dtype, device):
    net = torch.nn.Sequential(torch.nn.Linear(60, 200), torch.nn.Tanh(), torch.nn.Linear(200, 3)).to(dtype)
    X = np.random.default_rng(0).normal(size=(4, 60))
    sampled = GradientFeatures(GradientEngine(net, X, device=device), percentile, selection="sampled", power=0.5)
    exact = replace(sampled, selection="exact")
    differ = ((sampled(X) != 0) != (exact(X) != 0)).double().mean().item()
    assert sampled.selection_error(X) == pytest.approx(differ)
    assert (0 < differ < 0.02) if percentile < 100 else differ == 0


@pytest.mark.parametrize("where", ["in the first layer", "in the second"])
def test_thresholds_of_masked_products_are_those_of_their_entries(where, device, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(60, 200), torch.nn.ReLU(), torch.nn.Linear(200, 3))
    X = np.random.default_rng(0).normal(size=(4, 60))
    engine = GradientEngine(net, X, "all", device)
    mask = np.ones(engine.n_params, bool)
    mask[engine.blocks[0 if where == "in the first layer" else 2].slice][::3] = False
    features = GradientFeatures(engine, 15, mask=mask)
    expected = features(X)
    monkeypatch.setattr(_selection, "_MANY", 1)
    assert torch.equal(features(X), expected)


def test_masked_features_are_written_to_the_place_that_is_given(device):
    case = BY_NAME["conv2d twice"]
    plain = make_features(case, device, 100, None)
    mask = np.arange(plain.n_features) % 3 > 0
    features = replace(plain, mask=mask)
    expected = plain(case.X)[..., mask]
    assert_close(features(case.X), expected, 0)
    whole = torch.full((*expected.shape[:2], expected.shape[2] + 2), torch.nan, dtype=torch.float64, device=device)
    for part in features.parts(case.X, None, whole[..., 1:-1]):
        assert part.shape[1:] == expected.shape[1:]
    assert_close(whole[..., 1:-1], expected, 0)


def test_memory_of_masked_features_is_that_of_a_part_and_of_what_is_kept(device):
    case = BY_NAME["mlp of two layers"]
    plain = make_features(case, device, 100, None)
    engine = plain.engine
    entry_bytes = engine.feature_dtype.itemsize
    worked_on = 0 if device.type == "cpu" else 4 * engine.part_rows(3) * 3 * engine.n_params * entry_bytes
    assert plain.memory(7) == engine.memory(7) + worked_on
    masked = replace(plain, mask=np.arange(plain.n_features) == 3)
    entry = engine.n_labels * entry_bytes
    assert masked.memory(7) - masked.memory(0) == engine.memory(7, features=0) - engine.memory(0) + 7 * entry
    for features in (plain, masked):
        rows = features.affordable_rows(features.memory(20))
        assert rows == 20 and features.affordable_rows(0) == 1


@pytest.mark.parametrize("how", ["minmax", "rms"])
@pytest.mark.parametrize("percentile", [15, 60])
def test_what_torch_gives_out_stays_below_the_formula(percentile, how, device):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(64, 64, 5), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4096, 10)
    )
    X = np.random.default_rng(0).normal(size=(40, 64, 12, 12)).astype(np.float32)
    features = GradientFeatures(GradientEngine(net, X, "all", device), percentile)
    statistics = ScaleStatistics(how, features.blocks)
    with PeakBytes() as peak:
        statistics.merge(statistics.of(GradientArray(features, X)))
    assert peak.n_bytes < features.memory(len(X))
    with PeakBytes() as peak:
        replace(features, scaler=statistics.scaler(torch.float32), power=0.5)(X)
    assert peak.n_bytes < features.memory(len(X))


@pytest.mark.parametrize("percentile", [15, 99])
def test_thresholds_of_products_are_those_of_their_entries(percentile, device, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(60, 200), torch.nn.ReLU(), torch.nn.Linear(200, 3))
    X = np.random.default_rng(0).normal(size=(4, 60))
    features = GradientFeatures(GradientEngine(net, X, "all", device), percentile)
    expected = features(X)
    monkeypatch.setattr(_selection, "_MANY", 1)
    assert torch.equal(features(X), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by torch's compiler
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="no compiler to compile with")
def test_one_kernel_gives_the_same(device):
    case = BY_NAME["conv2d twice"]
    features = make_features(case, device)
    compiled = replace(features, compile=True)
    for X in (case.X, case.X[:3] + 0.1):
        assert_close(compiled(X), features(X), 1e-12)
