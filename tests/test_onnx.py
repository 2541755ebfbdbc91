"""to_onnx: ONNX Runtime computes what predict_proba and predict do."""

import importlib.util
import json
import logging

import numpy as np
import pytest
from asserts import random_state_untouched, untouched
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn

from sklearn_gradspace import ECOptClassifier, ECOptRegressor, to_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's and onnxscript's own

X, CODES = load_iris(return_X_y=True)
X = X.astype(np.float32)
LABELS = np.array(["setosa", "versicolor", "virginica"])[CODES]
IMAGES = np.random.default_rng(0).normal(size=(60, 1, 8, 8)).astype(np.float32)


def exported(estimator, path):
    with random_state_untouched():
        to_onnx(estimator, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def conv():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(36, 3)),
    )


@pytest.mark.parametrize("scaler", [{}, {"with_mean": False}, {"with_std": False}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_and_labels_of_an_mlp_for_batches_of_any_size(dtype, scaler, tmp_path):
    scaled = make_pipeline(StandardScaler(**scaler), ECOptClassifier((8,), max_epochs=3, random_state=0))
    model = scaled.fit(X.astype(dtype), LABELS)
    session = exported(model, tmp_path / "model.onnx")
    for n in (1, 2, 150):
        probabilities, label = session.run(None, {"X": X[:n]})
        np.testing.assert_allclose(probabilities, model.predict_proba(X[:n]), atol=1e-5)
        classes = np.array(json.loads(session.get_modelmeta().custom_metadata_map["classes"]))
        np.testing.assert_array_equal(classes[label], model.predict(X[:n]))
    assert [output.name for output in session.get_outputs()] == ["probabilities", "label"]


def test_a_convolutional_net_which_stays_as_it_is(tmp_path):
    classifier = ECOptClassifier(module=conv(), max_epochs=3, random_state=0).fit(IMAGES, np.arange(60) % 3)
    with untouched(classifier.module_):
        session = exported(classifier, tmp_path / "model.onnx")
    for n in (1, 60):
        probabilities, _ = session.run(None, {"X": IMAGES[:n]})
        np.testing.assert_allclose(probabilities, classifier.predict_proba(IMAGES[:n]), atol=1e-5)


@pytest.mark.parametrize("y", [1e3 * X[:, 0], X[:, :2]], ids=["one target", "two targets"])
def test_a_regressor_in_the_units_of_its_targets(y, tmp_path):
    regressor = ECOptRegressor(max_epochs=3, random_state=0).fit(X, y)
    (predictions,) = exported(regressor, tmp_path / "model.onnx").run(None, {"X": X[:7]})
    np.testing.assert_allclose(predictions, regressor.predict(X[:7]), rtol=1e-5)


def test_what_has_no_onnx_form_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(NotFittedError):
        to_onnx(ECOptClassifier(), path)
    with pytest.raises(TypeError, match="not a LogisticRegression"):
        to_onnx(LogisticRegression().fit(X, CODES), path)
    with pytest.raises(TypeError, match="MinMaxScaler"):
        to_onnx(make_pipeline(MinMaxScaler(), ECOptClassifier(max_epochs=1)).fit(X, CODES), path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing for the file model\.onnx"):
        to_onnx(ECOptClassifier(max_epochs=1).fit(X, CODES), tmp_path / "missing" / "model.onnx")


def test_torch_prints_nothing(tmp_path, capfd):
    level = logging.getLogger("torch.onnx").level
    exported(ECOptClassifier(max_epochs=1, random_state=0).fit(X, CODES), tmp_path / "model.onnx")
    shown = capfd.readouterr()
    assert "torchvision" not in shown.out + shown.err
    assert logging.getLogger("torch.onnx").level == level


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    missing = lambda name: None if name == "onnxscript" else find_spec(name)  # noqa: E731
    monkeypatch.setattr("sklearn_gradspace._onnx.find_spec", missing)
    with pytest.raises(ImportError, match=r"onnxscript: pip install 'sklearn-gradspace\[onnx\]'"):
        to_onnx(ECOptClassifier(max_epochs=1).fit(X, CODES), tmp_path / "model.onnx")
