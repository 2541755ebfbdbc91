"""Nets, data and masks for `edges.py`.

A folder of data enters; trained nets and early-stopped ones, importances and masks leave.
"""

from dataclasses import dataclass

import numpy as np
import torch
from _cifar10 import authors_net
from torch import nn

from sklearn_gradspace import EdgeImportance
from sklearn_gradspace._main_job._data import load
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.modules import MLP, GradNetCNN

SCORES = ("sensitivity", "gradient", "fisher", "survival", "magnitude", "random")
KEPT = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
CONTROLS = ("magnitude", "random")
LR = {"mlp": 1e-3, "cnn": 3e-4}


@dataclass(frozen=True)
class Job:
    """A trained net, one that was stopped early, rows to train on and rows to test on."""

    net: nn.Module
    early: nn.Module
    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def mlp(data_home: str, rows: int, test_rows: int, seed: int) -> Job:
    """Return a perceptron 784-128-128-10, trained on MNIST for three epochs, or on 1,000 rows for one."""
    X, y, X_test, y_test = _rows("mnist", data_home, slice(None), rows, test_rows, seed)
    sizes = {"module__hidden_layer_sizes": (128, 128), "module__n_features": 784, "random_state": seed}
    net = NetClassifier(MLP, max_epochs=3, lr=1e-3, batch_size=64, **sizes).fit(X, y).module_
    early = NetClassifier(MLP, max_epochs=1, lr=1e-3, batch_size=64, **sizes).fit(X[:1000], y[:1000]).module_
    return Job(net.eval(), early.eval(), X, y, X_test, y_test)


def cnn(data_home: str, rows: int, test_rows: int, seed: int) -> Job:
    """Return the GradNet authors' CNN for CIFAR-10, or one that was trained for two epochs on 4,000 rows."""
    X, y, X_test, y_test = _rows("cifar10", data_home, slice(25000, None), rows, test_rows, seed)
    early = NetClassifier(GradNetCNN(), max_epochs=2, lr=1e-3, batch_size=64, random_state=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        early.set_params(module=GradNetCNN())
    first = _rows("cifar10", data_home, slice(25000), 4000, 1, seed)
    return Job(authors_net(data_home), early.fit(first[0], first[1]).module_.eval(), X, y, X_test, y_test)


JOBS = {"mlp": mlp, "cnn": cnn}


def _rows(name: str, data_home: str, half: slice, rows: int, test_rows: int, seed: int):
    data = load(name, data_home)
    X, y = data.X[half], data.y[half]
    chosen = np.random.default_rng(seed).permutation(len(X))[:rows]
    return X[chosen], y[chosen].astype(np.int64), data.X_test[:test_rows].copy(), data.y_test[:test_rows].copy()


def importances(net: nn.Module, job: Job, score: str, rows: int, seed: int) -> EdgeImportance:
    """Return the fitted importances by a score; "random" has random numbers for them."""
    labels = "all" if score == "survival" else "auto"
    kind = "magnitude" if score == "random" else score
    n = rows // 4 if score == "survival" else rows  # all labels' gradients, formed and sorted
    found = EdgeImportance(net, criterion=kind, labels=labels).fit(job.X[:n], job.y[:n])
    if score == "random":
        rng = np.random.default_rng(seed)
        found.importances_ = {name: rng.uniform(size=v.shape) for name, v in found.importances_.items()}
    return found


def shuffled(mask: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Return a mask with as many entries of each layer, in random places."""
    generator = torch.Generator().manual_seed(seed)
    return {name: m.flatten()[torch.randperm(m.numel(), generator=generator)].view(m.shape) for name, m in mask.items()}


@torch.no_grad()
def accuracy(net: nn.Module, job: Job) -> float:
    """Return the accuracy on the rows to test on."""
    net = net.eval()
    predicted = torch.cat([net(torch.from_numpy(X)).argmax(1) for X in np.array_split(job.X_test, 8)])
    return float((predicted.numpy() == job.y_test).mean())
