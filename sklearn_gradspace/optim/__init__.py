"""Optimizers over equivalent-class space, usable in any training loop."""

from ._ecoptimizer import ECOptimizer

__all__ = ["ECOptimizer"]
