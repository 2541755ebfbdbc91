"""Scaling: statistics of training gradients, and the affine map per coordinate that they define.

Selected gradients enter batch by batch; a `Scaler` leaves. The GradNet authors' is (g - min) / (max - min); zeros stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ._blocks import Block
from ._scratch import Scratch
from ._sharing import tensor_of

SCALES = ("minmax", "maxabs", "rms", "layer", None)


@dataclass(frozen=True)
class Scaler:
    """The map ``g -> (g - offset) / divisor`` of the entries that are not zero.

    Parameters
    ----------
    divisor : Tensor of shape (n_params,)
    offset : Tensor of shape (n_params,), optional
    rounding : Tensor of shape (n_params,), optional
        Distance from `offset` within which an entry is taken to be equal to it. The row that has a coordinate's minimum
        would otherwise get rounding error for a feature, and a power of 1/2 would make 3e-4 of 1e-7.
    """

    divisor: Tensor
    offset: Tensor | None = None
    rounding: Tensor | None = None

    def __reduce__(self):
        # As arrays, which joblib maps into workers and hashes alike everywhere.
        tensors = (self.divisor, self.offset, self.rounding)
        return _unpack, tuple(None if t is None else t.cpu().numpy() for t in tensors)

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite: where a gradient was not, this shows it."""
        return all(torch.isfinite(t).all().item() for t in (self.divisor, self.offset) if t is not None)

    def to(self, device: torch.device) -> "Scaler":
        """Return the scaler on `device`."""
        tensors = (self.divisor, self.offset, self.rounding)
        return Scaler(*(None if t is None else t.to(device) for t in tensors))

    def __call__(self, gradients: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Scale `gradients` of shape (..., n_params) in place and return them."""
        if self.offset is None:
            return gradients.div_(self.divisor)
        scratch = scratch or Scratch()
        # 1 for what stays and 0 else, as numbers: to fill by a mask is several times slower.
        stays, distances = scratch.like("stays", gradients), scratch.like("magnitudes", gradients)
        torch.ne(gradients, 0, out=stays)
        torch.abs(gradients.sub_(self.offset), out=distances)
        stays.mul_(torch.gt(distances, self.rounding, out=distances))
        return gradients.div_(self.divisor).mul_(stays)


@cache
def compiled_map() -> Callable[..., Tensor]:
    """Return scaling and power as one compiled kernel, in place; the first call compiles it, which takes seconds."""

    def scale(
        gradients: Tensor, offset: Tensor | None, rounding: Tensor | None, divisor: Tensor | None, power: float | None
    ) -> Tensor:
        features = gradients
        if offset is not None:
            features = features - offset
            features = torch.where((gradients != 0) & (features.abs() > rounding), features, 0.0)
        if divisor is not None:
            features = features / divisor
        if power is not None:
            features = torch.copysign(features.abs() ** power, features)
        return gradients.copy_(features)

    return torch.compile(scale, dynamic=True)


def _unpack(*arrays: np.ndarray | None) -> Scaler:
    return Scaler(*(None if array is None else tensor_of(array) for array in arrays))


class ScaleStatistics:
    """Statistics of selected gradients that add up over batches.

    Parameters
    ----------
    scale : {"minmax", "maxabs", "rms", "layer"}
        "minmax": by the range of each coordinate, zeros included. "maxabs": by the largest magnitude of each
        coordinate. "rms": by the root mean square of a coordinate's non-zero entries. "layer": the same, over a block.
    blocks : sequence of Block
    """

    def __init__(self, scale: str, blocks: Sequence[Block]) -> None:
        self.scale, self.blocks = scale, tuple(blocks)
        self._minimum: Tensor | None = None
        self._maximum: Tensor | None = None
        self._squares: Tensor | None = None
        self._counts: Tensor | None = None

    def of(self, batch) -> "ScaleStatistics":
        """Return the statistics of one batch, a GradientArray, over all of its labels."""
        found = ScaleStatistics(self.scale, self.blocks)
        for gradients in batch.parts():
            found._add(gradients.flatten(0, 1))  # (part · n_labels, n_params)
        return found

    def _add(self, gradients: Tensor) -> None:
        if self.scale not in ("minmax", "maxabs"):
            # In float64, so that the size of the batches does not show, and nothing underflows.
            of_part = ScaleStatistics(self.scale, self.blocks)
            of_part._squares = gradients.double().square().sum(0)
            of_part._counts = gradients.count_nonzero(0)
            self.merge(of_part)
            return
        if self._minimum is None:
            self._minimum, self._maximum = gradients[0].clone(), gradients[0].clone()
        if gradients.device.type == "cpu":  # whose reductions along the first axis are slow
            for row in gradients:
                torch.minimum(self._minimum, row, out=self._minimum)
                torch.maximum(self._maximum, row, out=self._maximum)
        else:
            lowest, highest = gradients.aminmax(dim=0)
            self._minimum, self._maximum = self._minimum.minimum(lowest), self._maximum.maximum(highest)

    def merge(self, other: "ScaleStatistics") -> "ScaleStatistics":
        """Take in what `other` has seen."""
        combine = {"_minimum": torch.minimum, "_maximum": torch.maximum, "_squares": torch.add, "_counts": torch.add}
        for name, operation in combine.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is not None:
                setattr(self, name, theirs if mine is None else operation(mine, theirs))  # type: ignore[operator]
        return self

    def scaler(self, dtype: torch.dtype) -> Scaler:
        """Return the scaler of everything seen. A range or a scale of zero divides by one."""
        offset = rounding = None
        if self.scale == "minmax":
            offset, divisor = self._minimum, self._maximum - self._minimum
            rounding = 32 * torch.finfo(dtype).eps * torch.maximum(self._minimum.abs(), self._maximum.abs())
        elif self.scale == "maxabs":
            divisor = torch.maximum(self._minimum.abs(), self._maximum.abs())
        else:
            squares, counts = self._squares.clone(), self._counts.clone()
            if self.scale == "layer":
                for block in self.blocks:
                    squares[block.slice] = squares[block.slice].sum()
                    counts[block.slice] = counts[block.slice].sum()
            divisor = (squares / counts.clamp(min=1)).sqrt().to(dtype)
        return Scaler(torch.where(divisor == 0, 1, divisor), offset, rounding)
