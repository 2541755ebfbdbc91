"""Layers that have weights: which input and output channel each entry of a weight belongs to."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Geometry:
    """The channels of a layer.

    Parameters
    ----------
    n_in, n_out : int
        Number of channels, or of columns, that are read and written.
    reads, writes : Tensor
        Channel that an entry of the weight reads and writes; broadcastable to the weight's shape.
    ndim : int or None
        Number of axes of what is read and written; None for linear layers, which take any.
    """

    n_in: int
    n_out: int
    reads: Tensor
    writes: Tensor
    ndim: int | None = None


def _linear(layer: nn.Linear) -> Geometry:
    n_out, n_in = layer.weight.shape
    return Geometry(n_in, n_out, torch.arange(n_in)[None], torch.arange(n_out)[:, None])


def _convolution(layer) -> Geometry:
    n_out, per_group = layer.weight.shape[:2]
    first = torch.arange(n_out) // (n_out // layer.groups) * per_group  # the first input channel of the group
    reads, writes = first[:, None] + torch.arange(per_group), torch.arange(n_out)[:, None]
    return _with_taps(layer, reads, writes)


def _transposed_convolution(layer) -> Geometry:
    n_in, per_group = layer.weight.shape[:2]
    first = torch.arange(n_in) // (n_in // layer.groups) * per_group
    return _with_taps(layer, torch.arange(n_in)[:, None], first[:, None] + torch.arange(per_group))


def _with_taps(layer, reads: Tensor, writes: Tensor) -> Geometry:
    taps = (1,) * (layer.weight.ndim - 2)
    reads, writes = (index.reshape(*index.shape, *taps) for index in (reads, writes))
    return Geometry(layer.in_channels, layer.out_channels, reads, writes, layer.weight.ndim)


WEIGHTED = {  # type: ignore[misc]
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_convolution),
}
NORMALISING = {nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}  # number of axes
# f(c x) = c f(x) for each channel by itself and c > 0, and channels stay where they are.
HOMOGENEOUS = {
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.PReLU,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
}  # fmt: skip
# Those of them that act on positions, with the number of axes of what they take; None for any above two.
ON_IMAGES = {
    layer: next((n + 2 for n in (1, 2, 3) if f"{n}d" in layer.__name__), None)
    for layer in HOMOGENEOUS
    if any(kind in layer.__name__ for kind in ("Pool", "Pad", "Upsampl"))
}


def n_positions(size, ndim: int | None) -> int | None:
    """Return how many positions images of `ndim` axes have, whose `size` is a number or several, if they are known."""
    size = (size,) * ((ndim or 2) - 2) if isinstance(size, int) else size
    return math.prod(size) if isinstance(size, tuple) and all(isinstance(n, int) for n in size) else None


def positions_behind(layer, before) -> object:
    """Return how many positions there are behind a layer on images: a number, or what is the same if they are as many.

    Parameters
    ----------
    layer : Module
        A convolution, or one of `ON_IMAGES`.
    before : int or object
        The same in front of it.
    """
    if type(layer) not in WEIGHTED:
        known = n_positions(getattr(layer, "output_size", None), ON_IMAGES[type(layer)])
        return known or (_shape_like(before), str(layer))
    taps = list(zip(layer.kernel_size, layer.stride, layer.dilation, layer.output_padding, strict=True))
    padding = (0,) * len(taps) if layer.padding == "valid" else layer.padding
    if padding == "same" or all(
        (stride, 2 * pad, more) == (1, dilation * (kernel - 1), 0)
        for (kernel, stride, dilation, more), pad in zip(taps, padding, strict=True)
    ):
        return before
    return _shape_like(before), layer.transposed, tuple(taps), padding


def _shape_like(before) -> object:
    """Return what is the same for images of the same shape; those of the same number of positions need not have it."""
    return object() if isinstance(before, int) else before
