"""The kinds of estimators, and of what they consist of: parameters for the constructor, and attributes."""

import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import sklearn
import skorch
import torch
from sklearn import decomposition, feature_selection, impute, linear_model, pipeline, preprocessing, svm
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.frozen import FrozenEstimator
from skorch.dataset import ValidSplit
from skorch.history import History

from .._base_net import BaseNetMixin, trained_module
from .._ecopt import ECOptClassifier, ECOptRegressor
from .._featurizer import GradientFeaturizer
from .._gradient_kernel import GradientKernel, LogitDirections
from .._gradient_kernel_classifier import GradientKernelClassifier
from .._gradnet_classifier import GradNetClassifier
from .._importance import EdgeImportance
from .._net_classifier import NetClassifier
from .._net_estimator import NetEstimator
from .._net_regressor import NetRegressor
from ..gradients import (
    Block,
    EngineReport,
    GradientEngine,
    GradientFeatures,
    GradientGram,
    ParameterRule,
    Projection,
    Scaler,
    Whitening,
)
from ..gradients._sharing import usable
from ._tree import Kind, Path, Reader, Writer, add_kind, known

_OURS = (
    *(ECOptClassifier, ECOptRegressor, EdgeImportance, GradNetClassifier, GradientFeaturizer, GradientKernel),
    *(GradientKernelClassifier, NetClassifier, NetRegressor),
)
_SCIKIT_LEARNS = {
    decomposition: ("PCA", "TruncatedSVD"),
    feature_selection: ("VarianceThreshold",),
    impute: ("SimpleImputer",),
    linear_model: (
        *("LinearRegression", "LogisticRegression", "Ridge", "RidgeCV", "RidgeClassifier", "RidgeClassifierCV"),
    ),
    pipeline: ("FeatureUnion", "Pipeline"),
    preprocessing: (
        *("LabelBinarizer", "MaxAbsScaler", "MinMaxScaler", "Normalizer", "RobustScaler", "StandardScaler"),
    ),
    svm: ("LinearSVC", "LinearSVR"),
}
_ESTIMATORS: dict[str, type] = {
    **{f"sklearn_gradspace.{of.__name__}": of for of in _OURS},
    **{f"{m.__name__}.{name}": getattr(m, name) for m, names in _SCIKIT_LEARNS.items() for name in names},
    "sklearn.frozen.FrozenEstimator": FrozenEstimator,
}
_NAMES = {of: name for name, of in _ESTIMATORS.items()}
_DATA: Sequence[type] = (Block, ParameterRule, Projection, Scaler, Whitening, GradientFeatures, GradientGram)
_OBJECTS: Sequence[type] = (LogitDirections, ValidSplit)

# What is made anew: by skorch, from gradients, or by the user.
_LEFT_OUT = {
    *("callbacks_", "criterion_", "optimizer_", "virtual_params_", "initialized_", "init_context_"),
    *("_params_to_validate", "_held", "_metadata_request", "_skl_callbacks"),
}


def _attributes(reader: Reader, nodes: dict, of: type) -> dict[str, Any]:
    """Return attributes for an object of a class, none of which stands in for a method."""
    methods = [name for name in nodes if callable(getattr(of, name, None))]
    if methods:
        raise ValueError(f"the file has attributes that are methods of {of.__name__}: {', '.join(methods)}.")
    return reader.nodes(nodes)


def versions() -> dict[str, str]:
    """Return the versions that a file is written with."""
    from .. import __version__

    return {
        "sklearn_gradspace": __version__,
        "sklearn": sklearn.__version__,
        "skorch": skorch.__version__,
        "torch": str(torch.__version__),
    }


def _write_estimator(writer: Writer, estimator: BaseEstimator, path: Path) -> dict:
    params = estimator.get_params(deep=False)
    if isinstance(estimator, NetEstimator):
        params["callbacks"] = None
    if isinstance(estimator, BaseNetMixin):  # of a skorch net the module is what counts
        module = trained_module(params["net"])
        params["net"] = params["net"] if module is None else module
    state = {k: v for k, v in vars(estimator).items() if k not in params and k not in _LEFT_OUT}
    return {
        "class": _NAMES[type(estimator)],
        "params": writer.nodes(params, path),
        "state": writer.nodes(state, path),
    }


def _read_estimator(reader: Reader, node: dict) -> BaseEstimator:
    of = known(_ESTIMATORS, node["class"], "estimator")
    written = reader.versions["sklearn"]
    if of not in _OURS and written != sklearn.__version__:
        warnings.warn(
            InconsistentVersionWarning(
                estimator_name=of.__name__,
                current_sklearn_version=sklearn.__version__,
                original_sklearn_version=written,
            ),
            stacklevel=2,
        )
    params, state = (_attributes(reader, node[part], of) for part in ("params", "state"))
    if params.get("device") is not None and usable(params["device"]) != torch.device(params["device"]):
        params["device"] = "cpu"
    estimator = of(**params)
    vars(estimator).update(state)
    if isinstance(estimator, (NetEstimator, GradientKernelClassifier)):
        estimator._restore()
    return estimator


def _write_engine(writer: Writer, engine: GradientEngine, path: Path) -> dict:
    return {"state": writer.nodes(engine.__getstate__() | {"net": engine.net}, path)}


def _read_engine(reader: Reader, node: dict) -> GradientEngine:
    engine = GradientEngine.__new__(GradientEngine)
    engine.__setstate__(_attributes(reader, node["state"], GradientEngine))
    return engine


def _write_history(writer: Writer, history: History, path: Path) -> dict:
    epochs = [{name: value for name, value in epoch.items() if name != "batches"} for epoch in history]
    return {"epochs": writer.node(epochs, path)}


def _read_history(reader: Reader, node: dict) -> History:
    return History({"batches": []} | epoch for epoch in reader.node(node["epochs"]))


def _read_object(reader: Reader, node: dict, of: type) -> object:
    made: object = of.__new__(of)  # type: ignore[call-overload]
    vars(made).update(_attributes(reader, node["state"], of))
    return made


def _add_data(of: type) -> None:
    """Make a dataclass known: its fields go through the constructor."""

    def write(writer: Writer, value: object, path: Path) -> dict:
        return {"fields": writer.nodes({field.name: getattr(value, field.name) for field in fields(of)}, path)}

    add_kind(Kind(of.__name__, write, lambda reader, node: of(**reader.nodes(node["fields"])), shared=True), of)


def _add_object(of: type) -> None:
    """Make known a class whose objects are their attributes."""

    def write(writer: Writer, value: object, path: Path) -> dict:
        return {"state": writer.nodes(vars(value), path)}

    add_kind(Kind(of.__name__, write, lambda reader, node: _read_object(reader, node, of), shared=True), of)


for _of in _DATA:
    _add_data(_of)
for _of in _OBJECTS:
    _add_object(_of)
add_kind(Kind("estimator", _write_estimator, _read_estimator, shared=True), *_ESTIMATORS.values())
add_kind(Kind("GradientEngine", _write_engine, _read_engine, shared=True), GradientEngine)
add_kind(Kind("history", _write_history, _read_history), History)
add_kind(
    Kind(
        "EngineReport",
        lambda writer, value, path: {"rules": writer.node(list(value), path)},
        lambda reader, node: EngineReport(reader.node(node["rules"])),
    ),
    EngineReport,
)
