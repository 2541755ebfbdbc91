"""A display of a fit draws what its history says."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit

from sklearn_gradspace import ECOptClassifier, ECOptRegressor, GradNetClassifier, HistoryDisplay, load, save

X, y = load_iris(return_X_y=True)


@pytest.fixture(autouse=True)
def _figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def test_losses_and_scores_are_those_of_the_history():
    on_training_rows = EpochScoring("accuracy", name="train_acc", on_train=True, lower_is_better=False)
    classifier = ECOptClassifier(
        max_epochs=4, random_state=0, train_split=ValidSplit(3, stratified=True), callbacks=[on_training_rows]
    ).fit(X, y)
    of_pipeline = HistoryDisplay.from_estimator(make_pipeline(StandardScaler(), classifier).fit(X, y))

    assert of_pipeline.epochs == [1, 2, 3, 4] and of_pipeline.best_epoch is None
    display = HistoryDisplay.from_estimator(classifier)
    assert [*display.losses] == ["train_loss", "valid_loss"] and [*display.scores] == ["train_acc", "valid_acc"]
    for name, line in display.lines_.items():
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
        np.testing.assert_array_equal(line.get_ydata(), classifier.history[:, name])
    assert [axes.get_ylabel() for axes in display.axes_] == ["loss", "score"]
    assert {id(line.axes) for line in display.lines_.values()} == {id(axes) for axes in display.axes_}
    assert display.figure_ is display.axes_[0].figure


def test_the_epoch_that_early_stopping_went_back_to(tmp_path):
    stopped = GradNetClassifier(early_stopping=True, n_iter_no_change=2, max_epochs=60, lr=0.1, random_state=0)
    stopped.fit(X, y)
    losses = stopped.history[:, "valid_loss"]
    assert HistoryDisplay.from_estimator(stopped).best_epoch == 1 + int(np.argmin(losses)) < len(losses)
    save(stopped, tmp_path / "stopped")
    assert HistoryDisplay.from_estimator(load(tmp_path / "stopped")).best_epoch is None  # files lack it


def test_axes_of_ones_own_and_styles():
    regressor = ECOptRegressor(max_epochs=3, random_state=0).fit(X[:, :3], X[:, 3])
    ax = plt.subplots()[1]
    display = HistoryDisplay.from_estimator(regressor, ax=ax, color="C3", marker=None)
    assert display.axes_ == [ax] and display.lines_["train_loss"].get_color() == "C3"
    assert not display.scores and ax.get_xlabel() == "epoch"


def test_training_that_went_on_is_one_curve():
    classifier = ECOptClassifier(max_epochs=2, random_state=0).fit(X, y)
    classifier.partial_fit(X, y)
    display = HistoryDisplay.from_estimator(classifier)
    assert display.epochs == [*range(1, len(classifier.history) + 1)] and len(display.epochs) > 2


def test_columns_that_only_some_epochs_have_leave_gaps():
    display = HistoryDisplay([1, 2, 3], {"train_loss": [3.0, 2.0, 1.0]}, {"valid_acc": [None, 0.5, None]}).plot()
    np.testing.assert_array_equal(display.lines_["valid_acc"].get_ydata(), [np.nan, 0.5, np.nan])


def test_what_has_no_history_is_refused():
    with pytest.raises(TypeError, match="DummyClassifier, and no skorch net"):
        HistoryDisplay.from_estimator(make_pipeline(DummyClassifier()).fit(X, y))
    with pytest.raises(NotFittedError):
        HistoryDisplay.from_estimator(ECOptClassifier())


def test_ticks_are_whole_epochs():
    for n in (1, 2, 3):
        display = HistoryDisplay([*range(1, n + 1)], {"train_loss": [1.0] * n}, {}).plot()
        ticks = display.axes_[0].get_xticks()
        assert all(tick == int(tick) for tick in ticks)
