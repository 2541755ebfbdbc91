"""The nets, and the starts from which they are trained.

A name such as "4x64" enters, layers and width, with "conv", "plain" or "resnet" in front of it for other than
perceptrons; a net leaves.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import rescale, scale_graph

_STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # blocks of two layers


def make_net(name: str, shape: tuple[int, ...], n_classes: int = 10) -> nn.Module:
    """Return the net called `name` for images of `shape` (channels, height, width), with torch's own start."""
    kind, layers, width = re.fullmatch(r"([a-z]*)(\d+)x(\d+)", name).groups()
    return _KINDS[kind](shape, int(layers), int(width), n_classes)


def _perceptron(shape: tuple[int, ...], layers: int, width: int, n_classes: int) -> nn.Module:
    """`layers` hidden layers of `width` units."""
    sizes = [torch.Size(shape).numel(), *[width] * layers]
    hidden = [part for i in range(layers) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, n_classes))


def _convolutions(shape: tuple[int, ...], layers: int, width: int, n_classes: int) -> nn.Module:
    """Layers without batch norm; at one and at two thirds images are halved. The last layer is linear."""
    parts, n_in = [], shape[0]
    for i in range(layers - 1):
        stride = 2 if i and i in (layers // 3, 2 * layers // 3) else 1
        parts += [nn.Conv2d(n_in, width, 3, stride, padding=1), nn.ReLU()]
        n_in = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes))


class _Block(nn.Module):
    """Two convolutions with batch norm, and a shortcut around them unless the net is plain."""

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = None
        if shortcut:
            same = stride == 1 and n_in == n_out
            self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


def _of_blocks(shortcut: bool) -> Callable[..., nn.Module]:
    def make(shape: tuple[int, ...], layers: int, width: int, n_classes: int) -> nn.Module:
        parts = [nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        n_in = width
        for stage, n_blocks in enumerate(_STAGES[layers]):
            for block in range(n_blocks):
                n_out = width * 2**stage
                parts.append(_Block(n_in, n_out, 2 if stage and not block else 1, shortcut))
                n_in = n_out
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))

    return make


_KINDS = {"": _perceptron, "conv": _convolutions, "plain": _of_blocks(False), "resnet": _of_blocks(True)}


def _he(net: nn.Module, seed: int) -> None:
    """Normal weights of variance 2 / fan-in, and no biases."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _by(init: str) -> Callable[[nn.Module, int], None]:
    """One of `ECOptimizer`'s starts: "skeleton", the EC-Opt authors', or "identity"."""

    def start(net: nn.Module, seed: int) -> None:
        ECOptimizer(net, lr=1.0, init=init)  # which sets weights at once

    return start


def _unbalanced(a: float) -> Callable[[nn.Module, int], None]:
    """Each unit is scaled by 10^U(-a, a)."""

    def start(net: nn.Module, seed: int) -> None:
        graph = scale_graph(net)
        generator = torch.Generator().manual_seed(seed)
        rescale(net, 10 ** (a * (2 * torch.rand(graph.n_units, generator=generator) - 1)), graph)

    return start


STARTS = {
    "default": lambda net, seed: None,
    "He": _he,
    "skeleton": _by("skeleton"),
    "identity": _by("identity"),
    "unbalanced 1": _unbalanced(1),
    "unbalanced 2": _unbalanced(2),
}
