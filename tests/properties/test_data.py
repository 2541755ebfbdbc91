"""Any samples and labels work or are refused with words that say what to do."""

from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties.calls import estimators, fails_well, nothing_changes, small_net, use
from scipy import sparse
from sklearn.base import clone

X = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
y = np.arange(12) % 3


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def mapped(array):
    """Return an array that lies in a file, which is gone."""
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", array)
        return np.load(Path(folder) / "rows.npy", mmap_mode="r")


def holding(value):
    def put(array):
        array = array.copy()
        array[-1:, -1:] = value
        return array

    return put


FORMS = {
    "as it is": lambda X: X,
    **{
        kind: lambda X, kind=kind: (3 * X).astype(kind)
        for kind in ("f2", "f8", ">f4", "g", "i1", "i8", "?", "O", "U", "c8")
    },
    "positive": lambda X: np.abs(3 * X).astype(np.uint8),
    "dates": lambda X: X.astype("M8[s]"),
    "Fortran": np.asfortranarray,
    "every second": lambda X: np.repeat(X, 2, 1)[:, ::2],
    "backwards": lambda X: X[::-1],
    "read-only": read_only,
    "mapped": mapped,
    "masked": lambda X: np.ma.masked_array(X, X > 1),
    "NaN": holding(np.nan),
    "infinity": holding(np.inf),
    "huge": lambda X: X * np.float32(1e30),
    "huge in double": lambda X: 1e300 * X.astype(float),
    "tiny": lambda X: X * np.float32(1e-38),
    "zero": np.zeros_like,
    "one": np.ones_like,
    "list": lambda X: X.tolist(),
    "tuple": lambda X: tuple(map(tuple, X.tolist())),
    "frame": pd.DataFrame,
    "named frame": lambda X: pd.DataFrame(X, columns=list("abcdef")[: X.shape[1]]),
    "frame of missing integers": lambda X: pd.DataFrame((3 * X).astype(int)).astype("Int64").replace(0, pd.NA),
    "series": lambda X: pd.Series(X.ravel()),
    "decimals": lambda X: np.array([[Decimal(1)] * 6] * len(X)),
    "CSR": sparse.csr_array,
    "COO": sparse.coo_matrix,
    "tensor": torch.tensor,
    "bfloat16": lambda X: torch.tensor(X).bfloat16(),
    "differentiated": lambda X: torch.tensor(X, requires_grad=True),
    "three axes": lambda X: X[:, None],
    "one axis": np.ravel,
    "no axis": lambda X: np.float32(1),
    "nothing": lambda X: None,
    "ragged": lambda X: [[1, 2], [3]],
    "words": lambda X: [["a", "b"]] * len(X),
    "dict": lambda X: {"X": X},
    "generator": lambda X: (row for row in X),
}
LABELS = {
    "as they are": lambda y: y,
    "negative": lambda y: y - 5,
    "far apart": lambda y: y.astype(np.int64) * 2**40,
    "strings": lambda y: np.array(["a", "b", "c"])[y],
    "objects": lambda y: np.array(["a", "b", "c"], object)[y],
    "bytes": lambda y: np.array([b"a", b"b", b"c"])[y],
    "true or false": lambda y: y > 0,
    "floats": lambda y: y.astype(float),
    "halves": lambda y: y + 0.5,
    "one class": lambda y: 0 * y,
    "all different": lambda y: np.arange(len(y)),
    "one missing": lambda y: np.where(y == 1, np.nan, y),
    "none missing": lambda y: np.where(y == 1, None, y),
    "mixed": lambda y: np.array(["a", 1, 2.0], object)[y],
    "too few": lambda y: y[:-1],
    "too many": lambda y: np.r_[y, 0],
    "empty": lambda y: [],
    "a column": lambda y: y[:, None],
    "multilabel": lambda y: np.eye(3)[y],
    "three axes": lambda y: y[:, None, None],
    "list": lambda y: y.tolist(),
    "series": lambda y: pd.Series(y, index=range(5, 5 + len(y))),
    "categories": lambda y: pd.Series(pd.Categorical(np.array(["a", "b", "c"])[y])),
    "missing integers": lambda y: pd.Series(y).astype("Int64").replace(0, pd.NA),
    "tensor": torch.tensor,
    "complex": lambda y: y + 1j,
    "dates": lambda y: y.astype("M8[D]"),
    "a number": lambda y: 3,
    "a word": lambda y: "abc",
    "ragged": lambda y: [[1], [2, 3]],
    "dict": lambda y: {0: 1},
    "nothing": lambda y: None,
}


@pytest.mark.parametrize("name", estimators(None))
@given(
    st.sampled_from([*FORMS]),
    st.sampled_from(["as they are"] * 2 + [*LABELS]),
    st.sampled_from([12, 12, 12, 0, 1, 2, 3]),
    st.sampled_from([6, 6, 6, 5, 1, 0]),
)
def test_any_data(name, form, labels, n, n_features):
    net = small_net()
    samples, targets = FORMS[form](X[:n, :n_features]), LABELS[labels](y[:n])
    with nothing_changes(net, X, y, *(of for of in (samples, targets) if isinstance(of, np.ndarray))), fails_well():
        use(clone(estimators(net)[name]), samples, targets)


@pytest.mark.parametrize("name", ["featurizer", "kernel", "kernel classifier", "gradnet", "class space classifier"])
@given(st.sampled_from([*FORMS]), st.sampled_from([12, 0, 1, 3]), st.sampled_from([6, 6, 5, 1]))
def test_any_new_data(name, form, n, n_features):
    if form == "dict" and not n:
        return  # skorch's way to name arguments
    net = small_net()
    fitted = clone(estimators(net)[name]).fit(X, y)
    samples = FORMS[form](X[:n, :n_features])
    for method in ("transform", "predict", "predict_proba"):
        if hasattr(fitted, method):
            with nothing_changes(net, X, y), fails_well():
                values = getattr(fitted, method)(samples)
                values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
                assert len(values) == n and (values.dtype.kind != "f" or np.isfinite(values).all())
