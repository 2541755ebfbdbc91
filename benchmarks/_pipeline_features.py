"""The features as `GradientFeaturizer` makes them: of all labels, selected, scaled, to the power 1/2.

A net and rows enter; gradients a second leave, for each precision to compute in.
"""

from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from _gradient_nets import N_LABELS
from _measure import Rounds, alternate, peak_memory, ratio
from _peers import PERCENTILE
from torch import nn

from sklearn_gradspace.gradients import GradientArray, GradientEngine, GradientFeatures, ScaleStatistics

DTYPES = (None, "tf32", "bfloat16")
_STATISTICS_ROWS = 50


@dataclass(frozen=True)
class Rate:
    """One precision and batch size: gradients a second, how many times as fast as the net's precision, memory in MB."""

    dtype: str
    n: int
    gradients_s: float
    speed: float
    peak_mb: float
    rounding_error: float | None


def rates(net: nn.Module, X: np.ndarray, rounds: Rounds, device: torch.device) -> list[Rate]:
    """Return the rate of each precision for a batch of the rows `X`."""
    maps = {str(dtype): _features(net, X, dtype) for dtype in DTYPES}
    runs = {name: lambda of=of: _drain(of, X) for name, of in maps.items()}
    peaks = {name: _peak(net, X, dtype, device) for name, dtype in zip(maps, DTYPES)}
    seconds = alternate(runs, rounds, device, f"selected and scaled, n = {len(X)}")
    base = seconds[str(None)]
    return [
        Rate(
            name.replace("None", "float32"),
            len(X),
            len(X) * N_LABELS / median(of_rounds),
            ratio(base, of_rounds),
            peaks[name] / 1e6,
            maps[name].engine.rounding_error,
        )
        for name, of_rounds in seconds.items()
    ]


def _features(net: nn.Module, X: np.ndarray, dtype: str | None) -> GradientFeatures:
    engine = GradientEngine(net, X, dtype=dtype)
    unscaled = GradientFeatures(engine, PERCENTILE, batch_size=len(X))
    statistics = ScaleStatistics("minmax", engine.blocks).of(GradientArray(unscaled, X[:_STATISTICS_ROWS]))
    scaler = statistics.scaler(engine.feature_dtype)
    return GradientFeatures(engine, PERCENTILE, scaler, power=0.5, batch_size=len(X))


def _drain(of: GradientFeatures, X: np.ndarray) -> None:
    for _ in of.parts(X):
        pass


def _peak(net: nn.Module, X: np.ndarray, dtype: str | None, device: torch.device) -> float:
    """Return the memory of a first pass, which finds no memory to use again."""
    of = replace(_features(net, X[:4], dtype), batch_size=len(X))
    return peak_memory(lambda: _drain(of, X), device)
