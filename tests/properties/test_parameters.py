"""Any value of any parameter works or is refused by name."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties.calls import estimators, fails_well, nothing_changes, small_net, use
from sklearn.base import clone

X = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
y = np.arange(12) % 3
NUMBERS = [0, 1, 2, -1, 0.5, 1.5, -0.5, np.nan, np.inf, -np.inf, 10**30, 1e-300, True, False, 1 + 1j, pd.NA]
ARRAYS = [np.float64(0.5), np.float32(0.1), np.int64(2), np.array(2), torch.tensor(1.0), np.array([1, 2]), X[:1, :1]]
WORDS = ["", "auto", "all", "layer", b"x"]
CONTAINERS = [[], (), {}, [1], ["a"], [None], {"a": 1}, {0: 1.0}, [[1, 2], [3]], set(), range(3), pd.Series([1.0, 2.0])]
OBJECTS = [None, slice(2), object(), torch.float32, np.random.default_rng(0), {"layers.1.weight": X[:4] > 0}]
# torch.load's arguments are not looked at; compiling takes seconds; an epoch is an epoch.
LEFT_OUT = {"torch_load_kwargs", "compile", "max_epochs"}
NAMES = [
    (estimator, parameter)
    for estimator, made in estimators(None).items()
    for parameter in made.get_params(deep=False)
    if parameter not in LEFT_OUT and not (parameter == "net" and "without" in estimator)
]
VALUES = st.sampled_from([*NUMBERS, *ARRAYS, *WORDS, *CONTAINERS, *OBJECTS])


@pytest.mark.parametrize(("estimator", "parameter"), NAMES)
@given(value=VALUES | st.text(max_size=4) | st.integers(-99, 99) | st.floats())
def test_any_value(estimator, parameter, value):
    if parameter == "random_state" and value is None:
        return  # scikit-learn's word for NumPy's global random state
    if parameter == "n_jobs" and isinstance(value, int) and value not in (0, 1):
        return  # processes take long to start
    if parameter == "power" and isinstance(value, int | float) and value > 2:
        return  # what is larger than 1 overflows
    net = small_net()
    made = clone(estimators(net)[estimator]).set_params(**{parameter: value})
    with nothing_changes(net, X, y), fails_well():
        use(made, X, y)
