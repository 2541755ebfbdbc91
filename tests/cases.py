"""The nets that the laws are tried on: `CASES`, each with a few rows of data, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from zlib import crc32

import numpy as np
import torch
from drawn import drawn
from nets import (
    AddedInPlace,
    Apply,
    Attention,
    BorrowedWeight,
    Branches,
    CalledInVain,
    CalledTwice,
    Cells,
    Checkpointed,
    ClampedInPlace,
    ClassToken,
    Decoder,
    DenselyConnected,
    Distances,
    Experts,
    Flattened,
    Fourier,
    Gated,
    GradientStopped,
    InputOverwritten,
    InputShifted,
    Masked,
    MaskedAttention,
    Mixer,
    OnDemand,
    OutputChanged,
    PaddedAttention,
    PairProduct,
    Positions,
    Recurrent,
    Residual,
    RowsSorted,
    ScaledLinear,
    Scores,
    SequenceFirst,
    SqueezeExcite,
    Temperature,
    TiedAutoencoder,
    TimeFolded,
    UNet,
    UnusedLayer,
    Vector,
    cut,
    rounded,
    sum_and_product,
    values_of,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_gradspace.gradients import GradientEngine


@dataclass(frozen=True)
class Case:
    """A net and rows for it, the same each time."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (6,)
    n: int = 5
    indices: int = 0  # where the rows hold indices below this
    scalar: str = "cross_entropy"
    output: Callable | None = None

    def net(self) -> nn.Module:
        """Return a new net in training mode, its parameters and running statistics off their initial values."""
        return drawn(self.build, crc32(self.name.encode()), 0.2)

    @property
    def X(self) -> np.ndarray:
        """Rows of shape (n, *shape); integers where an embedding reads them."""
        rng = np.random.default_rng(crc32(self.name.encode()))
        size = (self.n, *self.shape)
        return rng.integers(self.indices, size=size) if self.indices else rng.normal(size=size)

    def X_of(self, dtype: type) -> np.ndarray:
        """Return the rows in a precision, in which indices have no part."""
        return self.X if self.indices else self.X.astype(dtype)

    @property
    def options(self) -> dict:
        """Which scalars of the net are differentiated."""
        return {"scalar": self.scalar, "output": self.output}

    def engine(self, device=None, layers="all", net=None, **options) -> GradientEngine:
        """Return an engine on a new net, or on `net`, that these rows decided on."""
        return GradientEngine(self.net() if net is None else net, self.X, layers, device, **(self.options | options))


def _mlp(*widths, activation=nn.ReLU, bias=True):
    layers = [nn.Linear(i, o, bias=bias) for i, o in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in (layer, activation())))[:-1]


def _between(*layers):
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3))


def _conv(rank, c_in=2, c_out=4, kernel_size=3, then=(), **options):
    layer = getattr(nn, f"Conv{rank}d")(c_in, c_out, kernel_size, **options)
    return nn.Sequential(layer, *(then or (nn.Tanh(),)), *_pooled(rank, c_out))


def _transposed(rank, c_in=2, c_out=4, kernel_size=3, then=(), **options):
    layer = getattr(nn, f"ConvTranspose{rank}d")(c_in, c_out, kernel_size, **options)
    return nn.Sequential(layer, nn.Tanh(), *_pooled(rank, c_out))


def _pooled(rank, channels):
    return getattr(nn, f"AdaptiveAvgPool{rank}d")(1), nn.Flatten(), nn.Linear(channels, 3)


def _flattened(body, width, n_out=3):
    return nn.Sequential(body, nn.Flatten(), nn.Linear(width, n_out))


def _separable():
    return _conv(2, c_in=4, groups=4, then=(nn.Conv2d(4, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1)))


def _causal():
    first, second = (nn.Conv1d(4, 4, 2, dilation=dilation) for dilation in (1, 2))
    return nn.Sequential(
        nn.ConstantPad1d((1, 0), 0), first, nn.Tanh(), nn.ConstantPad1d((2, 0), 0), second, *_pooled(1, 4)
    )


def _encoder(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **options)
    return _flattened(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 12)


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
    Case("conv2d separable", _separable, (4, 7, 6)),
    Case("conv1d causal", _causal, (4, 5)),
    Case("transposed conv", lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), *_conv(2, 4)), IMAGE),
    Case("transposed conv1d", partial(_transposed, 1, stride=3, padding=1, output_padding=2), (2, 5)),
    Case("transposed conv1d dilation groups", partial(_transposed, 1, dilation=2, groups=2, padding=2), (2, 5)),
    Case("transposed conv2d without bias", partial(_transposed, 2, bias=False, kernel_size=(3, 2)), IMAGE),
    Case(
        "transposed conv2d every option",
        partial(
            _transposed, 2, c_in=4, groups=2, stride=(2, 3), padding=(1, 2), output_padding=(1, 0), dilation=(1, 2)
        ),
        (4, 3, 4),
    ),
    Case("transposed conv2d depthwise", partial(_transposed, 2, c_in=4, groups=4, stride=2), (4, 3, 4)),
    Case("transposed conv3d", partial(_transposed, 3, stride=2, padding=1, output_padding=(0, 1, 1)), (2, 2, 3, 2)),
    Case("transposed conv3d groups", partial(_transposed, 3, kernel_size=2, groups=2, dilation=2), (2, 2, 3, 2)),
    Case("u net", UNet, IMAGE),
    Case("max pool ceil", partial(_conv, 2, then=(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Tanh())), IMAGE),
    Case("avg pool ceil", partial(_conv, 2, then=(nn.AvgPool2d(2, ceil_mode=True), nn.ReLU())), IMAGE),
    Case("batch norm 1d", lambda: _between(nn.BatchNorm1d(6), nn.ReLU())),
    Case("batch norm 2d", lambda: _conv(2, then=(nn.BatchNorm2d(4), nn.ReLU())), IMAGE),
    Case("batch norm 3d", lambda: _conv(3, kernel_size=2, then=(nn.BatchNorm3d(4), nn.ReLU())), (2, 3, 4, 3)),
    Case("batch norm of steps", lambda: _flattened(nn.Sequential(nn.BatchNorm1d(3), nn.Tanh()), 12), (3, 4)),
    Case("layer norm", lambda: _between(nn.LayerNorm(6), nn.ReLU())),
    Case("layer norm without bias", lambda: _between(nn.LayerNorm(6, bias=False), nn.ReLU())),
    Case("layer norm of steps", lambda: _flattened(nn.Sequential(nn.LayerNorm(4), nn.Tanh()), 12), (3, 4)),
    Case("layer norm of images", lambda: _conv(2, then=(nn.LayerNorm((4, 5, 4)), nn.ReLU())), IMAGE),
    Case("rms norm", lambda: _between(nn.RMSNorm(6), nn.ReLU())),
    Case("rms norm of steps", lambda: _flattened(nn.Sequential(nn.RMSNorm((3, 4), 1e-3), nn.Tanh()), 12), (3, 4)),
    Case("group norm of features", lambda: _between(nn.GroupNorm(3, 6), nn.ReLU())),
    Case("group norm", lambda: _conv(2, then=(nn.GroupNorm(2, 4), nn.ReLU())), IMAGE),
    Case("instance norm", lambda: _conv(2, then=(nn.InstanceNorm2d(4, affine=True), nn.ReLU())), IMAGE),
    Case("instance norm 1d", lambda: _conv(1, then=(nn.InstanceNorm1d(4, affine=True), nn.Tanh())), (2, 8)),
    Case(
        "instance norm 3d",
        lambda: _conv(3, kernel_size=2, then=(nn.InstanceNorm3d(4, 1e-5, 0.1, True, True), nn.Tanh())),
        (2, 3, 4, 3),
    ),
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
    Case("parameters without axes", Temperature),
    Case("attention", partial(Attention, True), (3, 4)),
    Case("attention over steps first", partial(Attention, False), (5, 4)),
    Case("attention with its weights", partial(Attention, True, need_weights=True), (3, 4)),
    Case("attention under a mask", partial(MaskedAttention, 3), (3, 4)),
    Case("mask as long as the batch", partial(MaskedAttention, 5), (5, 4)),
    Case("mask as long as the rows that decide", partial(MaskedAttention, 4), (4, 4)),
    Case("attention without padding", PaddedAttention, (3, 4)),
    Case(
        "transformer",
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 3)),
        (3, 4),
    ),
    Case("transformer encoder", _encoder, (3, 4)),
    Case("transformer encoder norm first", partial(_encoder, norm_first=True, activation="gelu", bias=False), (3, 4)),
    Case("transformer decoder", partial(Decoder, 3), (3, 4)),
    Case("mixer", Mixer, (3, 4)),
    Case("fourier", Fourier, (3, 4)),
    Case("lstm", partial(Recurrent, nn.LSTM), (3, 4)),
    Case("gru", partial(Recurrent, nn.GRU), (3, 4)),
    Case("rnn both ways", partial(Recurrent, nn.RNN, n_out=10, num_layers=2, bidirectional=True), (3, 4)),
    Case("lstm cell", partial(Cells, nn.LSTMCell), (3, 4)),
    Case("gru cell", partial(Cells, nn.GRUCell), (3, 4)),
    Case("embedding", lambda: _flattened(nn.Embedding(7, 4), 12), (3,), indices=7),
    Case(
        "embedding of rounded numbers", lambda: nn.Sequential(Apply(rounded), nn.Embedding(5, 4), *_pooled(1, 6)), (6,)
    ),
    Case("embedding of a grid", lambda: _flattened(nn.Embedding(3, 2, padding_idx=2), 12), (2, 3), indices=3),
    Case("embedding of one index", lambda: nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)), (), indices=3),
    Case("sparse embedding", lambda: _flattened(nn.Embedding(7, 4, sparse=True), 12), (3,), indices=7),
    Case("embedding bag", lambda: nn.Sequential(nn.EmbeddingBag(4, 5), nn.Tanh(), nn.Linear(5, 3)), (6,), indices=4),
    Case("embedding of positions", partial(Positions, 6), (6,), indices=4),
    Case("as many positions as rows", partial(Positions, 5), (5,), indices=4),
    Case("as many positions as rows that decide", partial(Positions, 4), (4,), indices=4),
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
    Case("as many steps first as rows that decide", SequenceFirst, (4, 4)),
    Case("rows sorted", RowsSorted),
    Case("experts", Experts),
    Case("on demand", OnDemand),
    Case("distances to a parameter", lambda: Distances(in_a_layer=False)),
    Case("distances to a layer's weight", lambda: Distances(in_a_layer=True)),
    Case("two inputs and a keyword", PairProduct),
    Case("plain tensor", Masked),
    Case("checkpointed", Checkpointed),
    Case("gradient stopped", GradientStopped),
    Case("gated", Gated),
    Case("gated linear unit", lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3))),
    Case("bottleneck", lambda: nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 6), nn.GELU(), nn.Linear(6, 3))),
    Case("squeeze and excite", SqueezeExcite, IMAGE),
    Case("densely connected", DenselyConnected, IMAGE),
    Case("added in place", AddedInPlace, IMAGE),
    Case("upsampled", lambda: _conv(2, then=(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3))), IMAGE),
    Case("shuffled pixels", lambda: _conv(2, then=(nn.PixelShuffle(2), nn.Conv2d(1, 4, 2))), IMAGE),
    Case("viewed as vectors", partial(Flattened, False), IMAGE),
    Case("strided as vectors", partial(Flattened, True), IMAGE),
    Case("returns a tuple", partial(Scores, values_of), output=lambda returned: returned[0]),
    Case("returns a dict", partial(Scores, dict), output=lambda returned: returned["logits"]),
    Case("returns what is cut", partial(_mlp, 6, 5, 4), output=cut),
    Case("one logit", partial(_mlp, 6, 5, 1)),
    Case("one logit of images", lambda: nn.Sequential(*_conv(2)[:-1], nn.Linear(4, 1)), IMAGE),
    Case("one logit without an axis", Vector),
    Case("log probabilities", partial(_mlp, 6, 5, 3), scalar="log_probability"),
    Case("log probabilities of one logit", Vector, scalar="log_probability"),
    Case("regression", partial(_mlp, 6, 5, 3), scalar="logit"),
    Case("regression of one number", Vector, scalar="logit"),
    Case("regression by a convolution", partial(_conv, 2), IMAGE, scalar="logit"),
    Case("sum and product", partial(_mlp, 6, 5, 3), scalar=sum_and_product),
]
BY_NAME = {case.name: case for case in CASES}
