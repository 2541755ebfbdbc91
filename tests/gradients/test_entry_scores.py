"""Scores of entries: which labels rows give, and sums over rows whichever way these are cut."""

import numpy as np
import pytest
import torch
from asserts import assert_close
from cases import BY_NAME

from sklearn_gradspace.gradients import GradientEngine, ScoreMoments, add_powers, label_probabilities, views
from sklearn_gradspace.gradients import _entry_scores as module


@pytest.mark.parametrize("name", ["mlp of three layers", "one logit"])
def test_views(name):
    case = BY_NAME[name]
    engine, n = case.engine(), len(case.X)
    outputs = engine.outputs(case.X)
    probabilities = label_probabilities(outputs)
    n_labels, y = probabilities.shape[1], torch.zeros(n, dtype=torch.int64)
    assert views("true", y) == (y, None)
    assert views("predicted") == ("predicted", None)
    for kind, expected in (("expected", probabilities), ("all", np.full((n, n_labels), 1 / n_labels))):
        labels, weigh = views(kind)
        assert labels is None
        assert_close(weigh(outputs), expected)


def test_drawn_labels_have_the_probabilities_of_the_net():
    case = BY_NAME["mlp of three layers"]
    engine, X = case.engine(), np.repeat(case.X[:1], 10000, 0)
    uniform = (np.arange(10000) + 0.5) / 10000
    labels, weigh = views("sampled", uniform=uniform)
    assert weigh is None
    share = torch.bincount(labels(engine.outputs(X)), minlength=3) / 10000
    assert (share - label_probabilities(engine.outputs(X[:1]))[0]).abs().max() < 2e-4


def test_standard_errors_of_an_output_that_is_next_to_impossible():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    with torch.no_grad():
        net[0].bias[1] = -35.0  # whose gradients to the fourth power no single precision holds beside the others'
    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    errors = []
    for dtype in ("float32", "float64"):
        engine = GradientEngine(net, X, dtype=dtype)
        moments = ScoreMoments(engine.blocks, 1, engine.device, by_tap=True)
        y = torch.zeros(20, dtype=torch.int64)
        add_powers(moments, engine, X, views("true", y), y, 2)
        errors.append(moments.standard_error("0.weight", [0]))
    np.testing.assert_allclose(*errors, rtol=1e-3)


@pytest.mark.parametrize("part_bytes", [1, 2**24])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_parts_do_not_show(part_bytes, p, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", part_bytes)
    case = BY_NAME["conv2d twice"]
    engine = case.engine()
    moments = ScoreMoments(engine.blocks, 2, engine.device, by_tap=True)
    groups = torch.arange(len(case.X)) % 2
    add_powers(moments, engine, case.X, views("all"), groups, p)
    scores = engine(case.X).abs().pow(p).mean(1)
    for block in engine.blocks:
        expected = scores[:, block.slice].view(-1, *block.shape)
        assert_close(moments.mean(block.name, [0, 1]), expected.mean(0))
        assert_close(moments.mean(block.name, [1]), expected[groups == 1].mean(0))
