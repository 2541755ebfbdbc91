"""The nets whose per-sample gradients are measured, rows for them, and how many operations their gradients take.

A name, and a folder with data where there is one, enter; a net in evaluation mode and rows leave.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import torch
from _cifar10 import FILE, authors_net
from torch import Tensor, nn

from sklearn_gradspace._main_job._data import load
from sklearn_gradspace.modules import MLP, GradNetCNN

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from resnet import ResNet18

N_LABELS = 10
NETS = ("CNN", "MLP", "ResNet-18")

_SHAPES = {"CNN": (3, 24, 24), "MLP": (28, 28), "ResNet-18": (3, 64, 64)}
_DATA = {"CNN": "cifar10", "MLP": "mnist"}


def net_and_rows(name: str, n: int, data_home: str | None) -> tuple[nn.Module, np.ndarray, str]:
    """Return a net, `n` rows of data, and a line on both; at random what `data_home` does not hold."""
    generator = torch.Generator().manual_seed(0)
    folder = None if data_home is None else Path(data_home)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "CNN" and folder and (folder / FILE).is_file():
            net, weights = authors_net(data_home), "trained"
        else:
            net, weights = _untrained(name), "untrained"
    if name in _DATA and folder and (folder / f"{_DATA[name]}.npz").is_file():
        X, rows = load(_DATA[name], data_home).X_test[:n].copy(), _DATA[name]
    else:
        X, rows = torch.randn(n, *_SHAPES[name], generator=generator).numpy(), "random"
    n_params = sum(p.numel() for p in net.parameters())
    return net.eval(), X, f"{name}, {weights}, {n_params:,} parameters, {rows} rows of shape {X.shape[1:]}"


def _untrained(name: str) -> nn.Module:
    if name == "CNN":
        return GradNetCNN(_SHAPES[name], N_LABELS)
    if name == "MLP":
        return MLP(prod(_SHAPES[name]), N_LABELS, (128, 128))
    net = ResNet18(N_LABELS).train()
    with torch.no_grad():
        for _ in range(20):  # so that batch norm has statistics of its inputs
            net(torch.randn(16, *_SHAPES[name]))
    return net


@torch.no_grad()
def operations(net: nn.Module, row: Tensor, n_labels: int) -> float:
    """Return the operations of one row's gradients of `n_labels` scalars in convolutions and linear layers.

    One product forward; for each scalar one back to the layer's input, except the first layer's, and one for the
    weights. A multiply-add counts as two, and products with padding count, as matrix products have them.

    Parameters
    ----------
    net : Module
    row : Tensor of shape (1, ...)
    n_labels : int
    """
    with _seen_products(net) as products:
        net(row)
    first, *others = products
    return 2 * (first * (1 + n_labels) + sum(others) * (1 + 2 * n_labels))


@contextmanager
def _seen_products(net: nn.Module) -> Iterator[list[int]]:
    """Collect the number of multiply-adds of each layer that multiplies, in the order of the forward pass."""
    products = []

    def record(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        products.append(output.numel() * layer.weight[0].numel())

    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(record) for layer in layers]
    yield products
    for handle in handles:
        handle.remove()
