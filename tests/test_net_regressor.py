"""The regressor: targets of any shape and unit, learned as they are weighted."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from asserts import assert_close, random_state_untouched
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from skorch import NeuralNetRegressor
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset, ValidSplit
from torch import nn

from sklearn_gradspace._net_regressor import NetRegressor
from sklearn_gradspace.modules import MLP

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 5))
Y = np.column_stack([X[:, 0] - 2 * X[:, 1], np.abs(X[:, 2])])
y = Y[:, 0]


def make(**options):
    return NetRegressor(MLP, random_state=0, **({"max_epochs": 50} | options))


@pytest.mark.parametrize(
    "data",
    [X, X.astype(np.float32), torch.from_numpy(X), pd.DataFrame(X), sparse.csr_array(X), X.tolist()],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_kinds_of_data(data):
    assert make().fit(data, y).score(data, y) > 0.9


def test_it_is_a_skorch_regressor_without_probabilities():
    assert isinstance(make(), NeuralNetRegressor)
    assert not hasattr(make().fit(X, y), "predict_proba")


@pytest.mark.parametrize("targets", [y, y[:, None], Y], ids=["one", "column", "two"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, pd.DataFrame], ids=lambda kind: kind.__name__)
def test_predictions_have_the_shape_of_the_targets(targets, kind):
    if kind is pd.DataFrame and targets.ndim == 1:
        kind = pd.Series
    regressor = make().fit(X, kind(targets))
    assert regressor.predict(X).shape == targets.shape
    assert regressor.score(X, targets) > 0.8


@pytest.mark.parametrize("weight", [None, np.arange(60) % 4])
def test_the_unit_of_the_targets_does_not_matter(weight):
    plain = make().fit(X, Y, sample_weight=weight)
    other = make().fit(X, Y * [1e6, 1e-3] + [1e9, -5.0], sample_weight=weight)
    assert_close((other.predict(X) - [1e9, -5.0]) / [1e6, 1e-3], plain.predict(X), 1e-6)
    np.testing.assert_allclose(plain.y_mean_, np.average(Y, axis=0, weights=weight))
    weighted = Y.std(axis=0) if weight is None else np.repeat(Y, weight, axis=0).std(axis=0)
    np.testing.assert_allclose(plain.y_scale_, weighted)


def test_targets_as_they_are():
    regressor = make(normalize_y=False, max_epochs=1, batch_size=-1, lr=0.0).fit(X, 10 * Y + 3)
    outputs = regressor.module_(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_array_equal(regressor.predict(X), outputs)
    assert regressor.history[-1]["train_loss"] == pytest.approx(((outputs - 10 * Y - 3) ** 2).mean())


def test_the_loss_is_in_the_units_that_are_learned():
    regressor = make(max_epochs=1, batch_size=-1, lr=0.0).fit(X, 10 * Y + 3)
    residuals = (regressor.predict(X) - 10 * Y - 3) / (10 * Y).std(axis=0)
    assert regressor.history[-1]["train_loss"] == pytest.approx((residuals**2).mean())


def test_a_constant_target():
    predicted = make().fit(X, np.column_stack([y, np.full(60, 1e8)])).predict(X)
    assert np.abs(predicted[:, 1] - 1e8).max() < 1


def test_weights_of_whole_numbers_are_repetitions():
    weight = np.arange(60) % 4
    options = {"batch_size": 1000, "max_epochs": 20, "iterator_train__shuffle": False}
    weighted = make(**options).fit(X, Y, sample_weight=weight).predict(X)
    rows = np.repeat(np.arange(60), weight)
    assert_close(weighted, make(**options).fit(X[rows], Y[rows]).predict(X), 1e-8)


@pytest.mark.parametrize("options", [{"criterion": nn.L1Loss}, {"criterion": nn.HuberLoss, "criterion__delta": 0.5}])
def test_other_losses(options):
    assert make(**options).fit(X, Y, sample_weight=np.ones(60)).score(X, Y) > 0.8


def test_scores_in_training_are_in_the_units_of_the_targets():
    scoring = EpochScoring("neg_mean_absolute_error", lower_is_better=False, name="error", on_train=True)
    regressor = make(callbacks=[scoring], train_split=ValidSplit(3), lr=0.0, max_epochs=1)
    regressor.fit(X, 1000 * y)
    assert regressor.history[-1]["error"] < -500
    assert regressor.history[-1]["valid_loss"] < 10


def test_a_skorch_dataset():
    for targets in (y, Y):
        regressor = make(module__n_features=5, module__n_outputs=targets[:1].size)
        regressor.fit(Dataset(X.astype(np.float32), targets), None)
        assert regressor.predict(X.astype(np.float32)).shape == targets.shape
        assert regressor.score(X.astype(np.float32), targets) > 0.8


class Squeezed(nn.Module):
    """A net of one output without an axis for it, and no argument for the number of outputs."""

    def __init__(self, n_features):
        super().__init__()
        self.linear = nn.Linear(n_features, 1)

    def forward(self, x):
        return self.linear(x)[:, 0]


def test_a_net_without_an_axis_of_outputs():
    assert NetRegressor(Squeezed, random_state=0).fit(X, y, sample_weight=np.ones(60)).score(X, y) > 0.7
    with pytest.raises(ValueError, match="module returns 1 outputs a row; y has 2 targets"):
        NetRegressor(Squeezed).fit(X, Y)


def test_bad_targets():
    for bad, message in [
        (np.where(y > 1, np.nan, y), "Input y contains NaN"),
        (y[:-1], "inconsistent numbers of samples"),
        (np.zeros((60, 1, 1)), "dim 3"),
        (np.full(60, "a"), "could not convert string"),
        (None, "requires y to be passed"),
    ]:
        with pytest.raises(ValueError, match=message):
            make().fit(X, bad)
    with pytest.raises(ValueError, match="y has 2 targets a row; the net was fitted to 1"):
        make(max_epochs=1).fit(X, y).partial_fit(X, Y)
    with pytest.raises(NotFittedError):
        make().predict(X)


def test_partial_fit_goes_on_with_the_same_units():
    whole = make(max_epochs=4).fit(X, y)
    parts = make(max_epochs=2).fit(X, y).partial_fit(X, y)
    np.testing.assert_array_equal(parts.predict(X), whole.predict(X))
    before = parts.y_mean_.copy()
    np.testing.assert_array_equal(parts.partial_fit(X[:5], y[:5]).y_mean_, before)


def test_a_seed_decides_everything_and_global_states_are_left_alone():
    with random_state_untouched():
        first, second = (make(max_epochs=2).fit(X, y).predict(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_pickles_and_searches():
    regressor = make(max_epochs=2).fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(regressor)).predict(X), regressor.predict(X))
    search = GridSearchCV(make(), {"normalize_y": [True, False], "lr": [0.01]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5
    assert cross_val_score(make(), X, Y, cv=2).mean() > 0.3


def test_trains_on_the_device(device):
    assert make(device=str(device)).fit(X.astype(np.float32), Y, sample_weight=np.ones(60)).score(X, Y) > 0.9
