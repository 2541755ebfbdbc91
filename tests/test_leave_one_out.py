"""GradientKernelClassifier.loo_decision_function_, beside fits that leave out one row after the other."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import average_precision_score
from torch import nn

from sklearn_gradspace import GradientKernel, GradientKernelClassifier

NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), (5,)),
    "cnn": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 4, 4)),
    "linear": (lambda: nn.Linear(4, 3), (4,)),
}


@pytest.fixture(params=NETS)
def net_and_rows(request, device):
    make, shape = NETS[request.param]
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((24, *shape)), np.array([7, 2, 5] * 8)
    return make().double().to(device), X, y


def refits(features, kernel, start, y, alpha):
    """Ridge regression, in coefficients or in kernel coefficients, fitted once without each row."""
    targets = (y[:, None] == np.unique(y)) - start
    scores = start.copy()
    for row in range(len(y)):
        rest = np.delete(np.arange(len(y)), row)
        if kernel:
            penalised = features[np.ix_(rest, rest)] + alpha * np.eye(len(rest))
            scores[row] += features[row, rest] @ np.linalg.solve(penalised, targets[rest])
        else:
            penalised = features[rest].T @ features[rest] + alpha * np.eye(features.shape[1])
            scores[row] += features[row] @ np.linalg.solve(penalised, features[rest].T @ targets[rest])
    return scores


@pytest.mark.parametrize("base_output", [True, False])
@pytest.mark.parametrize("n_components", [None, 10])
def test_scores_are_those_of_refits(net_and_rows, base_output, n_components):
    net, X, y = net_and_rows
    model = GradientKernelClassifier(
        net, base_output=base_output, n_components=n_components, alphas=[0.3], random_state=0
    ).fit(X, y)
    features = GradientKernel(net, n_components=n_components, random_state=0).fit_transform(X)
    with torch.no_grad():
        logits = net(torch.from_numpy(X).to(next(net.parameters()).device)).cpu().numpy()
    start = softmax(logits, axis=1) if base_output else np.full((len(y), 3), 1 / 3)
    expected = refits(features, n_components is None, start, y, 0.3)
    np.testing.assert_allclose(model.loo_decision_function_, expected, atol=1e-9)


def test_scores_are_of_the_penalty_chosen_and_agree_with_the_other_attributes(net_and_rows):
    net, X, y = net_and_rows
    model = GradientKernelClassifier(net, alphas=[0.01, 0.3, 10.0]).fit(X, y)
    alone = GradientKernelClassifier(net, alphas=[model.alpha_]).fit(X, y)
    np.testing.assert_allclose(model.loo_decision_function_, alone.loo_decision_function_, atol=1e-9)
    right = model.classes_[model.loo_decision_function_.argmax(1)] == y
    assert model.loo_score_ == right.mean()
    log_proba = log_softmax(model.loo_decision_function_ / model.temperature_, axis=1)
    assert -log_proba[y[:, None] == model.classes_].mean() == pytest.approx(model.loo_losses_.min())


def test_scores_of_two_classes_and_one_logit():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 3)), np.arange(12) % 2
    model = GradientKernelClassifier(nn.Linear(3, 1).double()).fit(X, y)
    assert model.loo_decision_function_.shape == (12, 2)


def test_a_low_score_of_the_given_label_finds_a_wrong_one():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 30)
    X = 4 * np.eye(3)[truth] + 0.3 * rng.standard_normal((90, 3))
    wrong = np.zeros(90, bool)
    wrong[::12] = True
    given = np.where(wrong, (truth + 1) % 3, truth)
    model = GradientKernelClassifier(nn.Linear(3, 3).double(), base_output=False).fit(X, given)
    suspicion = 1 - model.loo_decision_function_[np.arange(90), given]
    assert average_precision_score(wrong, suspicion) == 1
    assert (model.classes_[model.loo_decision_function_[wrong].argmax(1)] == truth[wrong]).all()
