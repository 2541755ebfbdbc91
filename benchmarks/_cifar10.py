"""CIFAR-10 and the GradNet authors' trained net, from a folder given by ``--data-home``."""

from pathlib import Path

import numpy as np
import torch

from sklearn_gradspace._main_job._data import Data, load
from sklearn_gradspace.modules import GradNetCNN

FILE = "gradnet_base_cifar10.npz"


def authors_net(data_home: str) -> GradNetCNN:
    """Return the CNN with the authors' weights, which ``gradnet_base_cifar10.npz`` in `data_home` holds."""
    net = GradNetCNN().eval()
    layers = [net.features[0], net.features[3], net.head]
    with np.load(Path(data_home) / FILE) as weights, torch.no_grad():
        for name, layer in zip(("c0", "c1", "l1"), layers):
            layer.weight.copy_(torch.from_numpy(weights[f"{name}_weight"]))
            layer.bias.copy_(torch.from_numpy(weights[f"{name}_bias"]))
    return net


def second_half(data_home: str) -> Data:
    """Return CIFAR-10 without the first 25,000 training rows, on which that net was trained."""
    data = load("cifar10", data_home)
    return Data(data.X[25000:], data.y[25000:], data.X_test, data.y_test)
