"""Gradient space and equivalent-class space of trained nets, as scikit-learn estimators."""

from ._featurizer import GradientFeaturizer
from ._gradnet_classifier import GradNetClassifier

__all__ = ["GradNetClassifier", "GradientFeaturizer"]
__version__ = "0.1.0"
