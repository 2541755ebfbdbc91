"""The features of a row and a candidate label: gradient, selection, scaling, power.

Rows of data enter; a tensor of features leaves, for one candidate label a row or for all of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._blocks import Block
from ._engine import GradientEngine
from ._scaling import Scaler
from ._selection import select_largest


@dataclass(frozen=True)
class GradientFeatures:
    """The map from rows to gradient features.

    Parameters
    ----------
    engine : GradientEngine
    percentile : float
        Percentage of each block's entries that selection keeps.
    scaler : Scaler, optional
    power : float, optional
        Exponent p of the power norm ``sign(v) |v|^p``.
    batch_size : int
        Rows that are computed at a time where all of them are asked for.
    """

    engine: GradientEngine
    percentile: float = 100
    scaler: Scaler | None = None
    power: float | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.scaler is not None:
            object.__setattr__(self, "scaler", self.scaler.to(self.engine.device))

    def __reduce__(self):
        # By way of the constructor: where the engine finds itself is where the scaler has to be.
        return GradientFeatures, (self.engine, self.percentile, self.scaler, self.power, self.batch_size)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The columns of each parameter, within one candidate label."""
        return self.engine.blocks

    def __call__(self, X: np.ndarray, labels: Tensor | None = None) -> Tensor:
        """Return features of shape (n, n_params), or (n, n_labels, n_params) where `labels` is None."""
        features = select_largest(self.engine(X, labels), self.blocks, self.percentile)
        if self.scaler is not None:
            self.scaler(features)
        if self.power is not None and self.power != 1:
            torch.copysign(features.abs().pow_(self.power), features, out=features)
        return features
