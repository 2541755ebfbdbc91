"""The learning rate falls along a cosine over the batches of a fit."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from sklearn_gradspace import GradNetClassifier

X = np.random.default_rng(0).normal(size=(50, 6))
y = np.arange(50) % 2


def rates(classifier, epochs):
    return np.ravel([[batch["event_lr"] for batch in epoch["batches"] if "event_lr" in batch] for epoch in epochs])


@pytest.mark.parametrize(
    ("options", "batches"),
    [({}, 5), ({"train_split": ValidSplit(5)}, 4), ({"batch_size": -1}, 1), ({"iterator_train__drop_last": True}, 5)],
)
def test_rates_are_those_of_the_cosine(options, batches):
    classifier = GradNetClassifier(schedule="cosine", lr=0.3, max_epochs=4, **({"batch_size": 10} | options)).fit(X, y)
    steps = 4 * batches
    expected = 0.3 * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    np.testing.assert_allclose(rates(classifier, classifier.history), expected, rtol=1e-8)


def test_going_on_begins_anew_with_the_rates_that_are_set():
    classifier = GradNetClassifier(schedule="cosine", lr=0.3, max_epochs=2, batch_size=10).fit(X, y)
    assert classifier.optimizer_.param_groups[0]["lr"] == 0.3
    first = rates(classifier, classifier.history)
    classifier.partial_fit(X, y)
    np.testing.assert_allclose(rates(classifier, classifier.history[2:]), first)
    classifier.set_params(lr=0.6).partial_fit(X, y)
    np.testing.assert_allclose(rates(classifier, classifier.history[4:]), 2 * first)


@pytest.mark.parametrize("epochs", [2, 6])
def test_epochs_that_fit_is_told_count(epochs):
    classifier = GradNetClassifier(schedule="cosine", lr=0.3, max_epochs=4, batch_size=10).fit(X, y, epochs=epochs)
    expected = 0.3 * (1 + np.cos(np.pi * np.arange(5 * epochs) / (5 * epochs))) / 2
    np.testing.assert_allclose(rates(classifier, classifier.history), expected, rtol=1e-8)


def test_going_on_after_an_error_begins_with_the_rates_that_are_set():
    class Fails(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise OSError("disk full")

    classifier = GradNetClassifier(schedule="cosine", lr=0.3, max_epochs=4, batch_size=10, callbacks=[Fails()])
    with pytest.raises(OSError, match="disk full"):
        classifier.fit(X, y)
    classifier.partial_fit(X, y)
    assert rates(classifier, classifier.history[2:])[0] == 0.3


def test_every_layer_keeps_its_own_rate():
    classifier = GradNetClassifier((3, 5), blocks=[2, 4], schedule="cosine", max_epochs=2).fit(X, y)
    found = [group["lr"] for group in classifier.optimizer_.param_groups]
    assert found == pytest.approx([0.05 / m**0.5 for m in (2, 2, 4, 4, 8, 8)])


def test_the_last_step_is_small():
    """One step an epoch: the second of two has half the rate, which with SGD shows in the weights."""
    options = {"optimizer": torch.optim.SGD, "lr": 0.1, "batch_size": -1, "random_state": 0, "max_epochs": 1}
    by_hand = GradNetClassifier(**options).fit(X, y).set_params(lr=0.05).partial_fit(X, y)
    scheduled = GradNetClassifier(schedule="cosine", **(options | {"max_epochs": 2})).fit(X, y)
    np.testing.assert_allclose(scheduled.predict_proba(X), by_hand.predict_proba(X), rtol=1e-10)
