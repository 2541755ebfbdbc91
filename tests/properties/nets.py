"""Random small nets and rows for them."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from nets import Residual, TiedAutoencoder
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "prelu": nn.PReLU, "none": nn.Identity}


class Tuple(nn.Module):
    """A net that returns its logits second."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return x, self.net(x)


@dataclass(frozen=True)
class Drawn:
    """A net in double precision, the shape of its samples, and what picks its logits."""

    net: nn.Module
    shape: tuple[int, ...]
    output: object = None
    description: str = ""

    def __repr__(self):
        return self.description

    def rows(self, n, seed):
        """Return n random rows."""
        return np.random.default_rng(seed).normal(size=(n, *self.shape))


def _linear(draw, n_outputs):
    widths = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 3)))]
    layers = []
    for a, b in zip(widths, [*widths[1:], n_outputs]):
        layers += [nn.Linear(a, b, bias=draw(st.booleans())), ACTIVATIONS[draw(st.sampled_from([*ACTIVATIONS]))]()]
        if draw(st.booleans()) and b != n_outputs:
            layers.append(draw(st.sampled_from([nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm]))(b))
    return nn.Sequential(*layers[:-1], nn.Linear(n_outputs, n_outputs)), (widths[0],)


def _convolution(draw, n_outputs):
    n_axes, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kind, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[n_axes - 1]
    kernel, padding, stride = draw(st.integers(1, 3)), draw(st.integers(0, 1)), draw(st.integers(1, 2))
    shape = (channels, *[draw(st.integers(3, 5)) for _ in range(n_axes)])
    groups = draw(st.sampled_from([1, channels]))
    first = kind(channels, 2 * channels, kernel, stride, padding, groups=groups, bias=draw(st.booleans()))
    last = draw(st.sampled_from([norm, lambda c: nn.GroupNorm(1, c)]))(2 * channels)
    head = nn.Sequential(first, last, nn.Tanh(), nn.Flatten())
    n = head.eval()(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(head, nn.Linear(n, n_outputs)), shape


def _residual(draw, n_outputs):
    width = draw(st.integers(2, 4))
    return nn.Sequential(Residual(nn.Linear(width, width), nn.Tanh()), nn.Linear(width, n_outputs)), (width,)


def _shared(draw, n_outputs):
    return nn.Sequential(TiedAutoencoder(), nn.Tanh(), nn.Linear(3, n_outputs)), (6,)


_KINDS = {"linear": _linear, "convolution": _convolution, "residual": _residual, "shared": _shared}


@st.composite
def nets(draw):
    """Draw a net in evaluation mode, or left in training mode, with some parameters frozen perhaps."""
    seed, n_outputs, kind = draw(st.integers(0, 999)), draw(st.integers(1, 3)), draw(st.sampled_from([*_KINDS]))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net, shape = _KINDS[kind](draw, n_outputs)
        net = net.double().train(draw(st.booleans()))
        for name, tensor in net.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.5, 2)
    parameters = list(net.parameters())
    for parameter in parameters[: draw(st.sampled_from([0, 0, 1, 2]))]:
        parameter.requires_grad_(len(parameters) < 3)
    in_tuple = draw(st.booleans())
    description = f"{Tuple.__name__ if in_tuple else ''} {net} of {shape}, seed {seed}"
    return Drawn(Tuple(net) if in_tuple else net, shape, (lambda out: out[1]) if in_tuple else None, description)
