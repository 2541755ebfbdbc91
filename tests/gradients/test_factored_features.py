"""Products of features that are not formed are those of the formed ones, and so are their derivatives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from asserts import assert_close
from cases import BY_NAME

from sklearn_gradspace.gradients import GradientArray, GradientFeatures, ScaleStatistics

NETS = [
    "mlp of three layers",
    "conv2d twice",
    "called twice",
    "one logit",
    "parameters without axes",
    "linear on steps",
]
NOT_LINEAR = ("conv2d twice", "parameters without axes")


def make(name, scale="layer", percentile=100, power=None, batch_size=2, device=None):
    case = BY_NAME[name]
    features = GradientFeatures(case.engine(device, "all"), percentile, batch_size=batch_size)
    if scale is None:
        return GradientArray(features, case.X)
    statistics = ScaleStatistics(scale, features.blocks)
    scaler = statistics.of(GradientArray(features, case.X)).scaler(torch.float64)
    return GradientArray(GradientFeatures(features.engine, percentile, scaler, power, batch_size=batch_size), case.X)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "scale, one_label",
    [("layer", True), ("layer", False), (None, True), (None, False), ("rms", False), ("maxabs", False)],
)
@pytest.mark.parametrize("views", ["all", "predicted"])
def test_products_and_derivatives_are_those_of_the_formed(name, scale, one_label, views, device):
    array = make(name, scale, device=device)
    array = GradientArray(replace(array.features, labels=views), array.X)
    if scale in ("rms", "maxabs") and name in NOT_LINEAR:
        assert array.factored(id) is None
        return
    labels = torch.arange(len(array)) % array.n_labels if one_label else None
    formed = array.view(labels)
    formed = formed if labels is None else formed.unsqueeze(1)
    columns = [array.blocks[i].slice for i in (0, -1, 0)]  # in any order, and more than once
    width = sum(c.stop - c.start for c in columns)
    rng = np.random.default_rng(0)
    weight, bias, upstream = (
        torch.tensor(rng.normal(size=size), device=array.compute_device)
        for size in ((3, width), 3, (formed.shape[0] * formed.shape[1], 3))
    )
    results = []
    for factored in (True, False):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        if factored:
            product = torch.cat(list(array.factored(lambda part, w=w, b=b: part.linear(columns, w, b), labels)))
        else:
            product = torch.cat([formed[..., c] for c in columns], 2).flatten(0, 1) @ w.T + b
        product.backward(upstream)
        results.append((product, w.grad, b.grad))
    for found, expected in zip(*results):
        assert_close(found, expected)


def test_nothing_is_recorded_without_gradients(device):
    array = make("conv2d twice", device=device)
    block = array.blocks[0]
    weight = torch.ones(2, block.size, dtype=torch.float64, device=array.compute_device, requires_grad=True)
    with torch.no_grad():
        part = next(array.factored(lambda of: of.linear([block.slice], weight, weight[:, 0])))
        assert not part.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"percentile": 50}, {"power": 0.5}, {"scale": "minmax"},
    ],
)  # fmt: skip
def test_other_features_are_not_factored(options):
    array = make("mlp of three layers", **options)
    assert array.factored(id) is None


def test_one_view_of_each_row_is_formed_where_entries_have_divisors():
    array = make("mlp of three layers", "rms")
    assert array.factored(id, torch.zeros(len(array), dtype=torch.int64)) is None


def test_a_power_of_one_is_none():
    assert make("mlp of three layers", power=1).factored(id) is not None
