"""The lazy array is indexed as the matrix that it stands for, and computes nothing before that."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from asserts import random_state_untouched, untouched
from cases import BY_NAME
from sklearn.utils import _safe_indexing

from sklearn_gradspace.gradients import GradientArray, GradientEngine, GradientFeatures, ScaleStatistics, _engine

N = 12


def make_array(name="mlp of two layers", dtype=torch.float64, device=None, percentile=50):
    case = BY_NAME[name]
    engine = GradientEngine(case.net().to(dtype), case.X, "all", device)
    X = np.concatenate([case.X, case.X + 0.5, case.X - 0.5])[:N]
    array = GradientArray(GradientFeatures(engine, percentile, batch_size=5), X)
    statistics = ScaleStatistics("maxabs", array.blocks)
    scaler = statistics.merge(statistics.of(array)).scaler(engine.feature_dtype)
    return GradientArray(GradientFeatures(engine, percentile, scaler, 0.5, batch_size=5), X)


@pytest.fixture
def array(device):
    return make_array(device=device)


def test_is_described_without_being_computed(array, monkeypatch):
    monkeypatch.setattr(GradientEngine, "__call__", None)
    n_params = 6 * 5 + 5 + 5 * 3 + 3
    assert array.shape == (N, 3 * n_params) and array.ndim == 2 and len(array) == N
    assert array.n_labels == 3 and sum(block.size for block in array.blocks) == n_params
    assert array.size == N * 3 * n_params and array.nbytes == array.size * 8 and array.dtype == np.float64
    assert repr(array).startswith(f"<GradientArray of shape ({N}, {3 * n_params}), 3 labels, float64")
    assert len(array[2:5]) == 3 and [len(batch) for batch in array.batches()] == [5, 5, 2]


@pytest.mark.parametrize("dtype, expected", [
    (torch.float64, np.float64), (torch.float32, np.float32), (torch.bfloat16, np.float32), (torch.float16, np.float32)
], ids=str)  # fmt: skip
def test_dtype_is_that_of_the_entries(dtype, expected, device):
    array = make_array("linear", dtype, device)
    assert array.dtype == expected
    assert {array[0].dtype, array.toarray().dtype, array.tocsr().dtype, np.asarray(array).dtype} == {array.dtype}


@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d twice", "lstm", "called twice"])
def test_toarray_tocsr_rows_and_views_are_equal(name, device):
    array = make_array(name, device=device)
    dense, csr = array.toarray(), array.tocsr()
    np.testing.assert_allclose(csr.toarray(), dense, rtol=0, atol=0)
    assert csr.format == "csr" and csr.nnz == np.count_nonzero(dense) < 0.6 * dense.size
    for other in (np.stack([array[i] for i in range(N)]), array.view().flatten(1).cpu().numpy(), np.asarray(array)):
        np.testing.assert_allclose(other, dense, rtol=1e-7, atol=1e-7)
    labels = torch.arange(N) % array.n_labels
    n_params = array.shape[1] // array.n_labels
    one = np.stack([row.reshape(-1, n_params)[k] for row, k in zip(dense, labels.numpy())])
    np.testing.assert_allclose(array.view(labels).cpu().numpy(), one, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("part_bytes", [1, 2**24])
def test_parts_are_those_of_the_whole(array, part_bytes, monkeypatch):
    monkeypatch.setitem(_engine._PART_BYTES, array.compute_device.type, part_bytes)
    labels = torch.arange(N) % array.n_labels
    for given, whole in ((None, array.view()), (labels, array.view(labels).unsqueeze(1))):
        parts = [part.clone() for part in array.parts(given)]
        assert max(map(len, parts)) == (1 if part_bytes == 1 else array.features.batch_size)
        np.testing.assert_allclose(torch.cat(parts).cpu(), whole.cpu(), rtol=1e-7, atol=1e-7)


ROWS = {
    "slice": slice(2, 9, 3),
    "slice from the end": slice(-3, None),
    "slice backwards": slice(None, None, -1),
    "empty slice": slice(3, 3),
    "integers": np.array([4, 0, -1, 4]),
    "int32": np.array([4, 0], np.int32),
    "list": [3, 1],
    "empty list": [],
    "empty integers": np.array([], int),
    "boolean": np.arange(N) % 3 == 0,
    "boolean list": [i % 3 == 0 for i in range(N)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_stay_lazy_and_are_those_of_the_matrix(array, rows):
    expected = array.toarray()[rows]
    for taken in (array[rows], array[rows, ...], array[rows, :], _safe_indexing(array, rows)):
        assert isinstance(taken, GradientArray) and taken.shape == expected.shape
        np.testing.assert_allclose(taken.toarray(), expected, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(taken.tocsr().toarray(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("row", [0, 7, -1, -N, np.int64(3), np.array(3)], ids=repr)
@pytest.mark.parametrize("columns", [slice(None), 5, -1, slice(3, 30), [1, 2, 1]], ids=str)
def test_one_row_is_an_ndarray(array, row, columns):
    expected = array.toarray()[row, columns]
    np.testing.assert_allclose(array[row, columns], expected, rtol=1e-7, atol=1e-7, strict=True)
    if columns == slice(None):
        np.testing.assert_allclose(array[row], expected, rtol=1e-7, atol=1e-7, strict=True)


@pytest.mark.parametrize("columns", [4, -2, slice(3, 40, 2), [0, 5], np.arange(159) % 50 == 0], ids=str)
@pytest.mark.parametrize("rows", [slice(None), slice(1, 6)], ids=str)
def test_columns_are_computed(array, rows, columns):
    np.testing.assert_allclose(array[rows, columns], array.toarray()[rows, columns], rtol=1e-7, atol=1e-7, strict=True)


def test_rows_and_columns_in_pairs_are_those_of_numpy(array):
    np.testing.assert_allclose(array[[0, 1], [2, 3]], array.toarray()[[0, 1], [2, 3]], rtol=1e-7, strict=True)


OUTSIDE = [N, -N - 1, [0, N], (0, 10**6), (slice(None), 10**6), np.ones(N + 1, bool), (0, 0, 0)]


@pytest.mark.parametrize("index", OUTSIDE, ids=str)
def test_index_out_of_bounds(array, index):
    with pytest.raises(IndexError):
        array[index]


def test_asarray_refuses_what_is_too_large(array, monkeypatch):
    monkeypatch.setattr(GradientArray, "max_bytes", array.nbytes)
    assert np.asarray(array, dtype=np.float32).dtype == np.float32
    monkeypatch.setattr(GradientArray, "max_bytes", array.nbytes - 1)
    for compute in (np.asarray, np.array, lambda a: a[:, 0]):
        with pytest.raises(MemoryError, match=rf"all {N} x 159 gradient features at once.*GiB.*output='csr'"):
            compute(array)
    assert array.toarray().nbytes == array.nbytes
    assert np.asarray(array[:-1]).shape == (N - 1, 159)


def test_what_does_not_fit_is_refused(array, monkeypatch):
    monkeypatch.setattr("sklearn_gradspace.gradients._memory.available_bytes", lambda: 1000)
    for compute, what in ((array.toarray, "a dense array"), (array.tocsr, "a sparse array")):
        with pytest.raises(MemoryError, match=rf"{what} of shape \({N}, 159\)"):
            compute()


def test_no_copy_cannot_be_had(array):
    with pytest.raises(ValueError):
        np.asarray(array, copy=False)


def test_pickle_and_hash(array):
    twin = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(twin.toarray(), array.toarray(), strict=True)
    again = make_array(device=array.compute_device)
    assert joblib.hash(twin) == joblib.hash(array) == joblib.hash(again)
    assert joblib.hash(array[:-1]) != joblib.hash(array)
    assert joblib.hash(make_array(device=array.compute_device, percentile=49)) != joblib.hash(array)


def test_nothing_changes_while_it_computes(array):
    X = array.X.copy()
    with untouched(array.features.engine.net), random_state_untouched():
        array.toarray(), array.tocsr(), array[3], array[:, 2]
    np.testing.assert_array_equal(array.X, X)


def test_augmented_rows_are_those_of_the_augmented_data(array):
    def jitter(X, generator):
        return X + generator.normal(size=X.shape)

    augmented = GradientArray(array.features, array.X, jitter)[1:4].augmented(np.random.default_rng(0))
    expected = array.X[1:4] + np.random.default_rng(0).normal(size=array.X[1:4].shape)
    np.testing.assert_array_equal(augmented.X, expected.astype(array.X.dtype))
    assert augmented.augment is None and augmented.augmented(np.random.default_rng(0)) is augmented


def test_augmentation_may_write_over_its_rows(array):
    def shift(X, generator):
        X += 1
        return X

    X = array.X.copy()
    augmented = GradientArray(array.features, array.X, shift).augmented(np.random.default_rng(0))
    np.testing.assert_array_equal(array.X, X)
    np.testing.assert_array_equal(augmented.X, X + 1)


def test_augmentation_that_changes_the_shape_is_refused(array):
    with pytest.raises(ValueError, match="augment returned rows of shape"):
        GradientArray(array.features, array.X, lambda X, generator: X[:, :1]).augmented(np.random.default_rng(0))


def test_outputs_are_those_of_the_net(array):
    torch.testing.assert_close(array.outputs(), array.features.engine.outputs(array.X))
