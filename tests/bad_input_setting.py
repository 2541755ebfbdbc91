"""What the calls of docs/errors.rst refer to: nets, data and fitted estimators, by name."""

import re
from contextlib import contextmanager
from threading import Lock
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from skorch import NeuralNetClassifier
from skorch.callbacks import EarlyStopping
from skorch.dataset import Dataset
from torch import nn

import sklearn_gradspace
from sklearn_gradspace import EdgeImportance, GradientFeaturizer, optim, pathspace
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.gradients import GradientArray
from sklearn_gradspace.modules import MLP


class Returning(nn.Module):
    """A net that returns what a function makes of its logits."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(6, 3)

    def forward(self, x):
        return self.function(self.linear(x))


class NoHalf(nn.Module):
    """Stands for a device without half precision."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        if x.dtype == torch.float16:
            raise RuntimeError("\"addmm_impl\" not implemented for 'Half'")
        return self.linear(x)


class Locked(nn.Identity):
    """A layer that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = Lock()


class Untraceable(MLP):
    """A ReLU net whose forward depends on numbers."""

    def forward(self, x):
        return super().forward(x) if x.sum() > -1e30 else x


@contextmanager
def free_memory(n_bytes):
    """Make believe that so much memory is free."""
    with patch("sklearn_gradspace.gradients._memory.available_bytes", lambda: n_bytes):
        yield


@contextmanager
def max_bytes(n_bytes):
    """Set the size above which a lazy array does not become dense by itself."""
    with patch.object(GradientArray, "max_bytes", n_bytes):
        yield


def filled(net, value):
    """Return a net with a number in the place of its first weight."""
    with torch.no_grad():
        next(net.parameters()).flatten()[0] = value
    return net


def overflowing(net):
    """Return a net of two layers whose outputs are finite for inputs of 1e30, and whose gradients are not."""
    with torch.no_grad():
        net[0].weight.fill_(1e-38)
        net[2].weight.copy_(torch.tensor([[1e38, 0.0], [0.0, 1e-38]]))
    return net


def relu_net():
    """Return a ReLU net with one hidden layer."""
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def only_biases(net):
    """Return a net whose weights are frozen."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return net


def setting(call):
    """Return what the names stand for that a call uses, made anew."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 6)).astype(np.float32)
    with_nan = X.copy()
    with_nan[2, 3] = np.nan
    names = (
        {name: getattr(sklearn_gradspace, name) for name in sklearn_gradspace.__all__}
        | {name: getattr(pathspace, name) for name in pathspace.__all__}
        | {"np": np, "pd": pd, "torch": torch, "nn": nn, "sparse": sparse, "Dataset": Dataset, "MLP": MLP}
        | {"EarlyStopping": EarlyStopping}
        | {"FrozenEstimator": FrozenEstimator, "LogisticRegression": LogisticRegression}
        | {"NetClassifier": NetClassifier, "ECOptimizer": optim.ECOptimizer, "Untraceable": Untraceable}
        | {"Returning": Returning, "NoHalf": NoHalf, "free_memory": free_memory, "max_bytes": max_bytes}
        | {"X": X, "y": np.arange(12) % 3, "with_nan": with_nan, "frame": pd.DataFrame(X, columns=list("abcdef"))}
        | {"images": rng.normal(size=(8, 2, 5, 5)).astype(np.float32), "indices": np.arange(36).reshape(12, 3) % 9}
        | {"mask": {"layers.1.weight": np.ones((4, 6), bool)}, "net": MLP(6, 3, (4,))}
    )
    words = re.findall(r"\w+", call)
    return names | {name: make(names) for name, make in _MADE.items() if name in words}


_MADE = {
    "other_net": lambda s: MLP(6, 4, (3,)),
    "image_net": lambda s: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)),
    "nan_net": lambda s: filled(MLP(6, 3, (4,)), torch.nan),
    "flip": lambda s: lambda X, generator: X[:, ::-1],
    "steep_net": lambda s: filled(MLP(6, 3, (4,)), 1e30),
    "frozen_net": lambda s: MLP(6, 3).requires_grad_(False),
    "net_of_one_logit": lambda s: MLP(6, 1),
    "net_of_four_logits": lambda s: MLP(6, 4),
    "net_of_seven_features": lambda s: MLP(7, 3),
    "net_with_softmax": lambda s: nn.Sequential(s["net"], nn.Softmax(-1)),
    "net_with_sigmoid": lambda s: nn.Sequential(MLP(6, 1), nn.Sigmoid()),
    "net_with_lock": lambda s: nn.Sequential(nn.Linear(6, 3), Locked()),
    "lazy_net": lambda s: nn.Sequential(nn.LazyLinear(3)),
    "half_net": lambda s: NoHalf().half(),
    "index_net": lambda s: nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(12, 3)),
    "net_without_statistics": lambda s: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)),
    "net_scaled_by_frequency": lambda s: nn.Sequential(
        nn.Embedding(9, 2, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 3)
    ),
    "untraceable_net": lambda s: Untraceable(6, 3),
    "wide_net": lambda s: MLP(6, 3, (5,)),
    "overflowing_net": lambda s: overflowing(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Flatten(), nn.Linear(2, 2))),
    "normalised_net": lambda s: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "net_of_biases": lambda s: only_biases(MLP(6, 3)),
    "relu_net": lambda s: relu_net(),
    "nan_relu_net": lambda s: filled(relu_net(), torch.nan),
    "sigmoid_net": lambda s: nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)),
    "script_module": lambda s: torch.jit.trace(s["net"], torch.zeros(1, 6)),
    "trained_with_softmax": lambda s: NeuralNetClassifier(
        nn.Sequential(s["net"], nn.Softmax(-1)), max_epochs=1, verbose=0, train_split=None
    ).fit(s["X"], s["y"]),
    "fitted_to_abc": lambda s: NetClassifier(MLP, max_epochs=1).fit(s["X"], np.array(["a", "b", "c"])[s["y"]]),
    "fitted_to_two_of_five": lambda s: NetClassifier(MLP(6, 5), max_epochs=1).fit(s["X"], s["y"] % 2),
    "lazy": lambda s: GradientFeaturizer(s["net"]).fit_transform(s["X"]),
    "importance": lambda s: EdgeImportance(s["net"]).fit(s["X"]),
    "importance_by_class": lambda s: EdgeImportance(s["net"], per_class=True).fit(s["X"], s["y"] % 2),
}
