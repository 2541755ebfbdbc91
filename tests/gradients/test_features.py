"""Features are selection, scaling and power of the loop's gradients, one after the other."""

import numpy as np
import pytest
import reference
import torch
from asserts import assert_close, assert_same_in_any_batch
from cases import BY_NAME

from sklearn_gradspace.gradients import SCALES, GradientArray, GradientEngine, GradientFeatures, ScaleStatistics

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
