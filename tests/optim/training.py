"""Training loops for the tests of optimizers, on cases of the scale graph."""

import torch
import torch.nn.functional as F
from pathspace.cases import BY_NAME

from sklearn_gradspace.optim import ECOptimizer

SGD, Adam = torch.optim.SGD, torch.optim.Adam
INNER = {
    "sgd": (SGD, {"lr": 0.05}),
    "momentum": (SGD, {"lr": 0.02, "momentum": 0.9}),
    "adam": (Adam, {"lr": 0.005}),
}
METHODS = ["balanced", "path"]
# Nets with biases: fully connected, convolutional, with slopes that are learned, shortcuts, and batch norm.
NETS = ["mlp", "bottleneck", "average-pool", "prelu of a slope a unit", "residual, two blocks"]
NETS += ["batch norm behind leaky relu"]


def data(case, n=32, dtype=torch.float64):
    """Return rows of unit size and as many labels as the net has outputs."""
    X = case.X(n, dtype)
    X = X / X.flatten(1).norm(dim=1).reshape(-1, *[1] * (X.ndim - 1)) * X[0].numel() ** 0.5
    n_outputs = case.net(dtype)(X).shape[1]
    return X, torch.arange(n) % max(2, n_outputs)


def loss_of(net, X, y):
    outputs = net(X)
    return F.cross_entropy(outputs, y) if outputs.shape[1] > 1 else (outputs[:, 0] - y).square().mean()


def train(net, optimizer, X, y, steps, after=None):
    """Train on all rows at once, and call `after` behind each step."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, X, y).backward()
        optimizer.step()
        if after is not None:
            after()
    return net


def build(net, method="balanced", inner="sgd", **options):
    """Return an ECOptimizer that begins with the function as it is."""
    kind, parameters = INNER[inner]
    return ECOptimizer(net, kind, method=method, **{"init": "keep", "balance_every": 7, **parameters, **options})


def trained(case, method, inner="sgd", steps=20, net=None, dtype=torch.float64, **options):
    """Return a net, new unless given, trained by an ECOptimizer."""
    net = case.net(dtype) if net is None else net
    return train(net, build(net, method, inner, **options), *data(case, dtype=dtype), steps)


def small(name="mlp", dtype=torch.float64):
    """Return a case, a new net of it, rows and labels."""
    case = BY_NAME[name]
    return case, case.net(dtype), *data(case, dtype=dtype)
