"""Rows and labels are brought to a device, which is waited for once in the end; the stand-in for a GPU tells."""

from dataclasses import replace

import pytest
import torch
from cases import BY_NAME, CASES
from conftest import NAME

from sklearn_gradspace.gradients import GradientArray, GradientEngine, GradientFeatures, ScaleStatistics

if NAME != "standin":
    pytest.skip("only the stand-in for a GPU counts waits: GRADSPACE_TEST_DEVICE=standin", allow_module_level=True)

from standin import waiting

ONE_LOOK = ["aten::_local_scalar_dense"]
N_BATCHES = 3  # of two rows
# Two whose forward asks for values, and one whose rows come in an order that has to be known.
THAT_ASK = ("experts", "on demand", "rows sorted")


def labels_of(case):
    return torch.zeros(case.n, dtype=torch.int64)


@pytest.mark.parametrize("labels", [None, "predicted", labels_of], ids=["all", "predicted", "one"])
@pytest.mark.parametrize("case", [case for case in CASES if case.name not in THAT_ASK], ids=lambda case: case.name)
def test_gradients(case, labels, device):
    if labels == "predicted" and callable(case.scalar):
        pytest.skip("a function of outputs predicts no label")
    engine = case.engine(device)
    with waiting() as waits:
        engine(case.X, labels_of(case) if callable(labels) else labels, batch_size=2)
    assert waits == ["upload"] * (1 + callable(labels)) * N_BATCHES + ONE_LOOK


@pytest.mark.parametrize("how", ["minmax", "rms", "layer", None])
@pytest.mark.parametrize("percentile", [15, 100])
@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d twice", "transformer"])
def test_features(name, percentile, how, device):
    case = BY_NAME[name]
    features = GradientFeatures(GradientEngine(case.net(), case.X, "all", device), percentile, batch_size=2)
    if how is not None:
        statistics = ScaleStatistics(how, features.blocks)
        statistics.merge(statistics.of(GradientArray(features, case.X)))
        features = replace(features, scaler=statistics.scaler(torch.float64), power=0.5)
    for n_tensors, labels in ((1, None), (2, labels_of(case))):
        with waiting() as waits:
            features(case.X, labels)
        assert waits == ["upload"] * n_tensors * N_BATCHES + ONE_LOOK
