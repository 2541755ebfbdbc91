"""The nets that the laws are tried on: `CASES`, each with a few rows of data, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from zlib import crc32

import numpy as np
import torch
from nets import (
    Apply,
    Attention,
    BorrowedWeight,
    Branches,
    CalledInVain,
    CalledTwice,
    ClampedInPlace,
    ClassToken,
    Experts,
    InputOverwritten,
    InputShifted,
    Masked,
    OutputChanged,
    PairProduct,
    Recurrent,
    Residual,
    RowsSorted,
    ScaledLinear,
    SequenceFirst,
    TiedAutoencoder,
    TimeFolded,
    UnusedLayer,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True)
class Case:
    """A net and rows for it, the same each time."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (6,)
    n: int = 5

    def net(self) -> nn.Module:
        """Return a new net in training mode, its parameters and running statistics off their initial values."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(crc32(self.name.encode()))
            net = self.build().double()
            for parameter in net.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for name, buffer in net.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 2)
        return net

    @property
    def X(self) -> np.ndarray:
        """Rows of shape (n, *shape); integers where an embedding reads them."""
        rng = np.random.default_rng(crc32(self.name.encode()))
        X = rng.normal(size=(self.n, *self.shape))
        return np.floor(3 * np.abs(X)).clip(0, 6) if self.name == "embedding" else X


def _mlp(*widths, activation=nn.ReLU, bias=True):
    layers = [nn.Linear(i, o, bias=bias) for i, o in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in (layer, activation())))[:-1]


def _between(*layers):
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3))


def _conv(rank, c_in=2, c_out=4, kernel_size=3, then=(), **options):
    layer = getattr(nn, f"Conv{rank}d")(c_in, c_out, kernel_size, **options)
    pool = getattr(nn, f"AdaptiveAvgPool{rank}d")(1)
    return nn.Sequential(layer, *(then or (nn.Tanh(),)), pool, nn.Flatten(), nn.Linear(c_out, 3))


def _frozen():
    net = _mlp(6, 5, 5, 3)
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def _two_names():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3))


IMAGE = (2, 7, 6)
CASES = [
    Case("linear", partial(_mlp, 6, 3)),
    Case("linear without bias", partial(_mlp, 6, 3, bias=False)),
    Case("mlp of two layers", partial(_mlp, 6, 5, 3)),
    Case("mlp of two layers without bias", partial(_mlp, 6, 5, 3, bias=False)),
    Case("mlp of three layers", partial(_mlp, 6, 5, 4, 3, activation=nn.Tanh)),
    Case("two classes", partial(_mlp, 6, 5, 2)),
    Case("many classes", partial(_mlp, 6, 5, 12)),
    Case("linear on steps", lambda: nn.Sequential(_mlp(4, 5, 2), nn.Flatten(), nn.Linear(6, 3)), (3, 4)),
    Case("linear on a grid", lambda: nn.Sequential(_mlp(4, 5, 2), nn.Flatten(), nn.Linear(12, 3)), (3, 2, 4)),
    Case("conv1d", partial(_conv, 1), (2, 8)),
    Case("conv1d stride dilation", partial(_conv, 1, stride=2, dilation=2, padding=3), (2, 11)),
    Case("conv2d", partial(_conv, 2), IMAGE),
    Case("conv2d without bias", partial(_conv, 2, bias=False), IMAGE),
    Case("conv2d one by one", partial(_conv, 2, kernel_size=1), IMAGE),
    Case("conv2d stride and padding", partial(_conv, 2, stride=2, padding=1), IMAGE),
    Case("conv2d oblong", partial(_conv, 2, kernel_size=(3, 2), stride=(1, 2), padding=(2, 0)), IMAGE),
    Case("conv2d same", partial(_conv, 2, padding="same", dilation=(1, 2)), IMAGE),
    Case("conv2d valid", partial(_conv, 2, padding="valid", stride=2), IMAGE),
    Case("conv2d dilation", partial(_conv, 2, dilation=2, padding=1), IMAGE),
    Case("conv2d groups", partial(_conv, 2, groups=2, padding=1), IMAGE),
    Case("conv2d depthwise", partial(_conv, 2, c_in=4, groups=4, stride=2, padding=1), (4, 7, 6)),
    Case("conv2d reflect", partial(_conv, 2, padding=2, padding_mode="reflect"), IMAGE),
    Case("conv2d circular", partial(_conv, 2, padding=(1, 2), padding_mode="circular"), IMAGE),
    Case("conv2d replicate", partial(_conv, 2, padding=1, padding_mode="replicate", stride=2), IMAGE),
    Case("conv3d", partial(_conv, 3, kernel_size=2, stride=(1, 2, 1), padding=(1, 0, 1)), (2, 3, 4, 3)),
    Case("conv3d groups", partial(_conv, 3, kernel_size=2, groups=2), (2, 3, 4, 3)),
    Case("conv2d twice", lambda: _conv(2, then=(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())), IMAGE),
    Case("transposed conv", lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), *_conv(2, 4)), IMAGE),
    Case("max pool ceil", partial(_conv, 2, then=(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Tanh())), IMAGE),
    Case("avg pool ceil", partial(_conv, 2, then=(nn.AvgPool2d(2, ceil_mode=True), nn.ReLU())), IMAGE),
    Case("batch norm 1d", lambda: _between(nn.BatchNorm1d(6), nn.ReLU())),
    Case("batch norm 2d", lambda: _conv(2, then=(nn.BatchNorm2d(4), nn.ReLU())), IMAGE),
    Case("layer norm", lambda: _between(nn.LayerNorm(6), nn.ReLU())),
    Case("layer norm of images", lambda: _conv(2, then=(nn.LayerNorm((4, 5, 4)), nn.ReLU())), IMAGE),
    Case("group norm", lambda: _conv(2, then=(nn.GroupNorm(2, 4), nn.ReLU())), IMAGE),
    Case("instance norm", lambda: _conv(2, then=(nn.InstanceNorm2d(4, affine=True), nn.ReLU())), IMAGE),
    Case("tracked instance norm", lambda: _conv(2, then=(nn.InstanceNorm2d(4, 1e-5, 0.1, True, True),)), IMAGE),
    Case("prelu", lambda: _between(nn.PReLU())),
    Case("prelu of channels", lambda: _conv(2, then=(nn.PReLU(4), nn.Conv2d(4, 4, 2))), IMAGE),
    Case("relu in place", lambda: _mlp(6, 5, 5, 3, activation=partial(nn.ReLU, inplace=True))),
    Case("relu in place on conv", lambda: _conv(2, then=(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 2))), IMAGE),
    Case("dropout", lambda: _between(nn.ReLU(), nn.Dropout(0.5))),
    Case("residual", lambda: _between(Residual(nn.Linear(6, 6), nn.Tanh()))),
    Case("residual then relu in place", lambda: _between(Residual(nn.Linear(6, 6), nn.ReLU(inplace=True)))),
    Case("branches", Branches),
    Case("called twice", CalledTwice),
    Case("one layer, two names", _two_names),
    Case("tied weights", TiedAutoencoder),
    Case("borrowed weight", partial(BorrowedWeight, 1.0)),
    Case("hardly borrowed weight", partial(BorrowedWeight, 1e-4)),
    Case("called in vain", CalledInVain),
    Case("output changed by a hook", OutputChanged),
    Case("frozen", _frozen),
    Case("class token", ClassToken, (3, 4)),
    Case("unused layer", UnusedLayer),
    Case("attention", partial(Attention, True), (3, 4)),
    Case("attention over steps first", partial(Attention, False), (5, 4)),
    Case(
        "transformer",
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 3)),
        (3, 4),
    ),
    Case("lstm", partial(Recurrent, nn.LSTM), (3, 4)),
    Case("gru", partial(Recurrent, nn.GRU), (3, 4)),
    Case(
        "embedding",
        lambda: nn.Sequential(Apply(torch.Tensor.long), nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)),
        (3,),
    ),
    Case(
        "channels last",
        lambda: _conv(2, then=(nn.ReLU(), nn.Conv2d(4, 4, 2))).to(memory_format=torch.channels_last),
        IMAGE,
    ),
    Case("weight norm", lambda: nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))),
    Case("input overwritten", InputOverwritten),
    Case("input clamped in place", ClampedInPlace),
    Case("input shifted in place", InputShifted),
    Case("linear with its own forward", lambda: nn.Sequential(ScaledLinear(6, 5), nn.ReLU(), nn.Linear(5, 3))),
    Case("steps folded into the batch", TimeFolded, (3, 4)),
    Case("steps first", SequenceFirst, (5, 4)),
    Case("rows sorted", RowsSorted),
    Case("experts", Experts),
    Case("two inputs and a keyword", PairProduct),
    Case("plain tensor", Masked),
]
BY_NAME = {case.name: case for case in CASES}
