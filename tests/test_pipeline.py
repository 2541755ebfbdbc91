"""The whole: pipelines, searches with workers, caches, and scikit-learn's tools on lazy arrays."""

import inspect
import os
import pickle
import re
import subprocess
import sys
import textwrap

import joblib
import numpy as np
import pytest
import sklearn
import torch
from asserts import is_mapped, random_state_untouched, untouched
from nets import CountsCalls, Overflows
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score, train_test_split
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradspace import ECOptClassifier, ECOptRegressor, GradientFeaturizer, GradNetClassifier
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.gradients import GradientArray
from sklearn_gradspace.modules import MLP


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split((X / 16).astype(np.float32), y, train_size=400, test_size=300, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def net(digits):
    return (
        NetClassifier(MLP, module__hidden_layer_sizes=(16,), max_epochs=3, random_state=0)
        .fit(digits[0], digits[2])
        .module_
    )


def pipeline(net, **gradnet):
    return make_pipeline(GradientFeaturizer(net), GradNetClassifier(random_state=0, **gradnet))


def test_the_two_line_start_beats_the_base_net_it_comes_from(digits, net):
    X, X_test, y, y_test = digits
    with untouched(net), random_state_untouched():
        score = (
            make_pipeline(GradientFeaturizer(net), GradNetClassifier(random_state=0)).fit(X, y).score(X_test, y_test)
        )
    with torch.no_grad():
        base = (net(torch.from_numpy(X_test)).argmax(1).numpy() == y_test).mean()
    assert score > base + 0.02


def test_grid_search_over_both_halves_with_workers(digits, net):
    X, _, y, _ = digits
    labels = np.array([f"digit {label}" for label in range(10)])[y]
    grid = {"gradientfeaturizer__percentile": [15, 100], "gradnetclassifier__regularization": [0, 1e-4]}
    searches = [
        GridSearchCV(pipeline(net, max_epochs=2), grid, cv=2, n_jobs=n_jobs, error_score="raise").fit(X, labels)
        for n_jobs in (1, 2)
    ]
    np.testing.assert_array_equal(*(search.cv_results_["mean_test_score"] for search in searches))
    assert searches[1].best_estimator_[0].net is net
    assert set(searches[1].predict(X)) <= set(labels)


def test_a_class_missing_in_a_fold(digits, net):
    X, _, y, _ = digits
    rows = np.argsort(y[:90], kind="stable")
    scores = cross_val_score(pipeline(net, max_epochs=2), X[rows], y[rows], cv=KFold(3), error_score="raise")
    assert np.isfinite(scores).all()


def test_scikit_learns_tools_take_lazy_arrays(digits, net):
    X, _, y, _ = digits
    lazy = GradientFeaturizer(net).fit_transform(X)
    train, test, y_train, y_test = train_test_split(lazy, y, random_state=0)
    assert isinstance(train, GradientArray) and len(train) + len(test) == len(lazy)
    classifier = GradNetClassifier(random_state=0, max_epochs=2)
    predicted = cross_val_predict(classifier, lazy, y, cv=3, n_jobs=2)
    np.testing.assert_array_equal(predicted, cross_val_predict(classifier, lazy, y, cv=3))
    assert classifier.fit(train, y_train).score(test, y_test) > 0.5


@pytest.mark.skipif(os.environ.get("SCIPY_ARRAY_API") != "1", reason="SCIPY_ARRAY_API is not set")
def test_lazy_arrays_stay_lazy_under_array_api_dispatch(digits, net):
    X, _, y, _ = digits
    lazy = GradientFeaturizer(net).fit_transform(X)
    with sklearn.config_context(array_api_dispatch=True):
        train, _, y_train, _ = train_test_split(lazy, y, random_state=0)
        assert isinstance(train, GradientArray)
        scores = cross_val_score(GradNetClassifier(max_epochs=2), train, y_train, cv=2, error_score="raise")
    assert np.isfinite(scores).all()


def test_models_that_need_an_array_get_one(digits, net):
    X, X_test, y, y_test = digits
    featurizer = GradientFeaturizer(net, layers="layers.3.weight", scale=None, percentile=100, power=None)
    model = make_pipeline(featurizer, StandardScaler(), LogisticRegression(max_iter=500)).fit(X, y)
    assert model.score(X_test, y_test) > 0.8
    union = FeatureUnion([("gradients", featurizer), ("pixels", "passthrough")]).fit_transform(X)
    assert union.shape == (400, 10 * 160 + 64)
    sparse = make_pipeline(GradientFeaturizer(net, output="csr"), LogisticRegression(max_iter=500)).fit(X, y)
    assert sparse.score(X_test, y_test) > 0.8


def test_sample_weights_are_routed_through_the_pipeline(digits, net):
    X, _, y, _ = digits
    weight = (y < 5).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        weighted = make_pipeline(
            GradientFeaturizer(net), GradNetClassifier(random_state=0, max_epochs=5).set_fit_request(sample_weight=True)
        ).fit(X, y, sample_weight=weight)
    assert (weighted.predict(X) < 5).mean() > 0.95


def test_a_cached_step_is_computed_once_across_clones_and_copies(digits, net, tmp_path):
    X, _, y, _ = digits
    memory = joblib.Memory(tmp_path, verbose=0)
    fitted = NetClassifier(MLP, max_epochs=1, random_state=0).fit(X, y)
    for first in (net, fitted):
        for model_net in (first, first, pickle.loads(pickle.dumps(first))):
            featurizer = GradientFeaturizer(model_net, output="dense", layers="layers.3.weight")
            cached = make_pipeline(featurizer, LogisticRegression(max_iter=500), memory=memory)
            sklearn.base.clone(cached).fit(X, y)
    assert len(list(tmp_path.rglob("output.pkl"))) == 2


def test_a_fitted_pipeline_survives_joblib(digits, net, tmp_path):
    X, X_test, y, _ = digits
    model = pipeline(net, max_epochs=2).fit(X, y)
    joblib.dump(model, tmp_path / "model.joblib")
    np.testing.assert_array_equal(
        joblib.load(tmp_path / "model.joblib").predict_proba(X_test), model.predict_proba(X_test)
    )


def test_a_fitted_pipeline_is_pickled_with_its_device(digits, net, device):
    X, X_test, y, _ = digits
    model = make_pipeline(GradientFeaturizer(net, device=device), GradNetClassifier(max_epochs=1, random_state=0)).fit(
        X, y
    )
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(twin.predict_proba(X_test), model.predict_proba(X_test), rtol=1e-5)
    assert next(twin[-1].module_.parameters()).device.type == device.type
    assert twin[0].transform(X_test).view().device.type == device.type


def test_a_net_refitted_in_each_fold(digits):
    X, _, y, _ = digits

    def train(X, y):
        return NetClassifier(MLP, max_epochs=3, random_state=0).fit(X, y)

    scores = cross_val_score(pipeline(train, max_epochs=3), X, y, cv=2, error_score="raise")
    assert scores.min() > 0.6


def test_buffers_of_the_users_net_are_not_written_to_not_even_in_workers(digits):
    X, _, y, _ = digits
    net = CountsCalls()
    scores = cross_val_score(pipeline(net, max_epochs=1), X, y, cv=2, n_jobs=2, error_score="raise")
    GradientFeaturizer(net).fit(X)
    assert np.isfinite(scores).all() and not net.calls.any()


def test_a_large_nets_weights_are_mapped_into_workers(digits):
    X, _, _, _ = digits
    net = MLP(64, 10, (2000, 1000))
    featurizer = GradientFeaturizer(net, layers="layers.5.weight").fit(X)
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(is_mapped)(featurizer) for _ in range(2))
    assert found == [True, True]


def test_rows_that_are_not_finite_are_counted_from_the_first_of_all():
    X, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    model = make_pipeline(GradientFeaturizer(Overflows()), GradNetClassifier(max_epochs=1, batch_size=16)).fit(X, y)
    X[50] = 20
    for predict in (model.predict, model.predict_proba):
        with pytest.raises(ValueError, match=r"infinity for rows \[50\]"):
            predict(X)
    with pytest.raises(ValueError, match=r"infinity for rows \[50\]"):
        model.fit(X, y)


class Deeper(ECOptClassifier):
    """A user's, with a parameter of its own."""

    def __init__(self, hidden_layer_sizes=(50, 50), *, note=None, **kwargs):
        super().__init__(hidden_layer_sizes, **kwargs)
        self.note = note


class Same(Deeper):
    """A user's, with none."""


@pytest.mark.parametrize("kind", [GradNetClassifier, ECOptClassifier, ECOptRegressor, Deeper, Same])
def test_only_what_was_set_is_shown(kind):
    pipeline = make_pipeline(StandardScaler(), kind(lr=0.5, callbacks__print_log=None))
    assert repr(pipeline[-1]) == f"{kind.__name__}(callbacks__print_log=None, lr=0.5)"
    assert "".join(repr(pipeline).split()) == (
        f"Pipeline(steps=[('standardscaler',StandardScaler()),('{kind.__name__.lower()}',"
        f"{kind.__name__}(callbacks__print_log=None,lr=0.5))])"
    )
    one_set = r'<tr class="user-set">.*?<td class="param">\s*(?:<a.*?>)?\s*(\w+)'
    shown = re.findall(one_set, pipeline._repr_html_(), re.DOTALL)
    assert shown == ["steps", "lr", "callbacks__print_log"], shown
    assert "iterator_train" not in inspect.signature(kind).parameters


def test_nets_of_the_main_module_travel_to_workers(tmp_path):
    """A script whose module class lives in ``__main__``, as users write them."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import numpy as np, torch
            from joblib import parallel_config
            from sklearn.model_selection import cross_val_score
            from sklearn.pipeline import make_pipeline
            from sklearn_gradspace import ECOptClassifier, ECOptRegressor, GradientFeaturizer, GradNetClassifier

            class Net(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.linear = torch.nn.Linear(4, 3)

                def forward(self, x):
                    return self.linear(x)

            if __name__ == "__main__":
                X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
                lazy = GradientFeaturizer(Net()).fit_transform(X)
                fitted = GradNetClassifier(max_epochs=1).fit(lazy, y)
                with parallel_config("loky", n_jobs=2):
                    print(cross_val_score(make_pipeline(GradientFeaturizer(Net()), GradNetClassifier()), X, y).shape)
                    print(cross_val_score(fitted, lazy, y).shape)
            """
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(5,)", "(5,)"]
