"""The engine equals a loop of backward passes, keeps the laws of the cross-entropy and leaves the net alone."""

from functools import cache

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
from torch import nn

from sklearn_gradspace.gradients import GradientEngine

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cache
def truth(case):
    return reference.gradients(case.net(), case.X)


def make_engine(case, device):
    return GradientEngine(case.net(), case.X, layers="all", device=device)


@every_case
def test_all_labels_equal_the_loop(case, device):
    assert_close(make_engine(case, device)(case.X), truth(case))


@every_case
def test_one_label_equals_the_loop(case, device):
    engine = make_engine(case, device)
    labels = np.arange(case.n)[::-1] % engine.n_labels
    assert_close(engine(case.X, torch.tensor(labels.copy())), truth(case)[np.arange(case.n), labels])


@every_case
def test_single_precision_is_near_the_truth(case, device):
    X = case.X.astype(np.float32)
    engine = GradientEngine(case.net().float(), X, layers="all", device=device)
    gradients = engine(X)
    assert gradients.dtype == torch.float32
    assert_close(gradients, reference.gradients(case.net().float().double(), X.astype(float)), 1e-5)


@every_case
def test_batches_do_not_show(case, device):
    engine = make_engine(case, device)
    assert_same_in_any_batch(engine, case.X)
    assert_same_in_any_batch(engine.outputs, case.X)


@every_case
def test_laws_of_the_cross_entropy(case, device):
    engine = make_engine(case, device)
    gradients, probabilities = engine(case.X), engine.outputs(case.X).softmax(1)
    assert_close(probabilities, reference.probabilities(case.net(), case.X))
    assert_sums_to_zero(gradients, probabilities)
    assert_rank_below_labels(gradients)


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_net_data_and_random_state_stay_as_they_were(case, training, device):
    net, X = case.net().train(training), case.X
    for parameter in list(net.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    with untouched(net), random_state_untouched():
        GradientEngine(net, X, layers="all", device=device)(X)
    np.testing.assert_array_equal(X, case.X)


@every_case
def test_training_in_place_is_seen(case, device):
    net = case.net().to(device)
    engine = GradientEngine(net, case.X, layers="all")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.25)
    assert_close(engine(case.X), reference.gradients(net.cpu(), case.X))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d", "layer norm", "borrowed weight", "prelu", "lstm"])
def test_grad_modes_of_the_caller_do_not_show(name, mode, device):
    case = BY_NAME[name]
    with mode():
        gradients = make_engine(case, device)(case.X)
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


def test_fork_shares_the_net(device):
    case = BY_NAME["conv2d"]
    engine = make_engine(case, device)
    twin = engine.fork()
    assert twin.net is engine.net and twin.module is not engine.module
    assert_close(twin(case.X), engine(case.X), 0)


def test_half_precision_gives_single_precision_gradients(device):
    case = BY_NAME["mlp of two layers"]
    net = case.net().bfloat16()
    gradients = GradientEngine(net, case.X, layers="all", device=device)(case.X)
    assert gradients.dtype == torch.float32
    assert_close(gradients, reference.gradients(net.double(), case.X), 0.05)
