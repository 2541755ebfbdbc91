"""to_onnx: what a fitted net predicts, as an ONNX model, for runtimes without Python.

A fitted ECOptClassifier or ECOptRegressor enters; a file leaves, from batches of samples to probabilities and labels or
to targets.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ._ecopt import ECOptClassifier, ECOptRegressor
from ._persistence._file import replacing
from .gradients import own_copy


class _Predictions(nn.Module):
    """A net in evaluation mode, and what scales its inputs."""

    def __init__(self, estimator: ECOptClassifier | ECOptRegressor, scalers: Sequence[StandardScaler]) -> None:
        super().__init__()
        self.net, self.dtype = own_copy(estimator.module_).cpu().eval(), estimator._dtype
        offsets = [scaler.mean_ if scaler.with_mean else 0.0 for scaler in scalers]  # which it has in any case
        divisors = [scaler.scale_ if scaler.with_std else 1.0 for scaler in scalers]
        self.scales = [tuple(map(torch.as_tensor, pair)) for pair in zip(offsets, divisors)]

    def outputs(self, X: Tensor) -> Tensor:
        for offset, divisor in self.scales:
            X = (X.double() - offset) / divisor
        return self.net(X.to(self.dtype))


class _Probabilities(_Predictions):
    names = ("probabilities", "label")

    def __init__(self, estimator: ECOptClassifier, scalers: Sequence[StandardScaler]) -> None:
        super().__init__(estimator, scalers)
        self.nonlinearity = estimator._get_predict_nonlinearity()

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self.nonlinearity(self.outputs(X))
        return probabilities, probabilities.argmax(1)


class _Targets(_Predictions):
    names = ("predictions",)

    def __init__(self, estimator: ECOptRegressor, scalers: Sequence[StandardScaler]) -> None:
        super().__init__(estimator, scalers)
        self.scale, self.mean = (torch.from_numpy(values) for values in (estimator.y_scale_, estimator.y_mean_))
        self.shape = (-1,) if estimator._one_target else (-1, len(self.mean))

    def forward(self, X: Tensor) -> Tensor:
        outputs = self.outputs(X).double().reshape(-1, len(self.mean))
        return (outputs * self.scale + self.mean).reshape(self.shape).to(self.dtype)


def to_onnx(estimator: ECOptClassifier | ECOptRegressor | Pipeline, path: str | os.PathLike) -> None:
    """Write what a fitted estimator predicts to an ONNX file.

    The model's input ``X`` is a batch of samples in single precision, of any size. A classifier's outputs are
    ``probabilities`` of shape (n, n_classes) and ``label`` of shape (n,), the number of the most probable class in
    `classes_`; the metadata of the model have these, as the JSON text ``classes``. A regressor's output is
    ``predictions``, of the shape that `predict` returns. They are in the precision that the net was trained in.

    Parameters
    ----------
    estimator : ECOptClassifier, ECOptRegressor or Pipeline
        A fitted estimator, or a pipeline of scikit-learn's StandardScaler and one.
    path : path-like
        The file, which is replaced if it is there.

    Raises
    ------
    TypeError
        For any other estimator or step.
    NotFittedError
        Before `fit`.
    FileNotFoundError
        Where there is no folder for the file.
    ImportError
        Where onnx or onnxscript is not installed.

    Examples
    --------
    >>> from sklearn_gradspace import ECOptClassifier, to_onnx
    >>> classifier = ECOptClassifier().fit(X, y)  # doctest: +SKIP
    >>> to_onnx(classifier, "classifier.onnx")  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession("classifier.onnx")  # doctest: +SKIP
    >>> probabilities, label = session.run(None, {"X": X.astype("float32")})  # doctest: +SKIP
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"to_onnx needs {' and '.join(missing)}: pip install 'sklearn-gradspace[onnx]'.")
    *scalers, last = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    scalers = [scaler for scaler in scalers if scaler not in (None, "passthrough")]
    if not isinstance(last, (ECOptClassifier, ECOptRegressor)):
        raise TypeError(f"estimator must be an ECOptClassifier or ECOptRegressor, not a {type(last).__name__}.")
    for scaler in scalers:
        if type(scaler) is not StandardScaler:
            raise TypeError(f"estimator has a {type(scaler).__name__}, of which to_onnx knows no ONNX form.")
    check_is_fitted(last, ["module_", "_n_outputs"])
    if not hasattr(last, "_sample_shape"):
        raise ValueError(
            "estimator was fitted to a Dataset or a dictionary; to_onnx needs the shape of samples: fit it to arrays."
        )
    predictions = (_Probabilities if isinstance(last, ECOptClassifier) else _Targets)(last, scalers)
    with replacing(Path(path)) as temporary, _quiet():
        program = torch.onnx.export(
            predictions.eval(),
            (torch.zeros(2, *last._sample_shape, dtype=torch.float32),),
            input_names=["X"],
            output_names=list(predictions.names),
            dynamic_shapes={"X": {0: torch.export.Dim("n")}},
            dynamo=True,
            verbose=False,
        )
        if isinstance(last, ECOptClassifier):
            program.model.metadata_props["classes"] = json.dumps(last.classes_.tolist())
        program.save(temporary, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch and onnxscript tell of themselves, such as of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
