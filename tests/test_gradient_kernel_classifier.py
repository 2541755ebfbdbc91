"""GradientKernelClassifier: the closed form, leave-one-out by really leaving out, and what it leaves alone."""

import pickle

import numpy as np
import pytest
import reference
import torch
from asserts import assert_close, random_state_untouched, untouched
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict, learning_curve, train_test_split
from torch import nn

from sklearn_gradspace import GradientKernel, GradientKernelClassifier, _gradient_kernel_classifier
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.gradients import GradientGram, _memory
from sklearn_gradspace.modules import MLP

ALPHAS = (0.01, 0.1, 1.0, 10.0)


def make_net(n_classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(6, n_classes, (5,)).double()


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def data():
    X = np.random.default_rng(0).normal(size=(30, 6))
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] * X[:, 2] > 0)


def slow(net, X, y, new, alpha, base_output=True, **options):
    """Return the scores of new rows by the closed form, and the leave-one-out scores by refits."""
    sizes = [p.numel() for p in net.parameters()]
    weights = np.repeat([True, False, True, False], sizes)
    train, test = (reference.gradients(net, rows, "logit")[..., weights] for rows in (X, new))
    kernel, cross = (reference.kernel(rows, train, sizes[::2], **options) for rows in (train, test))
    targets = np.eye(y.max() + 1)[y]
    start, new_start = np.full((2, 1, targets.shape[1]), targets.mean(0))
    if base_output:
        start, new_start = (reference.probabilities(net, rows) for rows in (X, new))
    ridge = KernelRidge(alpha=alpha, kernel="precomputed")
    left_out = start + cross_val_predict(ridge, kernel, targets - start, cv=LeaveOneOut())
    return new_start + cross @ np.linalg.solve(kernel + alpha * np.eye(len(X)), targets - start), left_out


def loss_at_best_temperature(scores, y, weight=None):
    """Return the least cross-entropy of scores over a number, by brute force."""

    def loss(temperatures):
        log_proba = [np.log(softmax(scores / t, axis=1))[np.arange(len(y)), y] for t in temperatures]
        return np.array([-np.average(of_t, weights=weight) for of_t in log_proba])

    around = grid = np.geomspace(0.02, 10, 200)
    for _ in range(6):
        i = np.clip(loss(around).argmin(), 1, len(around) - 2)
        around = np.geomspace(around[i - 1], around[i + 1], len(grid))
    return loss(around).min()


@pytest.mark.parametrize("base_output", [True, False])
@pytest.mark.parametrize("options", [{}, {"degree": 1, "normalize": False}, {"degree": 3, "normalize": "layer"}])
@pytest.mark.parametrize("n_classes", [3, 2, 1])
def test_equals_the_slow_closed_form(data, base_output, options, n_classes, device):
    (X, y), net = data, make_net(n_classes)
    y = np.minimum(y, max(n_classes, 2) - 1)
    model = GradientKernelClassifier(net, alphas=ALPHAS, base_output=base_output, device=device, **options)
    model.fit(X[:20], y[:20])
    results = [slow(net, X[:20], y[:20], X[20:], alpha, base_output, **options) for alpha in ALPHAS]
    losses = [loss_at_best_temperature(left_out, y[:20]) for _, left_out in results]
    assert_close(model.loo_losses_, losses, 1e-7)
    assert model.alpha_ == ALPHAS[np.argmin(losses)]
    scores, left_out = results[np.argmin(losses)]
    assert model.loo_score_ == np.mean(left_out.argmax(1) == y[:20])
    decisions = model.decision_function(X[20:])
    assert_close(decisions, scores if n_classes > 2 else scores[:, 1] - scores[:, 0], 1e-7)
    assert np.array_equal(model.predict(X[20:]), scores.argmax(1))
    assert_close(model.predict_proba(X[20:]), softmax(scores / model.temperature_, axis=1), 1e-7)
    assert model.dual_coef_.shape == (20, y.max() + 1) and np.array_equal(model.landmarks_, X[:20])


@pytest.mark.parametrize("base_output", [True, False])
def test_landmarks_are_ridge_regression_on_nystrom_features(net, data, base_output, device):
    X, y = data
    options = {"n_components": 8, "random_state": 3, "device": device}
    model = GradientKernelClassifier(net, alphas=ALPHAS, base_output=base_output, **options).fit(X[:20], y[:20])
    kernel = GradientKernel(net, **options).fit(X[:20])
    assert np.array_equal(model.landmarks_, kernel.landmarks_) and len(model.landmarks_) == 8
    features, new = kernel.transform(X[:20]), kernel.transform(X[20:])
    targets = np.eye(3)[y[:20]]
    start, new_start = (
        reference.probabilities(make_net(), rows) if base_output else targets.mean(0) for rows in (X[:20], X[20:])
    )
    ridges = [Ridge(alpha, fit_intercept=False) for alpha in ALPHAS]
    left_out = [start + cross_val_predict(ridge, features, targets - start, cv=LeaveOneOut()) for ridge in ridges]
    losses = [loss_at_best_temperature(scores, y[:20]) for scores in left_out]
    assert_close(model.loo_losses_, losses, 1e-7)
    best = int(np.argmin(losses))
    assert model.alpha_ == ALPHAS[best]
    assert model.loo_score_ == np.mean(left_out[best].argmax(1) == y[:20])
    assert_close(model.decision_function(X[20:]), new_start + ridges[best].fit(features, targets - start).predict(new))


@pytest.mark.parametrize("options", [{}, {"n_components": 8}, {"n_directions": 2, "projection": 16}])
def test_in_inference_mode(net, data, options):
    X, y = data
    expected = GradientKernelClassifier(net, random_state=0, **options).fit(X, y).decision_function(X)
    with torch.inference_mode():
        model = GradientKernelClassifier(net, random_state=0, **options).fit(X, y)
        assert np.array_equal(model.decision_function(X), expected)


def test_features_of_landmarks_are_of_some_rows_at_a_time(net, data, monkeypatch):
    X, y = data
    whole = GradientKernelClassifier(net, n_components=8, random_state=0).fit(X, y)
    monkeypatch.setattr(_gradient_kernel_classifier, "_ROWS", 7)
    parts = GradientKernelClassifier(net, n_components=8, random_state=0).fit(X, y)
    assert_close(parts.loo_losses_, whole.loo_losses_)
    assert_close(parts.decision_function(X), whole.decision_function(X))


def test_labels_without_0_of_some_classes_are_numbers_of_outputs(net, data):
    X, y = data
    with pytest.warns(
        UserWarning, match=r"net has 3 labels, and of y \[1, 2\]: they are taken for numbers of its outputs"
    ):
        assert np.array_equal(GradientKernelClassifier(net).fit(X[y > 0], y[y > 0]).classes_, [0, 1, 2])
    named = GradientKernelClassifier(net, classes=[1, 2, 3]).fit(X[y > 0], y[y > 0])
    assert np.array_equal(named.classes_, [1, 2, 3])


def test_all_rows_as_landmarks_are_the_exact_separator(net, data):
    X, y = data
    exact, landmarks = (GradientKernelClassifier(net, n_components=n).fit(X, y) for n in (None, 100))
    assert exact.alpha_ == landmarks.alpha_ and exact.loo_score_ == landmarks.loo_score_
    assert_close(landmarks.loo_losses_, exact.loo_losses_, 1e-6)
    assert_close(landmarks.decision_function(X + 0.1), exact.decision_function(X + 0.1), 1e-6)
    assert abs(landmarks.temperature_ / exact.temperature_ - 1) < 1e-4


@pytest.mark.parametrize("n_components", [None, 10])
def test_probabilities_are_calibrated_and_keep_the_order(net, data, n_components):
    X, y = data
    model = GradientKernelClassifier(net, n_components=n_components, random_state=0).fit(X, y)
    new = np.random.default_rng(1).normal(size=(200, 6))
    proba, scores = model.predict_proba(new), model.decision_function(new)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (proba >= 0).all() and np.array_equal(proba.argmax(1), scores.argmax(1))
    assert np.array_equal(model.predict(new), model.classes_[proba.argmax(1)])
    assert 0.02 <= model.temperature_ <= 10


def test_the_temperature_is_the_best_of_leave_one_out_predictions(net, data):
    X, y = data
    model = GradientKernelClassifier(net, alphas=[1.0], base_output=False).fit(X, y)
    _, left_out = slow(make_net(), X, y, X, 1.0, base_output=False)

    def loss(temperature):
        return -np.log(softmax(left_out / temperature, axis=1)[np.arange(30), y]).mean()

    best = loss(model.temperature_)
    assert 0.02 < model.temperature_ < 10 and all(best < loss(model.temperature_ * f) for f in (0.5, 0.98, 1.02, 2))


@pytest.mark.parametrize("n_components", [None, 10])
def test_labels_of_any_kind(net, data, n_components):
    X, y = data
    plain = GradientKernelClassifier(net, n_components=n_components, random_state=0).fit(X, y)
    for labels in (np.array(["ant", "bee", "cow"]), np.array(["a", "b", "c"], dtype=object), np.array([-5, 2, 10])):
        model = clone(plain).set_params(classes=labels if labels.dtype.kind in "UO" else None).fit(X, labels[y])
        assert np.array_equal(model.classes_, labels)
        assert np.array_equal(model.predict(X), labels[plain.predict(X)])
        assert model.score(X, labels[y]) == plain.score(X, y)


def test_a_fitted_skorch_net_and_its_classes(data):
    X, y = data
    labels = np.array(["a", "b", "c"])[y]
    base = NetClassifier(MLP, max_epochs=2, random_state=0).fit(X.astype(np.float32), labels)
    for net, classes in ((base, None), (base.module_, ["a", "b", "c"]), (FrozenEstimator(base), None)):
        model = GradientKernelClassifier(net, classes=classes).fit(X, labels)
        assert_close(model.decision_function(X), GradientKernelClassifier(base.module_).fit(X, y).decision_function(X))
        assert model.module_ is base.module_
    other = np.array(["a", "b", "d"])[y]
    with pytest.raises(ValueError, match=r"hold the labels \['d'\], which are none of \['a', 'b', 'c'\]"):
        GradientKernelClassifier(base).fit(X, other)
    assert set(GradientKernelClassifier(base, base_output=False).fit(X, other).predict(X)) <= {"a", "b", "d"}


@pytest.mark.parametrize("n_components", [None, 5])
def test_a_class_of_the_net_may_be_missing(net, data, n_components):
    X, y = data
    few = y != 1
    model = GradientKernelClassifier(net, base_output=True, n_components=n_components, random_state=0)
    model.fit(X[few], y[few])
    assert np.array_equal(model.classes_, [0, 1, 2]) and model.predict_proba(X).shape == (30, 3)
    assert model.loo_decision_function_.shape == (few.sum(), 3)
    start = reference.probabilities(make_net(), X[few])
    weights = model.alpha_ * model.dual_coef_
    if n_components is None:  # the ridge's equations, in which the missing class is a target of zeros
        targets = np.eye(3)[y[few]] - start
        kernel = GradientKernel(net).fit(X[few]).pairwise(X[few])
        assert_close(weights + kernel @ model.dual_coef_, targets, 1e-8)
    named = clone(model).set_params(classes=["a", "b", "c"])
    named.fit(X[few], np.array(["a", "b", "c"])[y[few]])
    assert_close(named.decision_function(X), model.decision_function(X))
    only = clone(model).set_params(base_output=False).fit(X[few], y[few])
    assert np.array_equal(only.classes_, [0, 2])
    assert clone(only).set_params(classes=[0, 1, 2]).fit(X[few], y[few]).predict_proba(X).shape == (30, 3)
    with pytest.raises(ValueError, match=r"hold the labels \[2\], which are none of \[0, 1\]"):
        GradientKernelClassifier(make_net(1)).fit(X, y)


def test_learning_curves_whose_first_rows_lack_a_class(net, data):
    X, y = data
    order = np.argsort(y, kind="stable")[np.r_[5:20, 20:30, 0:5]]
    folds = [(order[:25], order[25:])]
    _, train, test = learning_curve(
        GradientKernelClassifier(net), X, y, train_sizes=[12, 25], cv=folds, error_score="raise"
    )
    assert np.isfinite(train).all() and np.isfinite(test).all()


@pytest.mark.parametrize("seed", range(5))
def test_share_of_the_base_net(data, seed):
    """The share of the net's probabilities and the penalty are those with the least loss of leave-one-out scores."""
    X, y = data
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    start = reference.probabilities(net, X)
    kernel = GradientKernel(net).fit(X).pairwise(X)
    frequencies, truth = np.full((30, 3), np.bincount(y) / 30), np.eye(3)[y]
    losses = {}
    for alpha in ALPHAS:
        hat = kernel @ np.linalg.inv(kernel + alpha * np.eye(30))
        for share in (0, 0.25, 0.5, 0.75, 1):
            targets = truth - (share * start + (1 - share) * frequencies)
            left_out = truth - (targets - hat @ targets) / (1 - np.diag(hat))[:, None]
            losses[alpha, share] = loss_at_best_temperature(left_out, y, np.ones(30))
    model = GradientKernelClassifier(net, alphas=ALPHAS).fit(X, y)
    assert_close(model.loo_losses_, [min(losses[alpha, s] for s in (0, 0.25, 0.5, 0.75, 1)) for alpha in ALPHAS], 1e-6)
    assert (model.alpha_, model.base_share_) == min(losses, key=losses.get)
    by_hand = (1 - model.base_share_) * frequencies + model.base_share_ * start
    assert_close(model.decision_function(X), by_hand + kernel @ model.dual_coef_, 1e-8)
    for share in (True, False, np.True_, np.False_, 1, 0):
        one = clone(model).set_params(base_output=share).fit(X, y)
        assert_close(one.loo_losses_, [losses[alpha, share] for alpha in ALPHAS], 1e-6)
        assert one.base_share_ == share


@pytest.mark.parametrize("n_components", [None, 5])
def test_parameters_set_afterwards_wait_for_the_next_fit(net, data, n_components):
    model = GradientKernelClassifier(net, n_components=n_components, random_state=0).fit(*data)
    scores = model.decision_function(data[0])
    later = {"base_output": False, "degree": 3, "normalize": "layer", "layers": "all", "n_components": 7}
    model.set_params(**later, views=lambda X: np.stack([X, -X], 1), classes=[2, 1, 0])
    assert np.array_equal(model.decision_function(data[0]), scores)


def test_labels_of_another_kind_are_told(net, data):
    X, y = data
    with pytest.warns(UserWarning, match=r"of y \[False, True\]: they are taken for numbers .* or base_output=False"):
        GradientKernelClassifier(net).fit(X, y > 0)
    alone = GradientKernelClassifier(net, base_output=False).fit(X, y > 0)  # without a warning
    assert alone.classes_.tolist() == [False, True]


def test_an_order_that_is_worse_than_a_guess_is_told(net, data):
    X, _ = data
    with torch.no_grad():
        y = net(torch.from_numpy(X)).argmax(1).numpy()
    names = np.array(["c", "a", "b"])
    with pytest.warns(UserWarning, match=r"outputs, taken for \['a', 'b', 'c'\], are right on 0%"):
        GradientKernelClassifier(net, classes=["a", "b", "c"]).fit(X, names[y])
    GradientKernelClassifier(net, classes=names).fit(X, names[y])  # without a warning


def test_the_order_of_a_modules_labels(net, data):
    X, y = data
    names = np.array(["zero", "one", "two"])
    numbered = GradientKernelClassifier(net).fit(X, y)
    ordered = GradientKernelClassifier(net, classes=names).fit(X, names[y])  # without a warning
    assert np.array_equal(ordered.classes_, ["one", "two", "zero"])
    assert np.array_equal(ordered.predict(X), names[numbered.predict(X)])
    assert_close(ordered.decision_function(X), numbered.decision_function(X)[:, [1, 2, 0]])
    with pytest.warns(UserWarning, match=r"taken in sorted order, \['one', 'two', 'zero'\]. Pass classes=\[\.\.\.\]"):
        guessed = GradientKernelClassifier(net).fit(X, names[y])
    assert not np.array_equal(guessed.predict(X), ordered.predict(X))
    with pytest.raises(ValueError, match="must be 3 different labels"):
        GradientKernelClassifier(net, classes=["one", "two"]).fit(X, names[y])


def test_a_net_that_is_trained_knows_the_order_of_classes(data):
    X, y = data
    names = np.array(["zero", "one", "two"])
    expected = GradientKernelClassifier(random_state=0).fit(X, names[y]).decision_function(X)
    named = GradientKernelClassifier(classes=names, random_state=0).fit(X, names[y])
    np.testing.assert_array_equal(named.decision_function(X), expected)
    few = named.fit(X[y != 1], names[y[y != 1]])
    assert few.classes_.tolist() == ["one", "two", "zero"]


def weighted(net, X, y, weight, alpha, counted):
    """Return the scores of all rows by the ridge with weights of those rows that count."""
    kernel, start = GradientKernel(net).fit(X).pairwise(X), reference.probabilities(net, X)
    ridge = KernelRidge(alpha=alpha, kernel="precomputed")
    ridge.fit(kernel[np.ix_(counted, counted)], (np.eye(3)[y] - start)[counted], weight[counted])
    return start + ridge.predict(kernel[:, counted])


@pytest.mark.parametrize("n_components", [None, 100])
def test_weights_in_leave_one_out(net, data, n_components):
    X, y = data
    weight = np.random.default_rng(1).choice([0, 0.3, 1, 2.5], len(X))
    model = GradientKernelClassifier(net, alphas=ALPHAS, base_output=True, n_components=n_components)
    model.fit(X, y, sample_weight=weight)
    counted, left_out_by_alpha, all_scores = np.flatnonzero(weight), [], []
    for alpha in ALPHAS:
        scores = weighted(make_net(), X, y, weight, alpha, counted)
        all_scores.append(scores.copy())
        for row in counted:
            without = weight - np.minimum(weight, 1) * (np.arange(len(X)) == row)  # one of the rows that it stands for
            scores[row] = weighted(make_net(), X, y, without, alpha, np.flatnonzero(without))[row]
        left_out_by_alpha.append(scores)
    losses = [loss_at_best_temperature(scores, y, weight) for scores in left_out_by_alpha]
    best = int(np.argmin(losses))
    assert_close(model.loo_losses_, losses, 1e-6)
    assert model.alpha_ == ALPHAS[best]
    left_out = left_out_by_alpha[best]
    assert_close(model.loo_decision_function_, left_out, 1e-6)
    assert_close(model.decision_function(X), all_scores[best], 1e-6)
    assert model.loo_score_ == pytest.approx(np.average(left_out.argmax(1) == y, weights=weight))

    def loss(temperature):
        proba = softmax(left_out / temperature, axis=1)
        return -np.average(np.log(proba[np.arange(30), y]), weights=weight)

    assert all(loss(model.temperature_) < loss(model.temperature_ * f) for f in (0.95, 1.05))


@pytest.mark.parametrize("options", [{}, {"base_output": False}, {"n_components": 100}, {"class_weight": "balanced"}])
def test_weights_are_repetitions_and_weight_0_leaves_a_row_out(net, data, options):
    X, y = data
    weight = np.random.default_rng(2).integers(0, 4, len(X))
    model = GradientKernelClassifier(net, alphas=ALPHAS, **options)
    by_weight = clone(model).fit(X, y, sample_weight=weight)
    repeated = clone(model).fit(np.repeat(X, weight, 0), np.repeat(y, weight))
    assert by_weight.alpha_ == repeated.alpha_
    assert_close(by_weight.loo_losses_, repeated.loo_losses_, 1e-8)
    assert_close(by_weight.predict_proba(X), repeated.predict_proba(X), 1e-6)
    assert_close(np.repeat(by_weight.loo_decision_function_, weight, 0), repeated.loo_decision_function_, 1e-8)
    kept, part = weight > 0, {"n_components": None}
    some = clone(model).set_params(**part).fit(X, y, sample_weight=kept)
    less = clone(model).set_params(**part).fit(X[kept], y[kept])
    assert some.temperature_ == less.temperature_ and some.alpha_ == less.alpha_
    assert np.array_equal(some.predict_proba(X), less.predict_proba(X))
    assert np.array_equal(some.loo_decision_function_[kept], less.loo_decision_function_)
    ones = clone(model).set_params(**part).fit(X, y, sample_weight=np.ones(30))
    assert np.array_equal(ones.predict_proba(X), clone(ones).fit(X, y).predict_proba(X))


def test_class_weights_multiply(net, data):
    X, y = data
    names = np.array(["a", "b", "c"])
    by_class = {"a": 0.5, "c": 3.0}
    weight = np.random.default_rng(3).uniform(size=30)
    plain = GradientKernelClassifier(net, alphas=[0.1], base_output=True)
    model = clone(plain).set_params(classes=names, class_weight=by_class).fit(X, names[y], sample_weight=weight)
    plain.fit(X, y, sample_weight=weight * np.array([0.5, 1.0, 3.0])[y])
    assert_close(model.decision_function(X), plain.decision_function(X))
    balanced = clone(plain).set_params(class_weight="balanced").fit(X, y)
    weight = 10 / np.bincount(y)[y]
    plain.fit(X, y, sample_weight=weight)
    assert_close(balanced.decision_function(X), plain.decision_function(X))
    rest = np.arange(1, 30)  # a row's class does not make it several rows, of which one is left out
    assert_close(balanced.loo_decision_function_[0], weighted(make_net(), X, y, weight, 0.1, rest)[0], 1e-6)
    few = y != 2  # class_weight may name a class that these rows lack
    assert np.array_equal(clone(model).fit(X[few], names[y[few]]).classes_, names)


def test_weights_reach_a_net_that_is_trained(data):
    X, y = data
    weight = np.where(y == 2, 1e-3, 1.0)
    model = GradientKernelClassifier(random_state=0).fit(X, y, sample_weight=weight)
    assert np.mean(model.predict(X) == 2) < np.mean(clone(model).fit(X, y).predict(X) == 2)


@pytest.mark.parametrize("options", [{}, {"n_components": 8}, {"n_directions": 2}, {"projection": 20}])
def test_pickle_and_clone(data, options):
    X, y = data
    net = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model = GradientKernelClassifier(net, random_state=0, **options).fit(X, y)
    expected = model.predict_proba(X)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), expected)
    assert np.array_equal(clone(model).fit(X, y).predict_proba(X), expected)


def test_a_restored_classifier_computes_the_gradients_of_landmarks_once(net, data, monkeypatch):
    model, passed, tile = pickle.loads(pickle.dumps(GradientKernelClassifier(net).fit(*data))), [], GradientGram.tile
    monkeypatch.setattr(GradientGram, "tile", lambda self, rows: passed.append(len(rows)) or tile(self, rows))
    first = model.predict_proba(data[0][:2])
    assert sum(passed) >= len(data[0])
    passed.clear()
    assert np.array_equal(model.predict_proba(data[0][:2]), first)
    assert sum(passed) < len(data[0])


def test_grid_search(net, data):
    X, y = data
    grid = {"degree": [1, 2], "layers": ["weights", "*.3.*"], "n_components": [None, 5]}
    search = GridSearchCV(GradientKernelClassifier(net, random_state=0), grid, cv=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all() and search.best_estimator_.module_ is net


@pytest.mark.parametrize("n_components", [None, 8])
def test_leaves_the_net_the_data_and_random_states_alone(net, data, n_components):
    X, y = data
    before = X.copy(), y.copy()
    net.train()
    with untouched(net), random_state_untouched():
        GradientKernelClassifier(net, n_components=n_components, random_state=0).fit(X, y).predict_proba(X)
        GradientKernelClassifier(net).fit(X, y)
    assert np.array_equal(X, before[0]) and np.array_equal(y, before[1])


def test_a_matrix_that_does_not_fit_says_how_many_rows_would(net, data, monkeypatch):
    X, y = data
    monkeypatch.setattr(_memory, "available_bytes", lambda: 8 * 20**2)
    message = r"a kernel matrix of shape \(30, 30\) .*Use fewer rows, 20 would fit, or landmarks: n_components=2000"
    with pytest.raises(MemoryError, match=message):
        GradientKernelClassifier(net).fit(X, y)
    GradientKernelClassifier(net).fit(X[:20], y[:20])
    GradientKernelClassifier(net, n_components=5).fit(X, y)


def test_penalties_below_rounding(net, data):
    X, y = (np.repeat(part, 2, 0) for part in data)  # a singular matrix
    model = GradientKernelClassifier(net, degree=1, dtype="float32", alphas=[1e-12, 0.1, 1e-13]).fit(X, y)
    assert np.array_equal(np.isnan(model.loo_losses_), [True, False, True]) and model.alpha_ == 0.1
    alone = GradientKernelClassifier(net, degree=1, dtype="float32", alphas=[0.1]).fit(X, y)
    assert_close(model.decision_function(X), alone.decision_function(X), 1e-6)
    with pytest.raises(ValueError, match=r"not positive definite .*alphas=\[1e-12\]: add a larger one, or .*float64"):
        GradientKernelClassifier(net, degree=1, dtype="float32", alphas=[1e-12]).fit(X, y)


@pytest.mark.parametrize("n_components", [None, 150])
def test_digits_are_told_apart_better_than_by_the_base_net(n_components):
    X, y = load_digits(return_X_y=True)
    X, X_new, y, y_new = train_test_split((X / 16).astype(np.float32), y, test_size=500, random_state=0, stratify=y)
    base = NetClassifier(MLP, module__hidden_layer_sizes=(16,), max_epochs=5, random_state=0).fit(X[:400], y[:400])
    model = GradientKernelClassifier(base, n_components=n_components, random_state=0).fit(X[400:800], y[400:800])
    score = model.score(X_new, y_new)
    assert score > base.score(X_new, y_new) + 0.03 and score > 0.93
    assert abs(model.loo_score_ - score) < 0.04
    correct = model.predict_proba(X_new)[np.arange(500), y_new]
    assert -np.log(correct).mean() < 0.3
