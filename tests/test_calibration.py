"""The temperature is that of least cross-entropy, by a slow search."""

import numpy as np
import pytest
from scipy.special import log_softmax

from sklearn_gradspace._calibration import fit_temperature

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(50, 4))
Y = np.array([rng.choice(4, p=np.exp(row)) for row in log_softmax(LOGITS, axis=1)])


@pytest.mark.parametrize("weight", [None, rng.uniform(size=50)])
def test_no_other_temperature_is_better(weight):
    def loss(temperature):
        return -np.average(log_softmax(LOGITS / temperature, axis=1)[np.arange(50), Y], weights=weight)

    grid = np.geomspace(0.2, 50, 2000)
    found, least = fit_temperature(LOGITS, Y, weight)
    assert loss(found) == pytest.approx(least)
    assert least <= min(map(loss, grid))
    assert found == pytest.approx(grid[np.argmin(list(map(loss, grid)))], rel=1e-2)


def test_it_is_as_large_as_the_logits():
    found, least = fit_temperature(LOGITS, Y)
    assert fit_temperature(3 * LOGITS, Y) == pytest.approx((3 * found, least), rel=1e-5)
    assert fit_temperature(LOGITS.astype(np.float32), Y) == pytest.approx((found, least), rel=1e-5)


def test_weights_of_whole_numbers_are_repetitions():
    weight = np.arange(50) % 3
    repeated = np.repeat(np.arange(50), weight)
    assert fit_temperature(LOGITS, Y, weight) == pytest.approx(fit_temperature(LOGITS[repeated], Y[repeated]), rel=1e-5)


def test_it_is_bounded_where_all_rows_are_right_or_wrong():
    assert 0.09 < fit_temperature(LOGITS, LOGITS.argmax(1))[0] < 0.2
    assert 50 < fit_temperature(LOGITS, LOGITS.argmin(1))[0] < 101
