"""Products of windows: the per-sample weight gradients of convolutions, transposed ones included, in 1 to 3 dimensions.

What a window slides over and what stands at each of its positions enter; for a convolution these are the layer's input
and the cotangents of its output, for a transposed one the other way round. Three ways to the same sums are chosen from
by shape.
"""

from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad
from torch.nn.modules.conv import _ConvNd

from ._scratch import Scratch

# Window copies of this size, one for each thread, stay in the caches of a CPU; elsewhere a launch has to be worth it.
_WINDOW_BYTES = 2**20
_WINDOW_BYTES_ELSEWHERE = 2**26
_STACKED_BYTES = 2**24  # gradients of a row up to which one product makes those of all its scalars
# Where a grouped convolution, which takes each sample for a group, costs less than copying windows: on CPUs these are
# numbers of channels that it has kernels for, and images with depth, of which windows have many entries.
_MANY_POSITIONS, _MANY_CHANNELS = 1024, 16
_POSITIONS, _CHANNELS = 256, (1, 8, 16)

# Products of windows of an odd size, as first layers have, take up to four times as long as of a multiple of this.
_REGISTER = 16

_GROUPED = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}


def padded(layer: _ConvNd, inputs: Tensor) -> Tensor:
    """Return the input of a convolution with its padding around it."""
    widths = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, widths, mode=mode) if any(widths) else inputs


def window_products(layer: _ConvNd, windowed: Tensor, points: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Write ``sum over positions q of points_q windows_q^T``.

    Parameters
    ----------
    layer : Module
        The convolution, for its stride, dilation and groups.
    windowed : Tensor of shape (n, c, *size)
    points : Tensor of shape (n, k, m, *positions)
    out : Tensor of shape (n, k, m, c / groups, *kernel)
    scratch : Scratch
    """
    n_positions, k = points[0, 0, 0].numel(), points.shape[1]
    if k > 1 and out[0].nbytes > _STACKED_BYTES:
        for j in range(k):
            window_products(layer, windowed, points[:, j : j + 1], out[:, j : j + 1], scratch)
    elif _suits_groups(layer, out, n_positions):
        _by_grouped_convolution(layer, windowed, points, out)
    else:
        # Windows are copied in the order of memory, which is by tap, and the products put into that of the weights, or
        # the other way round: whichever is less.
        by_tap = _is_by_tap(out) or n_positions >= k * out.shape[2] // layer.groups
        _by_windows(layer, windowed, points, out, scratch, in_weight_order=not by_tap)


def _suits_groups(layer: _ConvNd, out: Tensor, n_positions: int) -> bool:
    k, c, rank = out.shape[1], out.shape[3], out.ndim - 4
    if layer.groups > 1:
        return c == 1
    if out.device.type != "cpu":
        return n_positions >= _MANY_POSITIONS and c >= _MANY_CHANNELS
    if rank == 3:
        return c <= max(_CHANNELS)
    return max(layer.stride) == 1 and c in _CHANNELS and (c == 1 or (k == 1 and n_positions >= _POSITIONS))


def _by_grouped_convolution(layer: _ConvNd, windowed: Tensor, points: Tensor, out: Tensor) -> None:
    (n, k, m), (c, *kernel), groups = points.shape[:3], out.shape[3:], layer.groups
    spans = zip(points.shape[3:], layer.stride, layer.dilation, kernel)
    for axis, (positions, stride, dilation, size) in enumerate(spans, 2):  # no more than what is in windows
        windowed = windowed.narrow(axis, 0, (positions - 1) * stride + (size - 1) * dilation + 1)
    points = points.unflatten(2, (groups, -1)).transpose(1, 2)  # (n, groups, k, m / groups, *positions)
    points = points.reshape(1, n * k * m, *points.shape[4:])
    windowed = windowed.reshape(1, n * groups * c, *windowed.shape[2:])
    shape, options = (n * k * m, c, *kernel), {"stride": layer.stride, "dilation": layer.dilation}
    product = _GROUPED[len(kernel)](windowed, shape, points, groups=n * groups, **options)
    out.unflatten(2, (groups, -1)).copy_(product.view(n, groups, k, m // groups, c, *kernel).transpose(1, 2))


def _by_windows(
    layer: _ConvNd, windowed: Tensor, points: Tensor, out: Tensor, scratch: Scratch, in_weight_order: bool
) -> None:
    (n, k, m, *positions), (c, *kernel), groups = points.shape, out.shape[3:], layer.groups
    rank, m, n_positions, n_taps = len(kernel), m // groups, prod(positions), prod(kernel)
    windows = _windows(layer, windowed, positions, kernel).unflatten(-1, (groups, c)).movedim(-2, 1)
    turns = in_weight_order and out.device.type == "cpu"  # elsewhere copies of windows are in that order at once
    if in_weight_order and not turns:
        windows = windows.movedim(-1, 2 + rank)  # (n, groups, *positions, c, *kernel)
    points = points.movedim((1, 2), (-2, -1)).reshape(n, n_positions, k, groups, m).movedim(3, 1)
    points = points.reshape(n, groups, n_positions, k * m).mT  # (n, groups, k · m, positions)
    weights = out.view(n, k, groups, m, c, n_taps)
    ordered = weights if in_weight_order else weights.mT  # as the products come
    size = n_taps * c
    width = size + -size % _REGISTER if size % 2 else size
    straight = groups == k == 1 and ordered[0].is_contiguous() and width == size

    limit = _WINDOW_BYTES * torch.get_num_threads() if out.device.type == "cpu" else _WINDOW_BYTES_ELSEWHERE
    step = min(n, max(1, limit // (groups * n_positions * width * out.element_size())))
    copies = scratch("windows", (step * groups, n_positions, width), out.dtype, out.device)
    turned = scratch("turned windows", copies.shape, out.dtype, out.device) if turns else None
    products = None if straight else scratch("products", (step * groups, k * m, width), out.dtype, out.device)
    for start in range(0, n, step):
        part = slice(start, start + step)
        rows = len(out[part])
        u = copies[: rows * groups]
        u[..., :size].view(windows[part].shape).copy_(windows[part])
        if turned is not None:
            by_tap, u = u[..., :size].unflatten(2, (n_taps, c)), turned[: rows * groups]
            _put(u[..., :size].unflatten(2, (c, n_taps)), by_tap.mT)
        delta = points[part].reshape(rows * groups, k * m, n_positions)
        if straight:
            torch.bmm(delta, u, out=ordered[part].view(rows, m, size))
            continue
        product = torch.bmm(delta, u, out=products[: rows * groups])[..., :size]
        product = product.view(rows, groups, k, m, *ordered.shape[-2:]).transpose(1, 2)
        _put(weights[part], product if in_weight_order else product.mT)


def _put(place: Tensor, numbers: Tensor) -> None:
    """Copy numbers in another order to `place`; on a single thread by NumPy, which is up to twice as fast as torch."""
    if place.device.type == "cpu" and torch.get_num_threads() == 1 and place.dtype != torch.bfloat16:
        np.copyto(place.numpy(), numbers.numpy())
    else:
        place.copy_(numbers)


def _is_by_tap(weights: Tensor) -> bool:
    """Whether the taps of weights of shape (n, k, m, c, *kernel) stand before the channels in memory."""
    return weights[0, 0, 0].movedim(0, -1).is_contiguous()


def _windows(layer: _ConvNd, windowed: Tensor, positions: list[int], kernel: list[int]) -> Tensor:
    """Return the view of shape (n, *positions, *kernel, channels) on a tensor with its channels last."""
    windowed = windowed.movedim(1, -1).contiguous()
    strides = windowed.stride()
    return windowed.as_strided(
        (len(windowed), *positions, *kernel, windowed.shape[-1]),
        (
            strides[0],
            *(stride * step for stride, step in zip(strides[1:], layer.stride)),
            *(stride * dilation for stride, dilation in zip(strides[1:], layer.dilation)),
            strides[-1],
        ),
    )
