"""save and load: what is loaded is what was saved, and what is no such file says so."""

import json
import os
import pickle
import struct
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from asserts import random_state_untouched, untouched
from nets import CountsCalls, TiedAutoencoder
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_gradspace import (
    ECOptClassifier,
    ECOptRegressor,
    EdgeImportance,
    GradientFeaturizer,
    GradientKernel,
    GradientKernelClassifier,
    GradNetClassifier,
    load,
    save,
)
from sklearn_gradspace._persistence._file import write_file
from sklearn_gradspace.modules import MLP, GradNet, GradNetCNN

IRIS = load_iris(return_X_y=True)
X, CODES = (values[::3] for values in IRIS)
LABELS = {
    "int": CODES,
    "str": np.array(["setosa", "versicolor", "virginica"])[CODES],
    "object": np.array(["setosa", "versicolor", "virginica"], dtype=object)[CODES],
    "bool": CODES > 0,
    "float": CODES.astype(float),
    "uint8": CODES.astype(np.uint8),
}
DATA = Path(__file__).parent / "data"


class Net(nn.Module):
    """A net of the user's own."""

    def __init__(self, width=5):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)
        self.register_buffer("shift", torch.randn(4), persistent=False)
        self.factor = torch.randn(4)

    def forward(self, x):
        return self.last(torch.relu(self.first(x * self.factor + self.shift)))


def plain_net(n_outputs=3):
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, n_outputs))


def relu_net():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def gradnet(**params):
    return GradNetClassifier(**{"max_epochs": 2, "random_state": 0} | params)


def ecopt(**params):
    return ECOptClassifier(**{"max_epochs": 2, "random_state": 0} | params)


def round_trip(estimator, tmp_path, net=None):
    save(estimator, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    return load(tmp_path / "file", net)


def assert_same(estimator, twin, X=X):
    """Assert that two estimators return the same, to the bit."""
    assert type(twin) is type(estimator)
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        if hasattr(estimator, method):
            expected, found = (np.asarray(getattr(e, method)(X)) for e in (estimator, twin))
            assert found.dtype.kind == expected.dtype.kind
            np.testing.assert_array_equal(found, expected)


MODELS = {
    "pipeline": lambda: make_pipeline(GradientFeaturizer(random_state=0), gradnet()),
    "gradnet of all": lambda: make_pipeline(
        GradientFeaturizer(plain_net(), layers="all", scale="rms", output="dense"),
        gradnet(structure="full", activation="square", early_stopping=True, schedule="cosine"),
    ),
    "base logits": lambda: make_pipeline(
        GradientFeaturizer(plain_net()), gradnet(base_logits=True, classes=[0, 1, 2], hidden_sizes=[3, 2, 4])
    ),
    "known function": lambda: make_pipeline(GradientFeaturizer(plain_net()), gradnet(activation=torch.tanh)),
    "whitening": lambda: make_pipeline(
        GradientFeaturizer(plain_net(), scale="kronecker", projection=5, random_state=0, output="csr"), gradnet()
    ),
    "fisher": lambda: make_pipeline(
        GradientFeaturizer(plain_net(), scale="fisher", edges={"0.weight": np.eye(6, 4) > 0}, labels="predicted"),
        gradnet(criterion__weight=torch.tensor([1.0, 2.0, 3.0]), train_split=ValidSplit(3)),
    ),
    "kernel classifier": lambda: GradientKernelClassifier(random_state=0),
    "kernel classifier of landmarks": lambda: GradientKernelClassifier(
        plain_net(), n_components=20, n_directions=2, projection=8, products="bfloat16", random_state=0
    ),
    "kernel": lambda: make_pipeline(GradientKernel(plain_net()), LogisticRegression()),
    "nystroem": lambda: make_pipeline(
        GradientKernel(plain_net(), n_components=10, random_state=0), StandardScaler(), RidgeClassifier()
    ),
    "linear models": lambda: make_pipeline(
        SimpleImputer(),
        make_union(MinMaxScaler(), PCA(2)),
        GradientFeaturizer(nn.Linear(6, 3), output="dense"),
        LinearSVC(random_state=0),
    ),
    "ecopt": ecopt,
    "ecopt of an instance": lambda: ecopt(module=relu_net(), optimizer="adam", method="balanced"),
    "ecopt of a linear net": lambda: make_pipeline(StandardScaler(), ecopt(hidden_layer_sizes=(5,), path_penalty=0.1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_returns_the_same_to_the_bit(name, tmp_path):
    model = MODELS[name]().fit(X, CODES)
    with random_state_untouched():
        twin = round_trip(model, tmp_path)
    assert_same(model, twin)
    shown = [str({k: v for k, v in m.get_params().items() if "random_state" not in k}) for m in (model, twin)]
    assert shown[0].split(" at 0x")[0] == shown[1].split(" at 0x")[0]
    assert_same(model, round_trip(twin, tmp_path))
    clone(twin).fit(X, CODES)


@pytest.mark.parametrize("name", MODELS)
def test_pickle_and_joblib_keep_it_as_well(name, tmp_path):
    model = MODELS[name]().fit(X, CODES)
    assert_same(model, pickle.loads(pickle.dumps(model)))
    joblib.dump(model, tmp_path / "model.joblib")
    assert_same(model, joblib.load(tmp_path / "model.joblib"))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", ["pipeline", "kernel classifier", "ecopt"])
def test_labels_of_every_kind(name, labels, tmp_path):
    model = MODELS[name]().fit(X, LABELS[labels])
    assert_same(model, round_trip(model, tmp_path))


@pytest.mark.parametrize("y", [X[:, 0], X[:, :2]], ids=["one target", "two targets"])
def test_a_regressor(y, tmp_path):
    regressor = ECOptRegressor(max_epochs=2, random_state=0).fit(X, y)
    twin = round_trip(regressor, tmp_path)
    assert_same(regressor, twin)
    assert twin.predict(X).shape == y.shape


def test_edge_importance(tmp_path):
    y = LABELS["str"]
    importance = EdgeImportance(plain_net(), per_class=True, classes=np.unique(y), random_state=0).fit(X, y)
    twin = round_trip(importance, tmp_path)
    pd.testing.assert_frame_equal(twin.to_frame(), importance.to_frame())
    assert twin.stability_ == importance.stability_
    for label in importance.classes_:
        masks = [importance_.mask(0.3, label=label) for importance_ in (importance, twin)]
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_gradnet_alone_on_lazy_and_plain_features(tmp_path):
    lazy = GradientFeaturizer(plain_net()).fit_transform(X)
    for features in (lazy, lazy.toarray()):
        classifier = gradnet().fit(features, CODES)
        assert_same(classifier, round_trip(classifier, tmp_path), features)


def test_feature_names_and_containers_are_kept(tmp_path):
    frame, y = pd.DataFrame(X, columns=load_iris().feature_names), CODES
    model = make_pipeline(StandardScaler(), GradientFeaturizer(plain_net(), output="dense"))
    model = model.set_output(transform="pandas").fit(frame, y)
    twin = round_trip(model, tmp_path)
    pd.testing.assert_frame_equal(twin.transform(frame), model.transform(frame))
    assert list(twin.feature_names_in_) == list(frame)
    with pytest.raises(ValueError, match="feature names"):
        twin.transform(frame.rename(columns=str.upper))


def test_random_states_go_on_and_stay_shared(tmp_path):
    random_state = np.random.RandomState(3)
    model = make_pipeline(GradientFeaturizer(random_state=random_state), gradnet(random_state=random_state))
    twin = round_trip(model.fit(X, CODES), tmp_path)
    assert twin[0].random_state is twin[1].random_state
    state = random_state.randint(2**31)
    assert twin[0].random_state.randint(2**31) == state


def test_one_net_stays_one_and_keeps_its_memory_order(tmp_path):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).to(
        memory_format=torch.channels_last
    )
    images = np.random.default_rng(0).normal(size=(30, 2, 4, 4)).astype(np.float32)
    model = make_pipeline(GradientFeaturizer(net), gradnet()).fit(images, np.arange(30) % 3)
    twin = round_trip(model, tmp_path)
    assert twin[0].net is twin[0].module_ is twin[0].features_.engine.net
    assert twin[0].net[0].weight.stride() == net[0].weight.stride()
    assert_same(model, twin, images)


def test_rows_in_the_order_of_columns(tmp_path):
    model = GradientKernel(plain_net()).fit(np.asfortranarray(X))
    assert round_trip(model, tmp_path).landmarks_.flags.f_contiguous


def test_rows_and_columns_that_are_turned_around(tmp_path):
    scaler = StandardScaler().fit(X)
    scaler.mean_ = scaler.mean_[::-1]
    model = make_pipeline(scaler, ecopt()).fit(X, CODES)
    model[0].mean_ = model[0].mean_[::-1]
    assert_same(model, round_trip(model, tmp_path))


def test_callbacks_are_left_out(tmp_path):
    model = gradnet(callbacks=[EarlyStopping("train_loss")]).fit(X, CODES)
    twin = round_trip(model, tmp_path)
    assert twin.callbacks is None
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))


def test_a_pickle_in_the_middle_of_a_fit_holds_no_data(tmp_path):
    checkpoint = Checkpoint(monitor=None, f_pickle="net.pkl", dirname=tmp_path)
    model = gradnet(callbacks=[checkpoint]).fit(X, CODES)
    with open(tmp_path / "net.pkl", "rb") as file:
        twin = pickle.load(file)
    assert not hasattr(twin, "_report")
    np.testing.assert_array_equal(twin.predict(X), model.predict(X))
    twin.partial_fit(X, CODES)


def test_training_goes_on_from_the_weights(tmp_path):
    classifier = ecopt().fit(X, CODES)
    twin = round_trip(classifier, tmp_path)
    assert twin.history[:, "train_loss"] == classifier.history[:, "train_loss"]
    assert str(twin.scale_graph_) == str(classifier.scale_graph_)
    classifier.set_params(momentum=0.9)  # which makes the optimizer anew
    assert_same(classifier.partial_fit(X, CODES), twin.partial_fit(X, CODES))
    net = gradnet(optimizer=torch.optim.SGD, lr=0.01).fit(X, CODES)
    twin = round_trip(net, tmp_path)
    assert_same(net.partial_fit(X, CODES), twin.partial_fit(X, CODES))


def test_a_deep_net_is_not_started_anew(tmp_path):
    classifier = ecopt(hidden_layer_sizes=(8,) * 6, max_epochs=1).fit(X, CODES)
    twin = round_trip(classifier, tmp_path)
    assert twin.init == "auto"
    assert_same(classifier, twin)


def test_a_fitted_skorch_net_and_a_frozen_one(tmp_path):
    fitted = NeuralNetClassifier(MLP, module__n_features=4, module__n_outputs=3, criterion=nn.CrossEntropyLoss)
    fitted.set_params(max_epochs=1, verbose=0, train_split=None).fit(X.astype(np.float32), CODES)
    for net in (fitted, FrozenEstimator(fitted)):
        model = make_pipeline(FrozenEstimator(GradientFeaturizer(net).fit(X)), gradnet()).fit(X, CODES)
        twin = round_trip(model, tmp_path)
        assert isinstance(twin[0].estimator.net, MLP)
        assert_same(model, twin)


@pytest.mark.parametrize("hand", [lambda net: net, lambda net: {"gradientfeaturizer__net": net}], ids=["one", "dict"])
def test_a_users_net_is_handed_over(hand, tmp_path):
    model = make_pipeline(GradientFeaturizer(Net()), gradnet()).fit(X, CODES)
    handed = Net()
    with untouched(handed), random_state_untouched():
        twin = round_trip(model, tmp_path, hand(handed))
    assert twin[0].net is twin[0].module_ and twin[0].net is not handed
    assert_same(model, twin)


def test_two_nets_of_the_users_by_their_places(tmp_path):
    union = make_union(*(GradientFeaturizer(Net(width), output="dense") for width in (4, 6)))
    twin = round_trip(
        union.fit(X), tmp_path, {"gradientfeaturizer-1__net": Net(4), "gradientfeaturizer-2__net": Net(6)}
    )
    assert_same(union, twin)
    with pytest.raises(ValueError, match=r"gradientfeaturizer-2__net.*'first.weight'.* \(4, 4\); .* \(6, 4\)"):
        load(tmp_path / "file", Net(4))
    nets = {"gradientfeaturizer-1__net": Net(4)}
    with pytest.raises(ValueError, match=r"gradientfeaturizer-2__net is a net of the class .*Net"):
        load(tmp_path / "file", nets)
    nets |= {"gradientfeaturizer-2__net": Net(6), "net": Net()}
    with pytest.raises(ValueError, match=r"places \['net'\]; .*gradientfeaturizer-1__net"):
        load(tmp_path / "file", nets)


def test_a_users_class_and_instance_as_module(tmp_path):
    for module in (Net, Net(5)):
        classifier = ecopt(module=module).fit(X, CODES)
        twin = round_trip(classifier, tmp_path, Net())
        assert_same(classifier, twin)
        assert (twin.module is Net) == (module is Net)
        clone(twin).fit(X, CODES)


def test_tied_weights_buffers_and_frozen_ones_of_a_users_net(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    for net in (TiedAutoencoder(), CountsCalls()):
        rows_of_net = rows if isinstance(net, TiedAutoencoder) else np.zeros((20, 64), np.float32)
        featurizer = GradientFeaturizer(net, scale=None).fit(rows_of_net)
        assert_same(featurizer, round_trip(featurizer, tmp_path, type(net)()), rows_of_net)


def every_layer():
    layers = [
        *(nn.Conv2d(2, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
        *(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, (1, 2), groups=2, padding=(0, 1), padding_mode="reflect")),
        *(nn.GroupNorm(2, 4), nn.PReLU(4), nn.ConvTranspose2d(4, 3, 2, output_padding=0), nn.AvgPool2d(1)),
        *(nn.InstanceNorm2d(3, affine=True), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.LayerNorm(12, bias=False)),
        *(nn.GELU("tanh"), nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Dropout(0.1)), nn.RMSNorm(6), nn.Linear(6, 3)),
    ]
    return nn.Sequential(*layers)


def test_a_sequential_of_torchs_layers_is_made_by_itself(tmp_path):
    net = every_layer()
    net(torch.randn(8, 2, 6, 6))
    net.eval()[0].requires_grad_(False)
    images = np.random.default_rng(0).normal(size=(12, 2, 6, 6)).astype(np.float32)
    featurizer = GradientFeaturizer(net, layers="all").fit(images)
    twin = round_trip(featurizer, tmp_path)
    assert_same(featurizer, twin, images)
    assert str(twin.net) == str(net)
    for (name, mine), (twins_name, twins) in zip(net.named_parameters(), twin.net.named_parameters(), strict=True):
        assert name == twins_name and torch.equal(mine, twins) and mine.requires_grad == twins.requires_grad
    assert [m.training for m in twin.net.modules()] == [m.training for m in net.modules()]


def test_a_layer_in_two_places_stays_one(tmp_path):
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 3))
    twin = round_trip(GradientFeaturizer(net).fit(X), tmp_path)
    assert twin.net[0] is twin.net[2]


def changed(kind):
    net = plain_net()
    if kind == "hook":
        net[2].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif kind == "forward":
        net[2].forward = lambda x: 2 * x
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(net[0])
    elif kind == "pruned":
        nn.utils.prune.random_unstructured(net[0], "weight", 0.5)
    elif kind == "added":
        net.register_buffer("more", torch.ones(1))
    return net


@pytest.mark.parametrize("kind", ["hook", "forward", "parametrized", "pruned", "added"])
def test_layers_that_were_changed_are_not_made_by_themselves(kind, tmp_path):
    featurizer = GradientFeaturizer(changed(kind)).fit(X)
    save(featurizer, tmp_path / "file")
    with pytest.raises(ValueError, match="net is a net of the class"):
        load(tmp_path / "file")
    assert_same(featurizer, load(tmp_path / "file", changed(kind)))


@pytest.mark.parametrize(
    ("estimator", "named"),
    [
        (GradientFeaturizer(lambda X, y: plain_net()), "net is the function"),
        (GradientFeaturizer(plain_net(), augment=lambda X, generator: X), "augment is the function"),
        (GradientFeaturizer(plain_net(), net_output=lambda returned: returned), "net_output is the function"),
        (GradientFeaturizer(plain_net(), scalar=lambda outputs: outputs), "scalar is the function"),
        (GradientKernel(plain_net(), views=lambda X: [X]), "views is the function"),
        (
            make_pipeline(StandardScaler(), ecopt(module=lambda n_features: MLP(n_features, 3))),
            "ecoptclassifier__module is the function",
        ),
        (make_pipeline(StandardScaler(), KNeighborsClassifier()), "kneighborsclassifier is a sklearn.neighbors"),
        (GridSearchCV(ecopt(max_epochs=1), {"lr": [0.1]}, cv=2), "best_estimator_"),
    ],
)
def test_what_cannot_be_saved_is_named(estimator, named, tmp_path):
    estimator.fit(X, CODES)
    with pytest.raises(TypeError, match=named):
        save(estimator, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_net_that_a_function_has_trained_is_put_in_its_place(tmp_path):
    model = make_pipeline(GradientFeaturizer(lambda X, y: plain_net()), gradnet()).fit(X, CODES)
    model.set_params(gradientfeaturizer__net=model[0].module_)
    assert_same(model, round_trip(model, tmp_path))


def test_attributes_that_are_not_known_and_subclasses_are_refused(tmp_path):
    classifier = ecopt().fit(X, CODES)
    classifier.notes_ = {"path": [Path()]}
    with pytest.raises(TypeError, match=r"notes___path\[0\] is a pathlib"):
        save(classifier, tmp_path / "file")
    subclass = type("Own", (ECOptClassifier,), {})(max_epochs=1).fit(X, CODES)
    with pytest.raises(TypeError, match="Own"):
        save(subclass, tmp_path / "file")
    with pytest.raises(NotFittedError):
        save(ecopt(), tmp_path / "file")
    with pytest.raises(TypeError, match="fitted estimator"):
        save(plain_net(), tmp_path / "file")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    classifier = ecopt().fit(X, CODES)
    save(classifier, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(classifier, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == before


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "file"
    save(make_pipeline(StandardScaler(), GradientFeaturizer(plain_net(), projection=4), gradnet()).fit(X, CODES), path)
    return path


def test_any_flipped_byte_and_any_missing_end_is_noticed(written, tmp_path):
    whole, path = written.read_bytes(), tmp_path / "file"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [*range(10), *range(10, header, header // 150), *range(header, len(whole), (len(whole) - header) // 50)]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            load(path)
    for end in (0, 4, 8, 100, header, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=str(path)):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=str(path)):
        load(path)


def parts(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_a_tensor_that_is_missing_or_more_is_noticed(written, tmp_path):
    tensors, metadata = parts(written)
    for changed in ({k: v for k, v in tensors.items() if k != "1"}, tensors | {"more": torch.ones(1)}):
        save_file(changed, tmp_path / "file", metadata)
        with pytest.raises(ValueError, match="checksum"):
            load(tmp_path / "file")


def test_other_versions_and_other_files_are_refused(written, tmp_path):
    tensors, metadata = parts(written)
    path = tmp_path / "file"
    save_file(tensors, path, metadata | {"version": "2"})
    with pytest.raises(ValueError, match=r"format version 2; .* reads 1"):
        load(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="save did not write it"):
        load(path)
    torch.save(tensors, path)
    with pytest.raises(ValueError, match="damaged, or no file"):
        load(path)
    for no_file in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no file"):
            load(no_file)


def test_what_is_no_net_is_refused(written):
    for net in (Net, "net", {"standardscaler__net": 3}, NeuralNetClassifier(MLP)):
        with pytest.raises(TypeError, match="net must be a Module"):
            load(written, net)


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    path = tmp_path / "file"
    for length, header in (
        (2**62, b"{}"),
        (None, json.dumps({"0": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}).encode()),
        (None, json.dumps({"0": {"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}).encode()),
    ):
        path.write_bytes(struct.pack("<Q", length or len(header)) + header)
        with pytest.raises(ValueError, match="damaged, or no file"):
            load(path)


def edited(path, into, edit):
    """Write the content of a file anew, with a right checksum, after `edit` has changed it in place."""
    tensors, metadata = parts(path)
    content = json.loads(metadata["content"])
    edit(content, tensors)
    write_file(into, content, tensors)
    return into


def steps(content):
    return [pair["items"][1] for pair in content["estimator"]["params"]["steps"]]


def nested(depth):
    node = []
    for _ in range(depth):
        node = [node]
    return node


@pytest.fixture
def recursion_limit():
    """Set Python's default, which other tests' libraries raise."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("recursion_limit")
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c, t: c["estimator"].update({"class": "os.system"}), "os.system"),
        (lambda c, t: c["estimator"].update(kind="pickle"), "pickle"),
        (lambda c, t: c["estimator"].update(kind="function", name="torch.load"), "torch.load"),
        (lambda c, t: c["estimator"].update(kind="class", name="torch.optim.Other"), "torch.optim.Other"),
        (lambda c, t: c.update(estimator=3), "no estimator"),
        (lambda c, t: c.pop("estimator"), "KeyError"),
        (lambda c, t: c["estimator"].pop("params"), "KeyError"),
        (lambda c, t: c["estimator"]["params"].update(more=1), "more"),
        (lambda c, t: steps(c)[0]["state"].update(transform={"kind": "function", "name": "torch.relu"}), "methods"),
        (lambda c, t: steps(c)[2]["params"].update(predict=1), "methods"),
        (lambda c, t: c.update(estimator={"kind": "same", "as": 5}), "KeyError"),
        (lambda c, t: steps(c)[0]["state"]["mean_"].update(tensor="none"), "KeyError"),
        (lambda c, t: steps(c)[0]["state"]["mean_"].update(order=[]), "IndexError"),
        (lambda c, t: steps(c)[1]["params"]["net"]["children"]["0"]["arguments"].update(in_features=2**40), "shape"),
        (lambda c, t: steps(c)[1]["params"]["net"]["children"]["0"]["arguments"].update(more=1), "more"),
        (lambda c, t: steps(c)[1]["params"]["net"]["children"]["0"]["arguments"].update(device="cpu"), "device"),
        (lambda c, t: c["estimator"].update(kind="scalar", dtype="V1", value=10**12), "dtype"),
        (lambda c, t: c["estimator"].update(kind="class", name="torch.nn.AdaptiveLogSoftmaxWithLoss"), "none of those"),
        (lambda c, t: steps(c)[1]["params"]["net"]["children"]["0"].update({"class": "torch.nn.Other"}), "nn.Other"),
        (lambda c, t: [t.update({k: v + 10**6}) for k, v in t.items() if v.dtype == torch.int32], "within its shape"),
        (lambda c, t: c["estimator"]["params"].update(memory=nested(900)), "nested too deeply|RecursionError"),
    ],
)
def test_a_content_that_save_does_not_write_is_refused(written, tmp_path, edit, says):
    with pytest.raises(ValueError, match=says):
        load(edited(written, tmp_path / "file", edit))


def test_another_version_of_scikit_learn_is_told(written, tmp_path):
    path = edited(written, tmp_path / "file", lambda content, tensors: content["versions"].update(sklearn="0.1"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(path)
    told = [(warning.category, warning.message.estimator_name) for warning in caught]
    assert told == [(InconsistentVersionWarning, name) for name in ("Pipeline", "StandardScaler")]


def test_the_versions_are_in_the_file(written):
    _, metadata = parts(written)
    assert json.loads(metadata["content"])["versions"].keys() == {"sklearn_gradspace", "sklearn", "skorch", "torch"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("name", ["pipeline", "ecopt"])
def test_files_of_format_1_are_read(name):
    expected = json.loads((DATA / "expected_1.json").read_text())[name]
    model = load(DATA / f"{name}_1.safetensors")
    assert model.predict(IRIS[0][::10]).tolist() == expected["predict"]
    np.testing.assert_allclose(model.predict_proba(IRIS[0][::10]), expected["predict_proba"], atol=1e-5)


def test_the_packages_modules_are_made_by_themselves(tmp_path):
    for net, shape in ((MLP(4, 3, (5, 4)), (4,)), (GradNetCNN((1, 8, 8), 3), (1, 8, 8))):
        rows = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
        featurizer = GradientFeaturizer(net).fit(rows)
        twin = round_trip(featurizer, tmp_path)
        assert type(twin.net) is type(net)
        assert_same(featurizer, twin, rows)
    classifier = gradnet().fit(X, CODES)
    assert type(round_trip(classifier, tmp_path).module_) is GradNet


def test_without_safetensors_the_extra_is_named(monkeypatch, tmp_path):
    classifier = ecopt(max_epochs=1).fit(X, CODES)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"sklearn-gradspace\[weights\]"):
        save(classifier, tmp_path / "file")


def test_a_loaded_net_on_a_device(tmp_path, device):
    model = make_pipeline(GradientFeaturizer(plain_net(), device=device), gradnet()).fit(X, CODES)
    twin = round_trip(model, tmp_path)
    assert twin[0].transform(X).view().device.type == device.type
    assert next(twin[1].module_.parameters()).device.type == device.type
    assert_same(model, twin)
