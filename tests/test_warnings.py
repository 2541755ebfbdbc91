"""Warnings name the line of the user's that they are about, however deep inside they arise."""

import inspect

import numpy as np
import pytest
import torch
from drawn import drawn
from sklearn.pipeline import make_pipeline

from sklearn_gradspace import (
    EdgeImportance,
    GradientFeaturizer,
    GradientKernel,
    GradientKernelClassifier,
    GradNetClassifier,
)
from sklearn_gradspace.gradients import GradientEngine
from sklearn_gradspace.modules import MLP

X = np.random.default_rng(0).normal(size=(40, 6))
y = np.arange(40) % 3
NET = drawn(lambda: MLP(6, 3, (5,)), 0)


def wrong_labels():
    with torch.no_grad():
        labels = (NET(torch.from_numpy(X)).argmax(1).numpy() + 1) % 3
    labels[:3] = 0, 1, 2
    return labels


CALLS = {
    "percentile": lambda: GradientFeaturizer(NET, percentile=0.5).fit(X),
    "percentile in a pipeline": lambda: make_pipeline(GradientFeaturizer(NET, percentile=0.5), GradNetClassifier()).fit(
        X, y
    ),
    "directory": lambda: GradientFeaturizer(NET, output_dir="features").fit_transform(X),
    "names": lambda: GradientKernelClassifier(NET).fit(X, np.array(["a", "b", "c"])[y]),
    "names of edges": lambda: EdgeImportance(NET).fit(X, np.array(["a", "b", "c"])[y]),
    "numbers": lambda: GradientKernelClassifier(NET).fit(X, 1 + y % 2),
    "order of outputs": lambda: GradNetClassifier(base_logits=True, max_epochs=1).fit(
        GradientFeaturizer(NET).fit_transform(X), wrong_labels()
    ),
}


def warned_at(call):
    """Return whether what a call warns of is said to be in its own lines."""
    with pytest.warns(UserWarning) as caught:
        call()
    lines, first = inspect.getsourcelines(call)
    return all(w.filename == __file__ and first <= w.lineno < first + len(lines) for w in caught)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_it_is_the_line_of_the_call(call):
    assert warned_at(call)


@pytest.mark.parametrize("estimator", [GradientFeaturizer(NET, output="dense"), GradientKernel(NET)])
def test_it_is_where_memory_ran_out(estimator, monkeypatch):
    forward = GradientEngine.forward

    def limited(self, rows, *of):
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, rows, *of)

    monkeypatch.setattr(GradientEngine, "forward", limited)
    with pytest.warns(RuntimeWarning, match="memory ran out") as caught:
        estimator.fit(X).transform(X)
    assert {w.filename for w in caught} == {__file__}
