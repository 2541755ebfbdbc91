"""ECOptClassifier and ECOptRegressor: what trains them, which nets they take, and that units' scales do not matter."""

import pickle
from inspect import signature

import numpy as np
import pytest
import torch
from asserts import assert_close, random_state_untouched
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler
from skorch.dataset import Dataset, ValidSplit
from torch import nn

from sklearn_gradspace import ECOptClassifier, ECOptRegressor, GradientFeaturizer
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace._net_regressor import NetRegressor
from sklearn_gradspace.modules import MLP
from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import ScaleGraph, basis_path_norm, equivalent, rescale, scale_graph

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 6))
y = np.array(["cat", "dog", "elk"])[np.argmax(X[:, :3], axis=1)]
target = X[:, 0] - np.abs(X[:, 1])
images = rng.normal(size=(60, 2, 6, 6))
images[:, 0, :3] += (np.arange(60) % 2)[:, None, None]


class ConvNet(nn.Module):
    """A convolutional net that wants to know the number of classes alone."""

    def __init__(self, n_outputs, width=4):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Linear(4 * width, n_outputs)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.head(x.flatten(1))


def make_net(kind, n_outputs, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (MLP(6, n_outputs, (8, 5)) if kind == "mlp" else ConvNet(n_outputs)).double()


def test_they_are_skorch_nets():
    assert isinstance(ECOptClassifier(), NeuralNetClassifier)
    assert isinstance(ECOptRegressor(), NeuralNetRegressor)


def test_learns_without_tuning():
    for load, floor in ((load_digits, 0.95), (load_iris, 0.9)):
        data, labels = load(return_X_y=True)
        train, test, of_train, of_test = train_test_split(data, labels, random_state=0, stratify=labels)
        model = make_pipeline(StandardScaler(), ECOptClassifier(random_state=0)).fit(train, of_train)
        assert model.score(test, of_test) > floor
    train, test, of_train, of_test = train_test_split(*load_diabetes(return_X_y=True), random_state=0)
    model = make_pipeline(StandardScaler(), ECOptRegressor(random_state=0)).fit(train, of_train)
    assert model.score(test, of_test) > 0.2


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", ["balanced", "path"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("estimator", [ECOptClassifier, ECOptRegressor])
def test_units_scales_do_not_matter(kind, method, optimizer, estimator):
    """Nets that differ in these alone give the same predictions after training; with plain SGD they do not."""
    is_classifier = estimator is ECOptClassifier
    net, twin = (make_net(kind, 3 if is_classifier else 1) for _ in range(2))
    graph = scale_graph(twin)
    factors = 10 ** torch.from_numpy(rng.uniform(-1, 1, graph.n_units))
    rescale(twin, torch.where(graph.approximate, 1.0, factors))
    data, targets = X if kind == "mlp" else images, y if is_classifier else target
    options = {"optimizer": optimizer, "lr": 0.01, "max_epochs": 5, "random_state": 0}
    predict = "predict_proba" if is_classifier else "predict"

    def predictions(fits):
        return [getattr(fit.fit(data, targets), predict)(data) for fit in fits]

    found = predictions(estimator(module=module, method=method, **options) for module in (net, twin))
    assert_close(*found, 1e-8)
    plain = NetClassifier if is_classifier else NetRegressor
    options["optimizer"] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    found = predictions(plain(module, **options) for module in (net, twin))
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("method", ["balanced", "path"])
@pytest.mark.parametrize("weight", [None, np.arange(60) % 3])
def test_it_is_the_loop_by_hand(method, weight):
    module = make_net("mlp", 3)
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 1e-3}
    classifier = ECOptClassifier(module=module, method=method, max_epochs=5, batch_size=-1, **options)
    classifier.set_params(iterator_train__shuffle=False, optimizer__nesterov=True)
    classifier.fit(X, y, sample_weight=weight)
    optimizer = ECOptimizer(module, torch.optim.SGD, method=method, nesterov=True, **options)
    weight = torch.ones(60) if weight is None else torch.from_numpy(weight)
    labels = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    for _ in range(5):
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(module(torch.from_numpy(X)), labels, reduction="none")
        ((losses * weight).sum() / weight.sum()).backward()
        optimizer.step()
    for found, expected in zip(classifier.module_.parameters(), module.parameters()):
        assert_close(found, expected, 1e-10)


def test_the_inner_optimizer_and_its_arguments():
    def inner(**options):
        classifier = ECOptClassifier(max_epochs=1, weight_decay=0.01, **options).fit(X, y)
        assert isinstance(classifier.optimizer_, ECOptimizer)
        return classifier.optimizer_.inner

    groups = inner(momentum=0.7).param_groups
    assert [(g["momentum"], g["weight_decay"], g["lr"]) for g in groups] == [
        (0.7, 0.01, signature(ECOptClassifier).parameters["lr"].default)
    ]
    assert inner(optimizer__momentum=0.3, lr=0.2).param_groups[0]["momentum"] == 0.3
    for name, kind in {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.items():
        optimizer = inner(optimizer=name, lr=0.01, optimizer__betas=(0.8, 0.9))
        assert type(optimizer) is kind and optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert type(inner(optimizer=torch.optim.RMSprop, lr=0.01)) is torch.optim.RMSprop
    by_layer = inner(method="balanced", optimizer__param_groups=[("layers.1.*", {"lr": 0.5})]).param_groups
    assert [len(g["params"]) for g in by_layer] == [2, 2] and by_layer[0]["lr"] == 0.5


def test_hidden_layer_sizes():
    classifier = ECOptClassifier((7, 4), max_epochs=1).fit(X, y)
    assert [tuple(p.shape) for p in classifier.module_.parameters()] == [(7, 6), (7,), (4, 7), (4,), (3, 4), (3,)]
    assert classifier.scale_graph_.n_units == 11
    assert classifier.scale_graph_.module is classifier.module_
    assert classifier.invariant_ratio_ == pytest.approx(11 / (7 * 7 + 4 * 8 + 3 * 5))
    for sizes in (5, np.int64(5), [5], np.array([5])):
        regressor = ECOptRegressor(sizes, max_epochs=1).fit(X, target)
        assert regressor.scale_graph_.n_units == 5 and regressor.hidden_layer_sizes is sizes


def test_a_linear_model_has_no_units_and_is_trained_as_usual():
    options = {"max_epochs": 3, "lr": 0.1, "random_state": 0}
    with pytest.warns(UserWarning, match="unit"):
        classifier = ECOptClassifier((), **options).fit(X, y)
    options |= {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9, "optimizer__weight_decay": 1e-3}
    plain = NetClassifier(MLP, module__hidden_layer_sizes=(), **options)
    np.testing.assert_array_equal(classifier.predict_proba(X), plain.fit(X, y).predict_proba(X))
    assert classifier.invariant_ratio_ == 0


@pytest.mark.parametrize(
    "module", [ConvNet, ConvNet(2), lambda n_outputs: ConvNet(n_outputs, 3)], ids=["class", "instance", "callable"]
)
@pytest.mark.parametrize("method", ["balanced", "path"])
def test_a_convolutional_net_on_images(module, method):
    labels = np.arange(60) % 2
    options = {"lr": 0.01, "max_epochs": 30, "random_state": 0, "method": method}
    for dtype in (np.float32, np.float64):
        classifier = ECOptClassifier(module=module, class_weight="balanced", **options).fit(
            images.astype(dtype), labels
        )
        assert classifier.score(images, labels) > 0.9
        assert classifier.scale_graph_.n_units == classifier.module_.conv.out_channels
    regressor = ECOptRegressor(module=ConvNet, **options).fit(images, np.column_stack([labels, 1 - labels]))
    assert regressor.predict(images).shape == (60, 2)


def test_arguments_of_the_module():
    classifier = ECOptClassifier(module=ConvNet, module__width=6, max_epochs=1).fit(images, np.arange(60) % 2)
    assert classifier.module_.conv.out_channels == 6
    assert clone(classifier).get_params()["module__width"] == 6


class Untraceable(MLP):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e30 else x


def test_a_graph_that_is_handed_over():
    with pytest.raises(ValueError, match=r"trace.*control flow\. .*graph="):
        ECOptClassifier(module=Untraceable, max_epochs=1).fit(X, y)

    def graph_of(module):
        units = torch.arange(1, 101)
        edges = {
            "layers.1.weight": (units[:, None], torch.zeros(1, 1, dtype=torch.long)),
            "layers.1.bias": (units, torch.zeros(1, dtype=torch.long), True),
            "layers.3.weight": (torch.zeros(1, 1, dtype=torch.long), units[None]),
        }
        return ScaleGraph.from_edges(module, edges)

    options = {"max_epochs": 5, "random_state": 0}
    by_hand = ECOptClassifier(module=Untraceable, graph=graph_of, **options).fit(X, y)
    assert by_hand.scale_graph_.n_units == 100
    assert_close(by_hand.predict_proba(X), ECOptClassifier(**options).fit(X, y).predict_proba(X))


def test_the_trained_net_is_a_net_for_gradients():
    classifier = ECOptClassifier((8,), max_epochs=5, random_state=0).fit(X, y)
    features = GradientFeaturizer(classifier, output="dense").fit_transform(X)
    np.testing.assert_array_equal(GradientFeaturizer(classifier.module_, output="dense").fit_transform(X), features)
    assert features.shape == (60, 3 * (8 * 6 + 3 * 8))
    regressor = ECOptRegressor((8,), max_epochs=5, random_state=0).fit(X, target)
    assert GradientFeaturizer(regressor, scalar="logit", output="dense").fit_transform(X).shape[1] == 8 * 6 + 8


@pytest.mark.parametrize("method", ["balanced", "path"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_going_on_where_fit_left_off(method, optimizer):
    options = {"method": method, "optimizer": optimizer, "lr": 0.01, "random_state": 0}
    whole = ECOptClassifier(max_epochs=4, **options).fit(X, y).predict_proba(X)
    parts = ECOptClassifier(max_epochs=2, **options).fit(X, y)
    twin = pickle.loads(pickle.dumps(parts))
    assert twin.scale_graph_.module is twin.module_
    for each in (parts, twin):
        np.testing.assert_array_equal(each.partial_fit(X, y).predict_proba(X), whole)
    warm = ECOptClassifier(max_epochs=2, warm_start=True, **options).fit(X, y).fit(X, y)
    np.testing.assert_array_equal(warm.predict_proba(X), whole)


def test_going_on_with_a_module_that_was_made_anew():
    classifier = ECOptClassifier(max_epochs=1, random_state=0).fit(X, y).set_params(hidden_layer_sizes=(7,))
    assert classifier.initialize().partial_fit(X, y).module_.layers[1].out_features == 7


@pytest.mark.parametrize("method", ["balanced", "path"])
def test_saved_parameters(method, tmp_path):
    options = {"method": method, "max_epochs": 2, "random_state": 0}
    classifier = ECOptClassifier(**options).fit(X, y)
    paths = {f"f_{name}": tmp_path / name for name in ("params", "optimizer", "history")}
    classifier.save_params(**paths)
    other = ECOptClassifier(**options | {"random_state": 1}).fit(X, y)
    other.load_params(**paths)
    np.testing.assert_array_equal(other.predict_proba(X), classifier.predict_proba(X))
    assert len(other.history) == 2


def test_parameters_set_on_a_fitted_net_keep_its_function():
    classifier = ECOptClassifier((8, 8), init="skeleton", max_epochs=5, random_state=0).fit(X, y)
    before = classifier.predict_proba(X)
    changes = [{"method": "path"}, {"optimizer": "adam"}, {"optimizer": "sgd"}, {"optimizer__nesterov": True}]
    for params in (*changes, {"weight_decay": 0.1, "momentum": 0.5}):
        assert_close(classifier.set_params(**params).predict_proba(X), before)
    assert classifier.optimizer_.inner.param_groups[0]["momentum"] == 0.5
    assert classifier.set_params(lr=0.3).optimizer_.param_groups[0]["lr"] == 0.3
    classifier.partial_fit(X, y)


def test_the_start():
    options = {"max_epochs": 0, "module": make_net("mlp", 3)}
    assert equivalent(ECOptClassifier(init="keep", **options).fit(X, y).module_, options["module"])
    skeleton = ECOptClassifier(init="skeleton", **options).fit(X, y).module_
    first = skeleton.layers[1].weight
    assert all(first[i % 8, i % 6] == 1 for i in range(8))


def test_only_deep_nets_whose_weights_are_new_begin_near_the_identity():
    deep = {"module__hidden_layer_sizes": (6,) * 8, "module__n_features": 6, "module__n_outputs": 3}
    classifier = ECOptClassifier(max_epochs=0, random_state=0)
    assert (classifier.set_params(**deep).fit(X, y).module_.layers[1].weight.diag() == 1).all()
    instance = MLP(6, 3, (6,) * 8).double()
    fitted = ECOptClassifier(module=instance, max_epochs=0).fit(X, y)
    assert equivalent(fitted.module_, instance)
    shallow = ECOptClassifier((6,), max_epochs=0).fit(X, y)
    assert not (shallow.module_.layers[1].weight.diag() == 1).any()


def test_callbacks_of_skorch():
    classifier = ECOptClassifier(
        train_split=ValidSplit(4, stratified=True),
        callbacks=[
            ("schedule", LRScheduler("StepLR", step_size=2, gamma=0.1)),
            ("clipping", GradientNormClipping(1.0)),
            ("stopping", EarlyStopping(patience=3, load_best=True)),
        ],
        max_epochs=6,
        random_state=0,
    ).fit(X, y)
    assert classifier.history[:, "event_lr"][::2] == pytest.approx([0.02, 0.002, 0.0002])
    assert classifier.optimizer_.param_groups[0]["lr"] == pytest.approx(2e-5)
    assert classifier.history[-1]["valid_acc"] > 0.3


@pytest.mark.filterwarnings("ignore:.*gradient")
@pytest.mark.parametrize("method", ["balanced", "path"])
def test_training_that_diverges(method):
    with pytest.raises(ValueError, match=r"training diverged.*smaller lr"):
        ECOptRegressor(method=method, max_epochs=2).fit(1e200 * X, target)


def test_a_search_over_what_trains():
    grid = {"method": ["balanced", "path"], "optimizer": ["sgd", "adam"], "hidden_layer_sizes": [(5,), (5, 5)]}
    model = make_pipeline(StandardScaler(), ECOptClassifier(max_epochs=2, lr=0.01, random_state=0))
    search = GridSearchCV(model, {f"ecoptclassifier__{name}": values for name, values in grid.items()}, cv=2)
    assert search.set_params(error_score="raise").fit(X, y).best_estimator_.predict(X).shape == (60,)


def test_the_penalty_makes_path_values_smaller():
    norms = []
    for penalty in (0.0, 0.1, 1.0):
        regressor = ECOptRegressor((8,), method="path", path_penalty=penalty, random_state=0, lr=0.01).fit(X, target)
        norms.append(basis_path_norm(regressor.module_))
    assert norms[2] < 0.7 * norms[1] < 0.7 * norms[0]


def test_a_seed_decides_everything_and_global_states_are_left_alone():
    with random_state_untouched():
        fits = [ECOptClassifier(random_state=seed, max_epochs=2).fit(X, y).predict_proba(X) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


def test_a_skorch_dataset():
    labels = np.unique(y, return_inverse=True)[1]
    sizes = {"module__n_features": 6, "module__n_outputs": 3, "module__hidden_layer_sizes": (8,)}
    classifier = ECOptClassifier(random_state=0, max_epochs=100, **sizes).fit(
        Dataset(X.astype(np.float32), labels), None
    )
    assert (classifier.predict(X.astype(np.float32)) == labels).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "lion"}, ValueError, r"optimizer='lion' is neither of \['sgd', 'adam', 'adamw'\] nor"),
        ({"optimizer": 3}, ValueError, "optimizer=3 is neither"),
        ({"method": "balance"}, ValueError, "method"),
        ({"init": "zeros"}, ValueError, "init"),
        ({"lr": "auto"}, TypeError, "lr must be an instance of"),
        ({"lr": -1.0}, ValueError, "lr == -1.0"),
        ({"momentum": None}, TypeError, "momentum must be an instance of"),
        ({"weight_decay": -1e-3}, ValueError, "weight_decay == -0.001"),
        ({"path_penalty": -1.0}, ValueError, "path_penalty == -1.0"),
        ({"path_penalty": 0.1, "method": "balanced"}, ValueError, "^path_penalty=0.1 is about path values"),
        ({"max_epochs": 2.5}, TypeError, "max_epochs must be an instance of"),
        ({"hidden_layer_sizes": (3, 0)}, ValueError, r"hidden_layer_sizes=\(3, 0\) is neither a positive"),
        ({"hidden_layer_sizes": True}, ValueError, "hidden_layer_sizes=True is neither a positive integer"),
        ({"hidden_layer_sizes": 2.5}, ValueError, "hidden_layer_sizes=2.5 is neither a positive integer"),
        ({"hidden_layer_sizes": "3"}, ValueError, "hidden_layer_sizes='3' is neither a positive integer"),
        ({"graph": 3}, TypeError, "graph=3 is no function from a module"),
        ({"graph": lambda net: 3}, TypeError, "graph must be a ScaleGraph, got int"),
        ({"graph": lambda net: scale_graph(MLP(2, 3))}, ValueError, "graph is of another module"),
        ({"optimizer__chart_every": 0}, ValueError, "chart_every=0 must be an integer, 1 or more"),
        ({"module": "mlp"}, TypeError, "module='mlp' is neither a Module nor"),
        ({"device": "cuda:99"}, ValueError, "device='cuda:99' cannot be used"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        ECOptClassifier(**options).fit(X, y)


@pytest.mark.parametrize("method", ["balanced", "path"])
def test_trains_on_the_device(device, method):
    labels = np.arange(60) % 2
    options = {"device": str(device), "random_state": 0, "method": method}
    classifier = ECOptClassifier(module=ConvNet, lr=0.01, **options).fit(
        images.astype(np.float32), labels, sample_weight=np.ones(60)
    )
    assert next(classifier.module_.parameters()).device.type == device.type
    assert classifier.score(images, labels) > 0.9
    assert pickle.loads(pickle.dumps(classifier)).score(images, labels) > 0.9
    assert ECOptRegressor(**options).fit(X.astype(np.float32), target).score(X, target) > 0.8


def test_logarithms_of_probabilities_are_logits():
    layers = [nn.Linear(X.shape[1], 4), nn.ReLU(), nn.Linear(4, len(np.unique(y))), nn.LogSoftmax(1)]
    ECOptClassifier(module=nn.Sequential(*layers), max_epochs=1, random_state=0).fit(X, y)


@pytest.mark.parametrize("weight", [None, "balanced"])
def test_a_net_that_learns_nothing_is_told(weight):
    wine, labels = load_wine(return_X_y=True)
    with pytest.warns(UserWarning, match=r"nothing was learnt: the training loss, .* StandardScaler") as warned:
        ECOptClassifier(random_state=0, class_weight=weight, max_epochs=10).fit(wine, labels)
    assert warned[0].filename == __file__
    make_pipeline(StandardScaler(), ECOptClassifier(random_state=0, max_epochs=10)).fit(wine, labels)


def test_a_regressor_that_learns_nothing_is_told():
    with pytest.warns(UserWarning, match="nothing was learnt"):
        ECOptRegressor(lr=1e-9, random_state=0, max_epochs=10).fit(X, target)
    ECOptRegressor(random_state=0, max_epochs=10).fit(X, np.ones(60))  # where there is nothing to learn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_instance_keeps_its_precision(dtype):
    net = make_net("mlp", 3).to(dtype)
    for data in (X.astype(np.float32), X.astype(np.float64)):
        classifier = ECOptClassifier(module=net, max_epochs=2, random_state=0).fit(data, y)
        assert {parameter.dtype for parameter in classifier.module_.parameters()} == {dtype}
        assert classifier.predict_proba(data).dtype == np.dtype(str(dtype).removeprefix("torch."))


def test_a_module_that_returns_more_than_logits():
    class WithInput(nn.Module):
        def __init__(self, n_features, n_classes):
            super().__init__()
            self.a, self.b = nn.Linear(n_features, 8), nn.Linear(8, n_classes)

        def forward(self, x):
            return self.b(self.a(x).relu()), x

    classifier = ECOptClassifier(module=WithInput, max_epochs=20, lr=0.1, random_state=0).fit(X, y)
    assert classifier.score(X, y) > 0.8


def test_its_text_is_what_was_set():
    assert repr(ECOptClassifier()) == "ECOptClassifier()"
    classifier = ECOptClassifier((20,), lr=0.3, optimizer__units="raw")
    assert set(repr(classifier)[len("ECOptClassifier(") : -1].split(", ")) == {
        "hidden_layer_sizes=(20,)",
        "lr=0.3",
        "optimizer__units='raw'",
    }
