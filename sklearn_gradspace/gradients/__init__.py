"""Per-sample gradients of a trained net: engine, selection, scaling and the array that computes them when asked."""

from ._array import GradientArray
from ._blocks import Block
from ._engine import GradientEngine
from ._features import GradientFeatures
from ._passes import over_batches
from ._rules import ParameterRule
from ._scaling import SCALES, Scaler, ScaleStatistics
from ._sharing import packed, shared_copy

__all__ = [
    "SCALES",
    "Block",
    "GradientArray",
    "GradientEngine",
    "GradientFeatures",
    "ParameterRule",
    "ScaleStatistics",
    "Scaler",
    "over_batches",
    "packed",
    "shared_copy",
]
