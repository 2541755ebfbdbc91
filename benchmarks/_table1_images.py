"""The images of the GradNet authors' Table 1: raw rows, their augmentation, their views, and the nets that take them.

Files leave as float32 arrays of shape (n, channels, height, width). The nets crop and standardise by themselves, so
that an augmentation of raw images keeps their shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_gradspace.modules import GradNetCNN

CORNERS = ((0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2))
NEIGHBOURS = tuple((dy, dx) for dy in (0, -1, 1) for dx in (0, -1, 1))


class CentreCropAndStandardise(nn.Module):
    """The central `side` x `side` pixels, standardised for each image, the standard deviation floored at 1/√size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Return images of shape (n, c, side, side)."""
        top, left = (images.shape[2] - self.side) // 2, (images.shape[3] - self.side) // 2
        images = images[:, :, top : top + self.side, left : left + self.side]
        mean, std = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True, correction=0)
        return (images - mean) / std.clamp(min=images[0].numel() ** -0.5)


class Augmented(nn.Module):
    """A net whose images are augmented in training."""

    def __init__(self, net: nn.Module, augment) -> None:
        super().__init__()
        self.net, self.augment = net, augment

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (n, n_classes)."""
        if self.training:
            generator = np.random.default_rng(torch.randint(2**62, ()).item())
            images = torch.from_numpy(self.augment(images.cpu().numpy(), generator)).to(images)
        return self.net(images)


def augment(X: np.ndarray, generator: np.random.Generator, shift: int, mirror: bool, contrast: bool = False):
    """Return images that are shifted by up to `shift` pixels and mirrored at random, of shape (n, c, h, w).

    The authors also change the contrast: `contrast` draws a factor in [0.2, 1.8) for each channel. Standardisation
    undoes a factor that channels share; of theirs it undoes the mean alone.
    """
    n, _, height, width = X.shape
    dy, dx = generator.integers(-shift, shift + 1, (2, n, 1))
    rows, columns = (np.arange(height) + dy) % height, (np.arange(width) + dx) % width
    if mirror:
        columns = np.where(generator.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    X = X[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    if contrast:
        factor = generator.uniform(0.2, 1.8, (*X.shape[:2], 1, 1)).astype(X.dtype)
        mean = X[:, :, shift : height - shift, shift : width - shift].mean((2, 3), keepdims=True)  # of the crop
        X = (X - mean) * factor + mean
    return np.ascontiguousarray(X)


def shifted_views(X: np.ndarray, shifts: Sequence[tuple[int, int]], mirror: bool) -> list[np.ndarray]:
    """Return the images shifted in each way and, with `mirror`, the mirror image of each."""
    views = []
    for dy, dx in shifts:
        view = np.roll(X, (-dy, -dx), (2, 3))
        views += [view, np.ascontiguousarray(view[..., ::-1])] if mirror else [view]
    return views


def ten_views(X: np.ndarray) -> list[np.ndarray]:
    """Return the centre and four shifts by 2 pixels, each with its mirror image."""
    return shifted_views(X, CORNERS, mirror=True)


def nine_views(X: np.ndarray) -> list[np.ndarray]:
    """Return the centre and eight shifts by a pixel: digits are not mirrored."""
    return shifted_views(X, NEIGHBOURS, mirror=False)


@dataclass(frozen=True)
class Images:
    """Data of Table 1: the first half of the training rows is the base net's, the second the contenders'.

    Digits are neither mirrored (`mirror`) nor changed in contrast.
    """

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    side: int
    shift: int
    mirror: bool

    @property
    def half(self) -> int:
        """Number of rows that are the base net's."""
        return len(self.X) // 2

    @property
    def views(self):
        """What makes the versions of images that predictions are averaged over."""
        return ten_views if self.mirror else nine_views

    def augment(self, contrast: bool = False):
        """Return the augmentation, a function of images and a generator."""
        return partial(augment, shift=self.shift, mirror=self.mirror, contrast=contrast and self.mirror)

    def new_net(self) -> nn.Sequential:
        """Return an untrained net of the authors'."""
        shape = (self.X.shape[1], self.side, self.side)
        return nn.Sequential(CentreCropAndStandardise(self.side), GradNetCNN(shape, len(np.unique(self.y))))


def load_images(name: str, data_home: str) -> Images:
    """Return CIFAR-10 or MNIST from ``cifar10.npz`` or ``mnist.npz`` in a folder."""
    with np.load(Path(data_home) / f"{name}.npz") as file:
        arrays = {key: file[key] for key in ("X_train", "y_train", "X_test", "y_test")}
    X, X_test = (_channels_first(arrays[key]).astype(np.float32) for key in ("X_train", "X_test"))
    y, y_test = (arrays[key].astype(np.int64) for key in ("y_train", "y_test"))
    cifar = name == "cifar10"
    return Images(X, y, X_test, y_test, side=24 if cifar else 28, shift=4 if cifar else 2, mirror=cifar)


def _channels_first(X: np.ndarray) -> np.ndarray:
    return X[:, None] if X.ndim == 3 else X.transpose(0, 3, 1, 2)
