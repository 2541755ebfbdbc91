"""Gradient space and equivalent-class space of trained nets, as scikit-learn estimators."""

from ._ecopt import ECOptClassifier, ECOptRegressor
from ._featurizer import GradientFeaturizer
from ._finetune import finetune
from ._gradient_kernel import GradientKernel
from ._gradient_kernel_classifier import GradientKernelClassifier
from ._gradnet_classifier import GradNetClassifier
from ._history_display import HistoryDisplay
from ._importance import EdgeImportance
from ._importance_display import EdgeImportanceDisplay
from ._onnx import to_onnx
from ._persistence import load, save
from ._prune import prune
from .gradients import check_gradients

__all__ = [
    "ECOptClassifier",
    "ECOptRegressor",
    "EdgeImportance",
    "EdgeImportanceDisplay",
    "GradNetClassifier",
    "GradientFeaturizer",
    "GradientKernel",
    "GradientKernelClassifier",
    "HistoryDisplay",
    "check_gradients",
    "finetune",
    "load",
    "prune",
    "save",
    "to_onnx",
]
__version__ = "0.1.0"
