"""Searches and passes on joblib's backends have the results of one process, also where a worker dies."""

import os
import signal
import threading
import time

import joblib
import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier

GRID = {"gradientfeaturizer__percentile": [15, 100], "gradnetclassifier__regularization": [0, 1e-2]}
X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore:.*unclosed")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def client():
    """Two worker processes on this machine, started once."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(params=["threading", "loky", "dask"])
def backend(request):
    if request.param == "dask":
        request.getfixturevalue("client")
    with parallel_config(request.param, n_jobs=2):
        yield request.param


def search(net, max_epochs=2, **options):
    model = make_pipeline(GradientFeaturizer(net), GradNetClassifier(random_state=0, max_epochs=max_epochs))
    return GridSearchCV(model, GRID, cv=2, refit=False, error_score="raise", **options)


def scores(search):
    results = search.fit(X, y).cv_results_
    return np.stack([results[f"split{i}_test_score"] for i in range(2)])


def test_a_search(net, backend):
    context = joblib.parallel.get_active_backend()[0]
    with parallel_config("sequential"):
        expected = scores(search(net))
    with parallel_config(context, n_jobs=2):
        found = scores(search(net))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("output", ["dense", "csr", "memmap"])
def test_jobs_of_the_featurizer(net, backend, output, tmp_path):
    featurizer = GradientFeaturizer(net, batch_size=20)
    expected = featurizer.fit(X).transform(X).toarray()
    featurizer.set_params(output=output, output_dir=tmp_path if output == "memmap" else None, n_jobs=2)
    found = featurizer.fit_transform(X)
    np.testing.assert_array_equal(found.toarray() if output == "csr" else found, expected)


def test_a_worker_process_has_its_share_of_threads(client):
    """Two loky workers on two cores have a thread each; a user's number is taken, and dask's workers have one."""

    def threads_of_torch():  # in here, since workers do not find the module of the tests
        return torch.get_num_threads(), torch.mm(torch.ones(300, 300), torch.ones(300, 300))[0, 0].item()

    share = max(1, joblib.cpu_count() // 2)
    tasks = [joblib.delayed(threads_of_torch)() for _ in range(2)]
    given = int(os.environ.get("OMP_NUM_THREADS", share))
    with parallel_config("loky", n_jobs=2):
        assert {n for n, _ in joblib.Parallel(timeout=120)(tasks)} == {given}
    with parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
        assert {n for n, _ in joblib.Parallel(timeout=120)(tasks)} == {1}
    assert set(client.run(lambda: __import__("torch").get_num_threads()).values()) == {1}


def test_threads_after_a_computation_in_the_parent_do_not_deadlock(net):
    torch.mm(torch.ones(300, 300), torch.ones(300, 300))  # the parent's threads are there
    with parallel_config("loky", n_jobs=2):
        scores(search(net))


def test_a_worker_that_is_killed_costs_no_result(net, client):
    """Data that all workers hold outlive each of them."""
    with parallel_config("sequential"):
        expected = scores(search(net, 20))

    def kill_one():
        scheduler = client.cluster.scheduler
        while sum(task.state == "memory" for task in scheduler.tasks.values()) < 4:  # X, y, and two of the fits
            time.sleep(0.01)
        processing = client.processing()
        victim = max(processing, key=lambda address: len(processing[address]))
        os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
        killed.append(victim)

    killed, killer = [], threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with parallel_config("dask", scatter=[X, y]):
        found = scores(search(net, 20))
    killer.join(60)
    assert killed
    np.testing.assert_array_equal(found, expected)


def test_features_on_disk_in_a_search(net, tmp_path):
    grid = {"gradnetclassifier__regularization": [0, 1e-2]}
    models = [
        make_pipeline(
            GradientFeaturizer(net, output=output, output_dir=directory),
            GradNetClassifier(random_state=0, max_epochs=2),
        )
        for output, directory in (("lazy", None), ("memmap", tmp_path))
    ]
    searches = [GridSearchCV(model, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y) for model in models]
    np.testing.assert_allclose(*(s.cv_results_["mean_test_score"] for s in searches))
    assert len(list(tmp_path.glob("*.npy"))) == 2 * 2 + 1  # training and test rows of each fold, and all
    features = GradientFeaturizer(net, output="memmap", output_dir=tmp_path).fit_transform(X)
    of_features = [
        GridSearchCV(
            GradNetClassifier(random_state=0, max_epochs=2), {"regularization": [0, 1e-2]}, cv=2, n_jobs=n
        ).fit(features, y)
        for n in (1, 2)
    ]
    assert of_features[0].best_estimator_.n_labels_ == 3 and len(of_features[1].best_estimator_.blocks_) == 2
    np.testing.assert_array_equal(*(s.cv_results_["mean_test_score"] for s in of_features))
    assert LogisticRegression(max_iter=500).fit(features, y).score(features, y) > 0.6


def test_features_on_disk_as_a_data_frame(net, tmp_path):
    featurizer = GradientFeaturizer(net, output="memmap", output_dir=tmp_path).set_output(transform="pandas")
    frame = featurizer.fit_transform(X)
    assert list(frame.columns) == list(featurizer.get_feature_names_out())
    np.testing.assert_array_equal(frame, GradientFeaturizer(net, output="dense").fit_transform(X))


@pytest.mark.parametrize("output_dir", [None, 3])
def test_output_to_disk_needs_a_directory(net, output_dir):
    with pytest.raises(ValueError, match=r"output='memmap' needs a directory for its files, but output_dir="):
        GradientFeaturizer(net, output="memmap", output_dir=output_dir).fit(X)


@pytest.mark.parametrize("device", ["cpu:0", "cpu:1"])
def test_a_device_by_its_number(net, device):
    expected = GradientFeaturizer(net, output="dense").fit_transform(X)
    featurizer = GradientFeaturizer(net, output="dense", device=device)
    np.testing.assert_array_equal(featurizer.fit_transform(X), expected)
