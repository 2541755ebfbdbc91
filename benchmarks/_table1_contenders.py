"""The contenders of Table 1: what is fitted to the second half of the data, and the settings each may choose from.

A base net and a setting enter; an estimator with `predict_proba` leaves.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from _table1_bases import new_augmented
from _table1_images import Augmented, Images
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn
from torch.utils.data import RandomSampler

from sklearn_gradspace import GradientFeaturizer, GradientKernelClassifier, GradNetClassifier
from sklearn_gradspace._main_job._activations import PenultimateActivations
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace._schedule import CosineSchedule
from sklearn_gradspace.gradients import shared_copy

HIDDEN_SIZES = (5, 100, 25)  # the authors', for the three layers


@dataclass(frozen=True)
class Task:
    """What an estimator is made for.

    Parameters
    ----------
    net : Module
        The base net.
    images : Images
    n : int
        Number of rows that it will be fitted to.
    views : callable or None
        What a contender with views of its own averages over.
    budget : int
        Gradients that GradNet is trained with.
    upper_epochs : int
    device : str
    seed : int
    """

    net: nn.Module
    images: Images
    n: int
    views: Callable | None
    budget: int
    upper_epochs: int
    device: str
    seed: int


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Parameters
    ----------
    make : callable
        From a `Task` and the settings to an estimator.
    grid : tuple of dict
        Settings to choose from.
    gradients : callable
        From a `Task` and the settings to the number of per-sample gradients that training it takes.
    own_views : bool
        Whether it is fitted for each way of seeing images; else one fit's probabilities are averaged over views.
    leave_one_out : bool
        Whether `loo_score_` chooses among settings that are fitted to all rows.
    same_features : bool
        Whether settings are those of the last step of a pipeline, before which all is the same.
    budgeted : bool
        Whether it depends on the budget of gradients.
    seeded : bool
        Whether anything in it is random.
    on_both_halves : bool
        Whether it is fitted to all training rows; it then has nothing to do with the base net.
    """

    make: Callable
    grid: tuple[Mapping, ...] = ({},)
    gradients: Callable = lambda task, **setting: 0
    own_views: bool = False
    leave_one_out: bool = False
    same_features: bool = False
    budgeted: bool = False
    seeded: bool = True
    on_both_halves: bool = False


class Base(ClassifierMixin, BaseEstimator):
    """The base net as it is."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def fit(self, X, y):
        """Learn nothing."""
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        """Return the net's probabilities of shape (n, n_classes)."""
        return torch.from_numpy(base_logits(X, self.net)).softmax(1).numpy()


class FeaturizerOfFewRows(GradientFeaturizer):
    """Learns the scales from 2,000 rows: of all rows they would cost more gradients than the training."""

    def fit(self, X, y=None):
        """Learn the scales."""
        return super().fit(X[:2000])


@torch.no_grad()
def base_logits(X: np.ndarray, net: nn.Module) -> np.ndarray:
    """Return the base net's logits of shape (n, n_classes)."""
    net = shared_copy(net)
    device = next(net.parameters()).device
    return np.concatenate([net(torch.from_numpy(part).to(device)).cpu() for part in _parts(X)])


def _parts(X: np.ndarray) -> list[np.ndarray]:
    return np.split(X, range(512, len(X), 512))


def mean_activations(X: np.ndarray, net: nn.Module, views: Callable | None) -> np.ndarray:
    """Return what enters the last layer, averaged over views, of shape (n, n_units)."""
    activations = PenultimateActivations(net)
    seen = [[part] if views is None else views(part) for part in _parts(X)]
    return np.concatenate([np.mean([activations.transform(view) for view in of_part], 0) for of_part in seen])


def _authors(task: Task):
    features = GradientFeaturizer(
        task.net,
        percentile=15,
        scale="minmax",
        power=0.5,
        augment=task.images.augment(contrast=True),
        device=task.device,
    )
    gradnet = GradNetClassifier(
        HIDDEN_SIZES,
        optimizer=torch.optim.SGD,
        lr=0.01,
        batch_size=25,
        **_visits(task, 1),
        random_state=task.seed,
    )
    return make_pipeline(features, gradnet)


def _gradnet(task: Task, views: int, activation: str, **of_features):
    features = FeaturizerOfFewRows(
        task.net, scale="rms", augment=task.images.augment(), device=task.device, **of_features
    )
    gradnet = GradNetClassifier(
        HIDDEN_SIZES,
        activation=activation,
        views=views,
        base_logits=True,
        schedule="cosine",
        batch_size=100 // views,  # 100 gradients a step in any case
        **_visits(task, views),
        random_state=task.seed,
    )
    return make_pipeline(features, gradnet)


def _visits(task: Task, views: int) -> dict:
    """Return what makes one epoch of as many visits of rows as the budget allows, pass after pass."""
    sampler = RandomSampler(range(task.n), num_samples=max(1, task.budget // views))
    return {"max_epochs": 1, "iterator_train__shuffle": False, "iterator_train__sampler": sampler}


def _kernel(task: Task, **setting):
    return GradientKernelClassifier(
        task.net, views=task.views, products="bfloat16", device=task.device, random_state=task.seed, **setting
    )


def _fine_tuned(task: Task, lr: float, max_epochs: int):
    return _trained(task, partial(copy.deepcopy, Augmented(task.net, task.images.augment())), lr, max_epochs)


def _both_halves(task: Task, lr: float):
    # The authors' own recipe, rates from 0.05 halved every 25 epochs without momentum, is slow: 0.694 after 40 epochs.
    new = partial(new_augmented, task.images.new_net, task.images.augment())
    return _trained(task, new, lr, task.upper_epochs)


def _trained(task: Task, make_module: Callable, lr: float, max_epochs: int):
    return NetClassifier(
        make_module,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        optimizer__weight_decay=5e-4,
        lr=lr,
        max_epochs=max_epochs,
        batch_size=64,
        callbacks=[("cosine", CosineSchedule())],
        device=task.device,
        random_state=task.seed,
    )


def _activations(task: Task):
    return FunctionTransformer(mean_activations, kw_args={"net": task.net, "views": task.views})


def _last_layer(task: Task, C: float):
    return make_pipeline(_activations(task), StandardScaler(), LogisticRegression(C=C, max_iter=200))


def _gradnet_on_activations(task: Task, **setting):
    gradnet = GradNetClassifier(
        sum(HIDDEN_SIZES), schedule="cosine", batch_size=100, device=task.device, random_state=task.seed, **setting
    )
    return make_pipeline(_activations(task), StandardScaler(), gradnet)


def _regression_on_gradients(task: Task, C: float):
    features = GradientFeaturizer(
        task.net,
        labels="predicted",
        percentile=100,
        scale=None,
        power=None,
        projection=4096,
        output="dense",
        device=task.device,
        random_state=task.seed,
    )
    both = make_union(features, FunctionTransformer(base_logits, kw_args={"net": task.net}))
    return make_pipeline(both, StandardScaler(), LogisticRegression(C=C, max_iter=200))


def _budget(task: Task, **setting) -> int:
    return task.budget


def _of_kernel(task: Task, n_directions: int, **setting) -> int:
    return task.n * n_directions * (1 if task.views is None else len(task.views(task.images.X[:1])))


_PLAIN, _AUTHORS = {"percentile": 100, "power": None}, {"percentile": 15, "power": 0.5}
_ALPHAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_DIRECTIONS = {"n_directions": 2, "projection": 2**13, "alphas": _ALPHAS}

CONTENDERS = {
    "base": Contender(lambda task: Base(task.net), seeded=False),
    "authors": Contender(_authors, gradients=_budget, budgeted=True),
    "gradnet": Contender(
        _gradnet,
        (
            {**_PLAIN, "views": 1, "activation": "relu"},
            {**_PLAIN, "views": 2, "activation": "relu"},
            {**_PLAIN, "views": 2, "activation": "square"},
            {**_PLAIN, "views": 10, "activation": "relu"},
            {**_AUTHORS, "views": 1, "activation": "relu"},
            {**_AUTHORS, "views": 2, "activation": "square"},
        ),
        _budget,
        budgeted=True,
    ),
    "kernel": Contender(
        _kernel,
        ({**_DIRECTIONS, "normalize": "layer"},),
        _of_kernel,
        own_views=True,
        leave_one_out=True,
    ),
    # The last layer's gradient of a direction's logit is the direction times the activations: one is as good as all.
    "kernel on penultimate activations": Contender(
        _kernel,
        ({"layers": "*head.weight", "n_directions": 1, "alphas": _ALPHAS},),
        own_views=True,
        leave_one_out=True,
        seeded=False,
    ),
    "fine-tuned": Contender(_fine_tuned, tuple({"lr": lr, "max_epochs": 6} for lr in (0.001, 0.003, 0.01))),
    "fine-tuned, 20 epochs": Contender(_fine_tuned, tuple({"lr": lr, "max_epochs": 20} for lr in (0.003, 0.01, 0.02))),
    "last layer retrained": Contender(
        _last_layer, tuple({"C": C} for C in (1e-4, 1e-3, 1e-2, 1e-1)), own_views=True, same_features=True
    ),
    "gradnet on penultimate activations": Contender(
        _gradnet_on_activations,
        tuple({"activation": a, "max_epochs": epochs} for a in ("relu", "square") for epochs in (5, 20)),
        own_views=True,
        same_features=True,
    ),
    "logistic regression on gradients": Contender(
        _regression_on_gradients,
        tuple({"C": C} for C in (1e-5, 1e-4, 1e-3, 1e-2)),
        lambda task, **setting: task.n,
        same_features=True,
    ),
    "both halves": Contender(_both_halves, ({"lr": 0.02},), on_both_halves=True),
}
