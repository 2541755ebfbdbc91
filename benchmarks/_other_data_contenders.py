"""The contenders of `other_data.py`: what is fitted beside a base net, and the settings each may choose from.

A name, a trained base net, whether data are large, epochs and a seed enter; an estimator and a grid of settings leave.
"""

from _table1_contenders import base_logits
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
from sklearn_gradspace._main_job._contenders import (
    BASE,
    FINE_TUNED,
    KERNEL,
    KERNEL_OF_LAST_LAYER,
    LAST_LAYER,
    ON_ACTIVATIONS,
    SVM_WITHOUT_BASE,
    WITHOUT_BASE,
    contender,
)

GRADNET, FROM_LOGITS = "GradNet on gradients, defaults", "GradNet on gradients, from the net's logits, all views"
REGRESSION = "logistic regression on gradients of the predicted label"
SVM, BOOSTING = "SVM without a base net", "gradient boosting without a base net"
ON_GRADIENTS = (KERNEL, GRADNET, FROM_LOGITS, REGRESSION)
WITH_BASE = (BASE, *ON_GRADIENTS, KERNEL_OF_LAST_LAYER, ON_ACTIVATIONS, LAST_LAYER, FINE_TUNED)
WITHOUT = (WITHOUT_BASE, SVM, BOOSTING)

_ON_LAYERS = {"scale": "layer", "percentile": 100, "power": None}  # these features need not be formed
_GRIDS = {
    KERNEL: {"normalize": [True, "layer"], "degree": [2, 1]},
    KERNEL_OF_LAST_LAYER: {"degree": [2, 1]},
    ON_ACTIVATIONS: {"gradnetclassifier__max_epochs": [30, 100]},
    FINE_TUNED: {"lr": [3e-4, 1e-3, 3e-3, 1e-2], "max_epochs": [20, 60]},
    SVM: {
        "standardscaler": [StandardScaler(), "passthrough"],
        "svc__kernel": ["rbf", "poly"],
        "svc__C": [1e-2, 1e-1, 1, 10, 100],
    },
    BOOSTING: {"learning_rate": [0.03, 0.1], "min_samples_leaf": [5, 20]},
}
_GRIDS_OF_LARGE = {
    KERNEL: {"normalize": [True, "layer"]},
    KERNEL_OF_LAST_LAYER: {},
    ON_ACTIVATIONS: {"gradnetclassifier__max_epochs": [30]},
    FINE_TUNED: {"lr": [3e-4, 1e-3, 3e-3], "max_epochs": [20]},
    SVM: {"standardscaler": ["passthrough"], "svc__kernel": ["rbf", "poly"], "svc__C": [0.1, 1, 10]},
}


def estimator_and_grid(
    name: str, net: nn.Module, large: bool, epochs: int, seed: int
) -> tuple[BaseEstimator, dict[str, list]]:
    """Return the contender called `name` and its settings; for large data there are fewer of them."""
    if name == GRADNET:
        model = make_pipeline(
            GradientFeaturizer(net, random_state=seed), GradNetClassifier(max_epochs=epochs, random_state=seed)
        )
        return model, {} if large else {"gradientfeaturizer__percentile": [15, 5, 50]}
    if name == FROM_LOGITS:
        gradnet = GradNetClassifier(base_logits=True, views="all", max_epochs=epochs, random_state=seed)
        model = make_pipeline(GradientFeaturizer(net, random_state=seed, **_ON_LAYERS), gradnet)
        of_layers = {"gradnetclassifier__activation": ["relu", "square"]}
        defaults = {
            f"gradientfeaturizer__{k}": [v] for k, v in {"scale": "minmax", "percentile": 15, "power": 0.5}.items()
        }
        return model, of_layers if large else [defaults, of_layers]
    if name == REGRESSION:
        features = GradientFeaturizer(
            net, labels="predicted", percentile=100, scale=None, power=None, projection=1024 if large else None,
            output="dense", random_state=seed,
        )  # fmt: skip
        both = make_union(features, FunctionTransformer(base_logits, kw_args={"net": net}))
        model = make_pipeline(both, StandardScaler(), LogisticRegression(max_iter=300))
        scalar = "featureunion__gradientfeaturizer__scalar"
        penalties = [1e-3, 1e-1] if large else [1e-4, 1e-3, 1e-2, 1e-1, 1]
        return model, {scalar: ["logit"] if large else ["logit", "cross_entropy"], "logisticregression__C": penalties}
    if name == BOOSTING:
        return HistGradientBoostingClassifier(random_state=seed), _GRIDS[name]
    model, grid = contender(SVM_WITHOUT_BASE if name == SVM else name, net, seed, None)
    return model, (_GRIDS | _GRIDS_OF_LARGE if large else _GRIDS).get(name, grid)
