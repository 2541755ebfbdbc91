"""scikit-learn's callbacks see every fit, its epochs as well, beside skorch's; and nothing of them without them."""

import copy
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.callbacks import EpochScoring
from torch import nn

from sklearn_gradspace import (
    ECOptClassifier,
    ECOptRegressor,
    EdgeImportance,
    GradientFeaturizer,
    GradientKernel,
    GradientKernelClassifier,
    GradNetClassifier,
)

pytestmark = pytest.mark.filterwarnings("ignore:the base net's outputs, taken for")  # the net is not trained
callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")
X, y = load_iris(return_X_y=True)
X, labels = X.astype(np.float32), np.array(["a", "b", "c"])[y]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


class Recorder:
    """Remembers the tasks; handed on to estimators inside others where it has a depth."""

    def __init__(self, stop_at=None):
        self.tasks, self.n_open, self.stop_at = [], 0, stop_at

    def setup(self, estimator, context):
        self.n_open += 1

    def teardown(self, estimator, context):
        self.n_open -= 1

    def on_fit_task_begin(self, estimator, context):
        self.tasks.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context):
        self.tasks.append(("end", context.task_name))
        return len(self.tasks) // 2 == self.stop_at


ESTIMATORS = [
    (GradientFeaturizer(net()), 0),
    (GradientKernel(net()), 0),
    (GradientKernelClassifier(net()), 0),
    (EdgeImportance(net()), 0),
    (GradNetClassifier(max_epochs=3), 3),
    (ECOptClassifier(max_epochs=2), 2),
    (ECOptRegressor(max_epochs=2), 2),
]
every_estimator = pytest.mark.parametrize(
    "estimator, n_epochs", ESTIMATORS, ids=[type(e).__name__ for e, _ in ESTIMATORS]
)


@every_estimator
def test_every_fit_and_epoch_is_a_task(estimator, n_epochs):
    recorder = Recorder()
    twin = clone(clone(estimator).set_callbacks(recorder)).fit(X, y)
    epoch = [("begin", "epoch"), ("end", "epoch")]
    assert recorder.tasks == [("begin", "fit"), *epoch * n_epochs, ("end", "fit")] and recorder.n_open == 0
    assert not [name for name in vars(twin) if "ctx" in name or "teardown" in name or name == "_report"]
    pickle.loads(pickle.dumps(twin))


@every_estimator
def test_a_fit_that_fails_is_torn_down(estimator, n_epochs):
    recorder = Recorder()
    with pytest.raises(ValueError, match="NaN"):
        clone(estimator).set_callbacks(recorder).fit(np.full_like(X, np.nan), y)
    assert recorder.n_open == 0 and ("end", "fit") not in recorder.tasks


@every_estimator
def test_a_shallow_copy_is_the_estimator_on_the_same_net(estimator, n_epochs):
    fitted = clone(estimator).fit(X, y)
    twin = copy.copy(fitted)
    assert vars(twin).keys() == vars(fitted).keys()
    assert all(vars(twin)[name] is vars(fitted)[name] for name in vars(fitted))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_monitor_scores_each_epoch_and_changes_nothing(weighted):
    weight = np.linspace(0, 1, len(X)) if weighted else None
    model = GradNetClassifier(
        max_epochs=4, random_state=0, dropout=0.2, callbacks=[EpochScoring("accuracy", on_train=True)]
    )
    plain = clone(model).fit(X, labels, sample_weight=weight)
    monitor = callback.ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    fitted = model.set_callbacks(monitor).fit(X, labels, sample_weight=weight)
    np.testing.assert_array_equal(fitted.predict_proba(X), plain.predict_proba(X))
    log = monitor.get_logs().data
    assert [row["task_name"] for row in log] == ["fit", *["epoch"] * 4]
    if not weighted:
        assert log[0]["accuracy"] == log[-1]["accuracy"] == fitted.score(X, labels)
    assert all(np.isfinite(row["neg_log_loss"]) for row in log)
    assert len(fitted.history) == 4 and "accuracy" in fitted.history[-1]


def test_a_monitor_scores_what_is_no_net():
    monitor = callback.ScoringMonitor(scoring="accuracy")
    fitted = GradientKernelClassifier(net()).set_callbacks(monitor).fit(X, y)
    assert [row["accuracy"] for row in monitor.get_logs().data] == [fitted.score(X, y)]


def test_a_callback_may_stop_training():
    fitted = GradNetClassifier(max_epochs=9).set_callbacks(Recorder(stop_at=3)).fit(X, y)
    assert len(fitted.history) == 3


def test_early_stopping_is_seen_and_so_are_later_fits():
    recorder = Recorder()
    model = GradNetClassifier(max_epochs=50, early_stopping=True, n_iter_no_change=1, lr=1.0, random_state=0)
    model.set_callbacks(recorder).fit(X, y)
    n_epochs = len(model.history)
    assert n_epochs < 50
    assert recorder.tasks.count(("end", "epoch")) == recorder.tasks.count(("begin", "epoch")) == n_epochs
    recorder.tasks.clear()
    model.partial_fit(X, y)
    assert recorder.tasks == []  # scikit-learn's callbacks are of fits
    model.fit(X, y, epochs=2)
    assert recorder.tasks.count(("end", "epoch")) == 2


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_bars_and_monitors_in_a_search(n_jobs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    pytest.importorskip("rich")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    model = make_pipeline(
        GradientFeaturizer(net()), GradNetClassifier(max_epochs=2, random_state=0).set_callbacks(monitor)
    )
    grid = {"gradientfeaturizer__percentile": [50, 100]}
    plain = GridSearchCV(model, grid, cv=2).fit(X, labels)
    search = GridSearchCV(model, grid, cv=2, n_jobs=n_jobs)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(X, labels)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    shown = capsys.readouterr().out
    assert "GridSearchCV - fit" in shown and "GradNetClassifier - fit" in shown and "100%" in shown
    assert len([row for row in monitor.get_logs().data if row["task_name"] == "epoch"]) == 2 * 5


def test_a_scikit_learn_without_callbacks_is_no_trouble():
    program = """
        import sys
        import skorch, sklearn.linear_model, sklearn.pipeline  # which import it
        sys.modules["sklearn.callback"] = None
        import numpy as np
        from sklearn.base import clone
        from sklearn_gradspace import EdgeImportance, ECOptClassifier
        X, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
        net = ECOptClassifier(max_epochs=2).fit(X, y)
        print(len(net.history), hasattr(net, "set_callbacks"), len(clone(EdgeImportance(net)).fit(X, y).importances_))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False", "2"], done.stderr
