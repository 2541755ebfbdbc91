"""An error of a user's function says which parameter it belongs to."""

import numpy as np
import pytest

from sklearn_gradspace import GradientFeaturizer, GradientKernel
from sklearn_gradspace.modules import MLP

X = np.random.default_rng(0).normal(size=(20, 6))
y = np.arange(20) % 3
NET = MLP(6, 3, (5,)).double()


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("augment", lambda: GradientFeaturizer(NET, augment=lambda X: X).fit(X)),
        ("views", lambda: GradientKernel(NET, views=lambda X, other: [X]).fit_transform(X)),
        ("net", lambda: GradientFeaturizer(lambda X: NET).fit(X, y)),
        ("scalar", lambda: GradientFeaturizer(NET, scalar=lambda outputs: outputs[:, 7]).fit(X)),
    ],
)
def test_it_is_noted(name, fit):
    with pytest.raises((TypeError, IndexError)) as caught:
        fit()
    (note,) = caught.value.__notes__
    assert note.startswith(f"This was raised in `{name}`, called with a ")
