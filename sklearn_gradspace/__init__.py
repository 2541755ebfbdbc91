"""Gradient space and equivalent-class space of trained nets, as scikit-learn estimators."""

from ._featurizer import GradientFeaturizer
from ._gradnet_classifier import GradNetClassifier
from .gradients import check_gradients

__all__ = ["GradNetClassifier", "GradientFeaturizer", "check_gradients"]
__version__ = "0.1.0"
