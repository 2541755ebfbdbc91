"""MNIST and CIFAR-10 as tensors on a device, standardised, in three disjoint parts; batches of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_VALIDATION = 5000  # of the training file's rows, at most a fifth


@dataclass(frozen=True)
class Part:
    """Images of shape (n, channels, height, width) and their labels."""

    X: Tensor
    y: Tensor


@lru_cache(maxsize=4)
def load(data: str, data_home: str, rows: int, test_rows: int, side: int, device: str) -> dict[str, Part]:
    """Return the parts "train", "before" (as many rows, for a net that is trained beforehand), "validation", "test".

    Parameters
    ----------
    data : {"mnist", "cifar10"}
        ``{data}.npz`` in the folder `data_home`.
    rows, test_rows : int
        At most so many rows to train and to test with; 0 takes all that are not for validation.
    side : int
        Images are averaged down to `side` times `side` pixels; 0 leaves them.
    device : str
        Where the parts are.
    """
    with np.load(Path(data_home) / f"{data}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    order = np.random.default_rng(0).permutation(len(arrays["y_train"]))
    order, held_out = np.split(order, [-min(_VALIDATION, len(order) // 5)])
    rows = min(rows or len(order), len(order))
    chosen = {
        "train": ("train", order[:rows]),
        "before": ("train", order[-rows:]),
        "validation": ("train", held_out),
        "test": ("test", slice(test_rows or None)),
    }
    parts = {name: _part(arrays, of, which, side) for name, (of, which) in chosen.items()}
    std, mean = torch.std_mean(parts["train"].X, (0, 2, 3), keepdim=True)
    return {name: Part(((p.X - mean) / std).to(device), p.y.to(device)) for name, p in parts.items()}


def _part(arrays: dict, of: str, which, side: int) -> Part:
    X = torch.from_numpy(arrays[f"X_{of}"][which]).float() / 255
    X = X[:, None] if X.ndim == 3 else X.permute(0, 3, 1, 2)
    if side:
        X = F.adaptive_avg_pool2d(X, side)
    return Part(X.contiguous(), torch.from_numpy(arrays[f"y_{of}"][which]).long())


def batches(part: Part, size: int, steps: int, augment: bool, generator: torch.Generator) -> Iterator[tuple]:
    """Yield `steps` batches of whole epochs in random order; `augment` shifts by up to 4 pixels and mirrors."""
    n, device = len(part.y), part.y.device
    size = min(size, n)
    for step in range(steps):
        place = step % (n // size)
        if not place:
            order = torch.randperm(n, generator=generator).to(device)
        rows = order[place * size : (place + 1) * size]
        X = part.X[rows]
        yield (_augmented(X, generator) if augment else X), part.y[rows]


def _augmented(X: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    n, _, height, width = X.shape
    draw = torch.randint(2 * shift + 1, (2, n, 1), generator=generator).to(X.device)
    mirrored = (torch.rand(n, 1, generator=generator) < 0.5).to(X.device)
    rows = torch.arange(height, device=X.device) + draw[0]
    columns = torch.arange(width, device=X.device)
    columns = torch.where(mirrored, columns.flip(0), columns) + draw[1]
    padded = F.pad(X, (shift,) * 4)
    image = torch.arange(n, device=X.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
