"""The contenders of the main job: what is fitted to the second half of the data, and the settings each may choose from.

A trained base net enters; for each contender an estimator and a grid of settings leave.
"""

import copy
from functools import partial

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from torch import nn

from .._featurizer import GradientFeaturizer
from .._gradient_kernel_classifier import GradientKernelClassifier
from .._gradnet_classifier import GradNetClassifier
from .._net_classifier import NetClassifier
from ._activations import PenultimateActivations, last_linear

BASE = "base net"
GRADNET = "GradNet on gradients"
FINE_TUNED = "base fine-tuned"
LAST_LAYER = "last layer retrained"
ON_ACTIVATIONS = "GradNet on penultimate activations"
WITHOUT_BASE = "logistic regression without a base net"
KERNEL = "kernel on gradients"
KERNEL_OF_LAST_LAYER = "kernel on the last layer's gradients"
SVM_WITHOUT_BASE = "squared-kernel SVM without a base net"
CONTENDERS = (
    KERNEL,
    KERNEL_OF_LAST_LAYER,
    GRADNET,
    ON_ACTIVATIONS,
    FINE_TUNED,
    LAST_LAYER,
    SVM_WITHOUT_BASE,
    WITHOUT_BASE,
)


def contender(name: str, net: nn.Module, seed: int, device: str | None) -> tuple[BaseEstimator, dict[str, list]]:
    """Return the estimator called `name` on the trained base net `net`, and the settings of it to choose from."""
    device = device or "cpu"
    if name == FINE_TUNED:
        tuner = NetClassifier(partial(copy.deepcopy, net), device=device, random_state=seed)
        return tuner, {"lr": [3e-4, 1e-3, 3e-3, 1e-2], "max_epochs": [20, 60]}
    if name in (KERNEL, KERNEL_OF_LAST_LAYER):
        layers = "weights" if name == KERNEL else f"{last_linear(net)}.weight"
        return GradientKernelClassifier(net, layers=layers, device=device), {"normalize": [True, "layer"]}
    if name == SVM_WITHOUT_BASE:
        machine = make_pipeline(FunctionTransformer(_flatten), StandardScaler(), SVC(kernel="poly", degree=2, coef0=1))
        return machine, {"svc__C": [1e-2, 1e-1, 1, 10, 100]}
    if name in (LAST_LAYER, WITHOUT_BASE):
        features = PenultimateActivations(net) if name == LAST_LAYER else FunctionTransformer(_flatten)
        regression = make_pipeline(features, StandardScaler(), LogisticRegression(max_iter=5000))
        return regression, {"logisticregression__C": [1e-3, 1e-2, 1e-1, 1, 10, 100]}
    gradnet = GradNetClassifier(64, batch_size=64, device=device, random_state=seed)
    if name == ON_ACTIVATIONS:
        pipeline = make_pipeline(PenultimateActivations(net), StandardScaler(), gradnet)
        return pipeline, {"gradnetclassifier__max_epochs": [30, 100]}
    pipeline = make_pipeline(GradientFeaturizer(net, device=device), gradnet)
    return pipeline, {"gradientfeaturizer__percentile": [8, 15, 30]}


def _flatten(X: np.ndarray) -> np.ndarray:
    return X.reshape(len(X), -1)
