"""A pass over batches gives their results in order, by one job or more."""

import re
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from cases import BY_NAME
from nets import Overflows

from sklearn_gradspace import GradientFeaturizer
from sklearn_gradspace.gradients import (
    FactoredGradients,
    GradientArray,
    GradientEngine,
    GradientFeatures,
    GradientGram,
    NotFiniteError,
    _engine,
    over_batches,
)
from sklearn_gradspace.gradients._passes import slices

NAMES = ["mlp of two layers", "conv2d twice", "layer norm", "borrowed weight", "lstm"]


def make_array(name, device, batch_size=2, repeats=4):
    case = BY_NAME[name]
    engine = GradientEngine(case.net(), case.X, "all", device)
    X = np.concatenate([case.X + 0.1 * i for i in range(repeats)])
    return GradientArray(GradientFeatures(engine, 50, batch_size=batch_size), X)


@pytest.mark.parametrize("n", [0, 1, 6, 7])
@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_slices_are_consecutive_and_end_with_the_rows(n, step):
    found = [range(n)[rows] for rows in slices(n, step)]
    assert [row for rows in found for row in rows] == list(range(n))
    assert all(len(rows) == step for rows in found[:-1]) and all(0 < len(rows) <= step for rows in found)
    assert all(rows.stop <= n for rows in slices(n, step))


@pytest.mark.parametrize("name", NAMES)
def test_two_jobs_equal_one(name, device):
    array = make_array(name, device)
    np.testing.assert_array_equal(array.toarray(n_jobs=2), array.toarray(n_jobs=1), strict=True)
    one, two = array.tocsr(n_jobs=1), array.tocsr(n_jobs=2)
    assert (one != two).nnz == 0 and one.shape == two.shape


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
@pytest.mark.parametrize("batch_size, n_batches", [(1, 20), (7, 3), (20, 1), (100, 1)])
def test_batches_are_consecutive_and_results_in_order(n_jobs, batch_size, n_batches, device):
    array = make_array("linear", device, batch_size)
    parts = list(over_batches(lambda batch: batch.X, array, n_jobs))
    assert len(parts) == n_batches
    np.testing.assert_array_equal(np.concatenate(parts), array.X)


def test_one_job_computes_when_it_is_asked(device):
    seen = []
    results = over_batches(lambda batch: seen.append(len(batch)), make_array("linear", device, 5), 1)
    assert seen == []
    next(results)
    assert seen == [5]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_errors_arrive(n_jobs, device):
    array = make_array("linear", device)
    array.X[7, 0] = np.nan
    with pytest.raises(ValueError, match=r"rows \[7\]: its gradients"):
        array.toarray(n_jobs=n_jobs)


@pytest.mark.parametrize("verbose", [0, 1])
def test_the_bar_shows_only_if_asked(verbose, device, capfd):
    list(over_batches(len, make_array("linear", device, 5), 1, verbose, what="counting"))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert ("counting: 100%" in shown.err and "4/4" in shown.err) if verbose else shown.err == ""


def test_no_rows_no_batches(device):
    assert list(over_batches(len, make_array("linear", device)[:0])) == []


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("batch_size", [5, 100])
def test_rows_that_are_not_finite_are_counted_from_the_first_of_all(batch_size, n_jobs, device):
    X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    array = GradientFeaturizer(Overflows(), batch_size=batch_size, device=device).fit(X).transform(X)
    X[[23, 24]] = 20
    array = GradientArray(array.features, X)
    with pytest.raises(ValueError, match=re.escape("infinity for rows [23, 24]: its")):
        list(over_batches(lambda batch: batch.view(), array, n_jobs=n_jobs))
    with pytest.raises(ValueError, match=re.escape("infinity for rows [23, 24]: its")):
        array.features.engine(X, batch_size=batch_size)


@pytest.fixture
def overflowing(device):
    """Features on a device, rows, and the same rows of which two, in two batches of five, have infinite outputs."""
    X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    features = GradientFeaturizer(Overflows(), batch_size=5, scale=None, percentile=100, power=None, device=device)
    bad = X.copy()
    bad[[23, 31]] = 20
    return features.fit(X).transform(X).features, X, bad


def test_outputs_are_looked_at_in_the_end_or_batch_by_batch(overflowing, device):
    features, X, bad = overflowing
    rows = "[23]" if device.type == "cpu" else "[23, 31]"
    for compute in (
        lambda: features.engine(bad, batch_size=5),
        lambda: features(bad, torch.zeros(40, dtype=torch.int64)),
        lambda: list(GradientArray(features, bad).factored(lambda part: features.engine(X[:9]))),
    ):
        with pytest.raises(NotFiniteError, match=re.escape(f"for rows {rows}: its")):
            compute()
        assert features.engine(X).isfinite().all()  # nothing of it stays


def test_outputs_of_a_pass_by_itself_are_looked_at_at_once(overflowing):
    features, X, bad = overflowing
    with pytest.raises(NotFiniteError, match=re.escape("for rows [23, 31]: its")):
        FactoredGradients(features.engine, bad)
    assert features.engine(X).isfinite().all()


def test_memory_that_runs_out_in_a_call_within_another_loses_no_look(overflowing, device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("on a CPU the outputs of each pass are looked at before the call within it")
    features, X, bad = overflowing
    outcomes = [MemoryError(), *[DEFAULT] * 2]
    monkeypatch.setattr(_engine, "write_gradients", Mock(side_effect=outcomes, wraps=_engine.write_gradients))
    looked = GradientArray(features, bad[23:25]).factored(lambda part: features.engine(X[:2]))
    with (
        pytest.warns(RuntimeWarning, match="memory ran out"),
        pytest.raises(NotFiniteError, match=re.escape("for rows [0]: its")),
    ):
        list(looked)


@pytest.mark.parametrize("row", [23, 31])
def test_outputs_and_kernels_count_rows_from_the_first_of_all(overflowing, row):
    features, X, bad = overflowing
    bad = np.where(np.arange(40)[:, None] == row, bad, X)
    gram = GradientGram(features.engine, working_memory=2**11)
    for compute in (
        GradientArray(features, bad).outputs,
        lambda: gram.outputs(bad),
        lambda: gram(bad),
        lambda: gram(bad, X),
        lambda: gram(X, bad),
    ):
        with pytest.raises(NotFiniteError, match=re.escape(f"for rows [{row}]: its")):
            compute()
