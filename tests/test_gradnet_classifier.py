"""GradNetClassifier: views, weights, labels, states, and that the representation of the features does not matter."""

import pickle
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from asserts import assert_close, random_state_untouched
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import Subset

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
from sklearn_gradspace.gradients import SCALES, GradientArray
from sklearn_gradspace.modules import MLP

K, P, N = 3, 20, 60


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(N) % K
    X = rng.normal(size=(N, 8)) + np.eye(K)[y] @ rng.normal(size=(K, 8)) * 2
    return X, y


@pytest.fixture(scope="module")
def lazy(data):
    return GradientFeaturizer(net_of(K)).fit_transform(data[0])


# These tests' labels have nothing to do with their base nets, which may then be right less often than a guess.
of_unrelated_labels = pytest.mark.filterwarnings("ignore:the base net's outputs, taken for")


class Mixed(nn.Module):
    """A net with blocks that are outer products and others."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv1d(1, 2, 3), nn.Linear(12, 4), nn.Linear(4, K)

    def forward(self, x):
        return self.head(self.hidden(self.conv(x.unsqueeze(1)).tanh().flatten(1)).tanh())


@pytest.mark.parametrize("net", [MLP(8, K, (6, 5)), Mixed()], ids=["mlp", "cnn"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("views", ["random", 2, "all"])
@pytest.mark.parametrize("structure", ["layer", "adjacent", "full"])
def test_the_factored_path_is_the_dense_one(data, net, scale, views, structure, monkeypatch):
    featurizer = GradientFeaturizer(net.double(), percentile=100, power=None, scale=scale, layers="all", batch_size=16)
    lazy = featurizer.fit_transform(data[0])
    options = {"structure": structure, "views": views, "optimizer": torch.optim.SGD, "lr": 0.1, "random_state": 0}
    fits, formed = [], []
    view = GradientArray.view
    monkeypatch.setattr(GradientArray, "view", lambda *args: formed.append(1) or view(*args))
    for factored in (True, False):
        if not factored:
            by_entry = scale in ("maxabs", "rms") and views == "all" and isinstance(net, MLP)
            assert bool(formed) != (by_entry or scale in ("layer", None))  # the factored path is taken by itself
            monkeypatch.setattr(GradientArray, "factored", lambda *args: None)
        fits.append(GradNetClassifier(batch_size=40, max_epochs=1, **options).fit(lazy, data[1]))
        fits.append(fits[-1].forward(lazy))
    for found, expected in zip(fits[0].module_.parameters(), fits[2].module_.parameters()):
        assert_close(found, expected)
    assert_close(fits[1], fits[3])


def test_it_is_a_skorch_classifier():
    assert isinstance(GradNetClassifier(), NeuralNetClassifier)


def net_of(n_outputs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(8, n_outputs, (5,)).double()


def mean_over_views(module, lazy, labels):
    """Return the mean of a module's outputs over views of each row, `labels` of shape (n, v)."""
    views = torch.from_numpy(lazy.toarray()).unflatten(1, (lazy.n_labels, -1))
    rows = torch.arange(len(views))
    return sum(module(views[rows, of_view]) for of_view in torch.as_tensor(labels).T) / labels.shape[1]


def test_prediction_is_the_mean_of_the_outputs_over_all_views(data, lazy):
    classifier = GradNetClassifier(random_state=0, max_epochs=2).fit(lazy, data[1])
    mean = mean_over_views(classifier.module_.eval(), lazy, np.tile(np.arange(K), (N, 1))).detach()
    assert_close(classifier.forward(lazy), mean)
    np.testing.assert_array_equal(classifier.predict(lazy), mean.argmax(1).numpy())
    assert_close(classifier.predict_proba(lazy), mean.softmax(1))


@pytest.mark.filterwarnings("ignore:nothing was learnt")  # columns are numbers of rows
@pytest.mark.parametrize(("views", "v"), [("random", 1), (1, 1), (2, 2), (3, 3), ("all", 3)])
def test_training_shows_random_views_of_each_row(data, views, v):
    """Columns name their row and their label, so that what the module sees can be read off."""
    X = np.add.outer(np.arange(N) * K, np.arange(K)).astype(float)
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 3)

        def forward(self, features):
            if self.training:
                seen.append(features.detach().clone())
            return self.linear(features)

    GradNetClassifier(module=Spy(), views=views, n_labels=K, max_epochs=20, random_state=0, lr=1e-3).fit(X, data[1])
    seen = torch.cat(seen).flatten().numpy().astype(int).reshape(20, N * v)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch // K), np.repeat(np.arange(N), v))
        assert len(set(epoch)) == N * v
    counts = np.bincount(seen.ravel() % K, minlength=K)
    assert (np.abs(counts - counts.sum() / K) < 4 * np.sqrt(counts.sum() / K)).all()


def test_all_views_train_on_what_predicts(data, lazy):
    """A step of gradient descent is one on the mean over views, by hand."""
    options = {"views": "all", "optimizer": torch.optim.SGD, "lr": 0.1, "batch_size": -1, "random_state": 0}
    start = GradNetClassifier(max_epochs=0, **options).fit(lazy, data[1]).module_
    mean = mean_over_views(start, lazy, np.tile(np.arange(K), (N, 1)))
    loss = nn.functional.cross_entropy(mean, torch.from_numpy(data[1]))
    loss.backward()
    stepped = GradNetClassifier(max_epochs=1, **options).fit(lazy, data[1])
    assert stepped.history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-12)
    for before, after in zip(start.parameters(), stepped.module_.parameters()):
        assert_close(after, before - 0.1 * before.grad)


@pytest.mark.parametrize("views", ["all", 2])
def test_views_of_lazy_and_dense_features_are_the_same(data, lazy, views):
    dense, options = lazy.toarray(), {"views": views, "max_epochs": 3, "random_state": 0, "batch_size": 7}
    of_lazy = GradNetClassifier(**options).fit(lazy, data[1])
    of_dense = GradNetClassifier(n_labels=K, blocks=lazy.blocks, **options).fit(dense, data[1])
    assert_close(of_lazy.predict_proba(lazy), of_dense.predict_proba(dense), 1e-6)


@of_unrelated_labels
def test_training_rows_are_augmented_and_others_are_not(data, lazy):
    seen = []

    def zeros(X, generator):
        seen.append(len(X))
        return 0 * X

    options = {"views": "all", "base_logits": True, "lr": 0.0, "max_epochs": 1, "random_state": 0}
    augmented, zero, plain = (
        GradNetClassifier(train_split=ValidSplit(3, stratified=True), **options).fit(rows, data[1])
        for rows in (
            GradientArray(lazy.features, lazy.X, zeros),
            GradientArray(lazy.features, 0 * lazy.X),
            lazy,
        )
    )
    assert sum(seen) == N * 2 // 3
    assert augmented.history[-1]["train_loss"] == pytest.approx(zero.history[-1]["train_loss"])
    assert augmented.history[-1]["valid_loss"] == pytest.approx(plain.history[-1]["valid_loss"])
    assert_close(plain.predict_proba(GradientArray(lazy.features, lazy.X, zeros)), plain.predict_proba(lazy))


@of_unrelated_labels
def test_augmentation_derives_from_the_random_state(data, lazy):
    def scaled(X, generator):
        return X * generator.uniform(0.5, 2, size=(len(X), 1))

    array = GradientArray(lazy.features, lazy.X, scaled)
    options = {"lr": 0.0, "base_logits": True, "iterator_train__shuffle": False, "max_epochs": 2}
    with random_state_untouched():
        fits = [GradNetClassifier(random_state=seed, **options).fit(array, data[1]) for seed in (0, 0, 1)]
    first, again, other = (fit.history[:, "train_loss"] for fit in fits)
    assert first == again
    assert len({*first, *other}) == 4  # a new draw in each epoch and for each seed


@of_unrelated_labels
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_with_base_logits_fitting_begins_at_the_base_net(data, n_outputs):
    net, n_classes = net_of(n_outputs), max(n_outputs, 2)
    lazy, y = GradientFeaturizer(net).fit_transform(data[0]), data[1] % n_classes
    outputs = net(torch.from_numpy(data[0])).detach()
    logits = outputs if n_outputs > 1 else torch.cat([torch.zeros(N, 1), outputs], 1)
    options = {"base_logits": True, "batch_size": -1, "random_state": 0, "views": 2}
    assert_close(GradNetClassifier(max_epochs=0, **options).fit(lazy, y).forward(lazy), logits)
    trained = GradNetClassifier(max_epochs=30, **options).fit(lazy, y)
    first = nn.functional.cross_entropy(logits, torch.from_numpy(y)).item()
    assert trained.history[0]["train_loss"] == pytest.approx(first)
    assert trained.history[-1]["train_loss"] < 0.8 * first
    labels = np.tile(np.arange(n_classes), (N, 1))
    mean = mean_over_views(trained.module_.eval(), lazy, labels).detach()
    assert_close(trained.forward(lazy), logits + mean)


@of_unrelated_labels
@pytest.mark.parametrize("base_logits", [True, False])
def test_base_logits_set_afterwards_wait_for_the_next_fit(data, base_logits):
    lazy = GradientFeaturizer(net_of(3)).fit_transform(data[0])
    model = GradNetClassifier(base_logits=base_logits, max_epochs=2, random_state=0).fit(lazy, data[1])
    before = model.predict_proba(lazy)
    model.set_params(base_logits=not base_logits)
    assert np.array_equal(model.predict_proba(lazy), before)
    with pytest.raises(ValueError, match=f"but the module was made with base_logits={base_logits}"):
        model.partial_fit(lazy, data[1])
    assert not np.array_equal(model.fit(lazy, data[1]).predict_proba(lazy), before)


def test_base_logits_come_in_the_order_of_the_classes(data):
    net, names = net_of(3), ["c", "a", "b"]
    lazy = GradientFeaturizer(net).fit_transform(data[0])
    y = np.array(names)[net(torch.from_numpy(data[0])).argmax(1).numpy()]
    y[:3] = names
    options = {"base_logits": True, "max_epochs": 0, "random_state": 0}
    model = GradNetClassifier(classes=names, **options).fit(lazy, y)
    assert model.score(lazy[3:], y[3:]) == 1
    assert clone(model).partial_fit(lazy, y).partial_fit(lazy, y).score(lazy[3:], y[3:]) == 1
    with pytest.warns(
        UserWarning, match=r"taken for \['a', 'b', 'c'\], are right on .*% of the rows, less than a guess"
    ):
        GradNetClassifier(**options).fit(lazy, y)


def test_lazy_dense_and_sparse_features_train_the_same_net(data, lazy):
    dense = lazy.toarray()
    kwargs = {"n_labels": K, "blocks": lazy.blocks}
    fits = [
        GradNetClassifier(random_state=0).fit(lazy, data[1]).predict_proba(lazy),
        GradNetClassifier(random_state=0, **kwargs).fit(dense, data[1]).predict_proba(dense),
        GradNetClassifier(random_state=0, **kwargs).fit(sparse.csr_array(dense), data[1]).predict_proba(dense),
    ]
    assert_close(fits[1], fits[0], 1e-6)
    assert_close(fits[2], fits[0], 1e-6)


@pytest.mark.parametrize("structure", ["layer", "adjacent", "full", [["layers.1"], ["layers.1", "layers.3.weight"]]])
@pytest.mark.parametrize("activation", ["relu", "square", "tanh", "identity", nn.functional.silu])
def test_structures_and_activations_learn(data, lazy, structure, activation):
    classifier = GradNetClassifier(8, structure=structure, activation=activation, random_state=0, max_epochs=60)
    assert classifier.fit(lazy, data[1]).score(lazy, data[1]) > 0.9


def test_hidden_sizes_are_one_a_group(data, lazy):
    module = GradNetClassifier((5, 2), max_epochs=1).fit(lazy, data[1]).module_
    assert [(layer.in_features, layer.out_features) for layer in module.hidden] == [(40, 5), (15, 2)]


def test_the_hidden_layer_begins_as_the_authors_do(lazy, data):
    module = GradNetClassifier(400, max_epochs=0, random_state=0).fit(lazy, data[1]).module_
    for layer in module.hidden:
        assert abs(layer.weight.std() - 0.02) < 0.001 and abs(layer.weight.mean()) < 0.001
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("labels", [np.array(["cat", "dog", "elk"]), np.array([10, 20, 40]), np.array([True, False])])
def test_labels_of_any_kind(data, lazy, labels):
    y = labels[data[1] % len(labels)]
    classifier = GradNetClassifier(random_state=0).fit(lazy, y)
    np.testing.assert_array_equal(classifier.classes_, np.unique(labels))
    assert classifier.predict(lazy).dtype == labels.dtype
    assert set(classifier.predict(lazy)) <= set(labels.tolist())


def test_a_hundred_classes():
    X, y = np.random.default_rng(0).normal(size=(300, 40)), np.arange(300) % 100
    assert GradNetClassifier(max_epochs=2).fit(X, y).predict_proba(X).shape == (300, 100)


def test_fewer_classes_than_candidate_labels(data, lazy):
    rows = np.flatnonzero(data[1] != 1)
    classifier = GradNetClassifier(random_state=0, max_epochs=60).fit(lazy[rows], data[1][rows])
    np.testing.assert_array_equal(classifier.classes_, [0, 2])
    assert classifier.score(lazy[rows], data[1][rows]) > 0.9


def test_weights_of_whole_numbers_are_repetitions(data, lazy):
    dense, weight = lazy.toarray(), np.arange(N) % 4
    repeated = np.repeat(np.arange(N), weight)
    options = {"random_state": 0, "batch_size": 1000, "max_epochs": 20, "iterator_train__shuffle": False}
    weighted = GradNetClassifier(**options).fit(dense, data[1], sample_weight=weight)
    expected = GradNetClassifier(**options).fit(dense[repeated], data[1][repeated])
    assert_close(weighted.predict_proba(dense), expected.predict_proba(dense), 1e-8)


def test_class_weights_are_sample_weights(data, lazy):
    options = {"random_state": 0, "max_epochs": 5}
    by_class = GradNetClassifier(class_weight={0: 2.0, 2: 0.5}, **options).fit(lazy, data[1])
    by_sample = GradNetClassifier(**options).fit(lazy, data[1], sample_weight=np.array([2.0, 1.0, 0.5])[data[1]])
    assert_close(by_class.predict_proba(lazy), by_sample.predict_proba(lazy))


def test_weights_do_not_reach_the_validation_split(data, lazy):
    classifier = GradNetClassifier(train_split=ValidSplit(4, stratified=True), max_epochs=2)
    classifier.fit(lazy, data[1], sample_weight=np.ones(N))
    assert len(classifier.history[:, "valid_loss"]) == 2


@pytest.mark.parametrize("l1_ratio", [0.0, 0.4, 1.0])
def test_the_penalty_is_that_of_the_elastic_net(data, lazy, l1_ratio):
    options = {"l1_ratio": l1_ratio, "max_epochs": 1, "batch_size": -1, "random_state": 0, "lr": 0.0}
    free, penalised = (GradNetClassifier(regularization=value, **options).fit(lazy, data[1]) for value in (0.0, 0.3))
    weights = np.concatenate([p.detach().numpy().ravel() for p in free.module_.parameters() if p.ndim > 1])
    expected = 0.3 * (l1_ratio * np.abs(weights).sum() + (1 - l1_ratio) / 2 * (weights**2).sum())
    assert_close(penalised.history[-1]["train_loss"] - free.history[-1]["train_loss"], expected, 1e-8)


@pytest.mark.parametrize("weight", [None, np.ones(N)])
def test_labels_are_smoothed_in_training_alone(data, lazy, weight):
    options = {"max_epochs": 1, "views": "all", "random_state": 0, "lr": 0.0, "batch_size": -1}
    options["train_split"] = lambda dataset, y: (dataset, dataset)
    classifier = GradNetClassifier(label_smoothing=0.2, **options).fit(lazy, data[1], sample_weight=weight)
    logits, y = classifier.forward(lazy), torch.from_numpy(data[1])
    smoothed, plain = (nn.functional.cross_entropy(logits, y, label_smoothing=share).item() for share in (0.2, 0.0))
    assert classifier.history[-1]["train_loss"] == pytest.approx(smoothed)
    assert classifier.history[-1]["valid_loss"] == pytest.approx(plain)
    by_hand = GradNetClassifier(criterion__label_smoothing=0.2, **options).fit(lazy, data[1])
    assert by_hand.history[-1]["valid_loss"] == pytest.approx(smoothed)


def test_early_stopping_without_an_epoch_and_afterwards(lazy):
    y = np.random.default_rng(0).permutation(np.arange(len(lazy)) % 3)
    classifier = GradNetClassifier(early_stopping=True, n_iter_no_change=1, max_epochs=0, random_state=0).fit(lazy, y)
    assert not classifier.history
    classifier.set_params(max_epochs=60).partial_fit(lazy, y)
    assert 0 < len(classifier.history) < 60
    assert not classifier.fit(lazy, y, epochs=0).history


def test_balanced_classes_are_those_of_rows_that_count(data, lazy):
    weight = np.arange(len(data[1])) % 4
    classifier = GradNetClassifier(class_weight="balanced", max_epochs=2, random_state=0)
    found = clone(classifier).fit(lazy, data[1], sample_weight=weight).predict_proba(lazy)
    rows = np.flatnonzero(weight)
    assert np.array_equal(
        found, classifier.fit(lazy[rows], data[1][rows], sample_weight=weight[rows]).predict_proba(lazy)
    )


def test_an_optimizer_that_is_no_class():
    X, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    with_betas, by_name = partial(torch.optim.Adam, betas=(0.8, 0.99)), {"optimizer__betas": (0.8, 0.99)}
    first, second = (
        GradNetClassifier(max_epochs=2, random_state=0, **options).fit(X, y).predict_proba(X)
        for options in ({"optimizer": with_betas}, by_name)
    )
    assert_close(first, second, 1e-6)


@pytest.mark.parametrize(("max_epochs", "patience", "stops"), [(200, 3, True), (30, 1000, False)])
def test_early_stopping_goes_back_to_the_best_epoch(data, lazy, max_epochs, patience, stops):
    y = np.random.default_rng(0).permutation(data[1])  # nothing to learn, so that the loss soon rises
    options = {"random_state": 0, "max_epochs": max_epochs, "n_iter_no_change": patience}
    with random_state_untouched():
        classifier = GradNetClassifier(early_stopping=True, validation_fraction=0.2, **options).fit(lazy, y)
    losses = classifier.history[:, "valid_loss"]
    assert (len(losses) < max_epochs) == stops
    assert np.argmin(losses) < len(losses) - 1
    if stops:
        assert np.argmin(losses) == len(losses) - 1 - patience
    best = GradNetClassifier(early_stopping=True, validation_fraction=0.2, **options)
    best.set_params(max_epochs=int(np.argmin(losses)) + 1).fit(lazy, y)
    for found, expected in zip(classifier.module_.parameters(), best.module_.parameters()):
        assert_close(found, expected)


@pytest.mark.parametrize("epoch", [1, 2])
def test_early_stopping_and_calibration_outlive_an_interruption(data, lazy, epoch):
    class Interrupt(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if len(net.history) == epoch:
                raise KeyboardInterrupt

    classifier = GradNetClassifier(early_stopping=True, max_epochs=4, callbacks=[Interrupt()]).fit(lazy, data[1])
    assert len(classifier.history) == epoch and classifier.temperature_ != 1
    assert np.isfinite(classifier.predict_proba(lazy)).all()


def test_early_stopping_holds_out_rows_of_every_class_and_the_same_again(data, lazy):
    held_out = []

    class Held(Callback):
        def on_epoch_end(self, net, dataset_train, dataset_valid, **kwargs):
            held_out.append(dataset_valid.indices)
            assert not set(dataset_train.indices) & set(dataset_valid.indices)

    classifier = GradNetClassifier(early_stopping=True, validation_fraction=0.2, max_epochs=1, callbacks=[Held()])
    classifier.set_params(random_state=0).fit(lazy, data[1]).partial_fit(lazy, data[1])
    np.testing.assert_array_equal(np.bincount(data[1][held_out[0]]), [4, 4, 4])
    np.testing.assert_array_equal(*held_out)
    classifier.set_params(random_state=1).fit(lazy, data[1])
    assert set(held_out[2]) != set(held_out[0])


def test_callbacks_of_the_user_see_the_epoch_that_early_stopping_stops_at(data, lazy):
    scoring = EpochScoring("accuracy", lower_is_better=False, name="score")
    classifier = GradNetClassifier(early_stopping=True, n_iter_no_change=1, lr=0.0, callbacks=[scoring])
    classifier.fit(lazy, data[1])
    assert len(classifier.history[:, "score"]) == 2
    classifier.set_params(callbacks__early_stopping__patience=3).fit(lazy, data[1])
    assert len(classifier.history[:, "score"]) == 4


def test_early_stopping_takes_a_split_of_the_user(data, lazy):
    classifier = GradNetClassifier(early_stopping=True, train_split=ValidSplit(2, stratified=True), max_epochs=2)
    classifier.fit(lazy, data[1])
    assert classifier.history[-1, "batches", -1, "valid_batch_size"] == N // 2
    assert "early_stopping" in dict(classifier.callbacks_)


def test_schedule_and_early_stopping_can_be_searched_set_and_pickled(data, lazy):
    grid = {"schedule": [None, "cosine"], "early_stopping": [False, True], "views": ["random", 2, "all"]}
    search = GridSearchCV(GradNetClassifier(max_epochs=2, random_state=0), grid, cv=2, error_score="raise")
    search.fit(lazy, data[1])
    assert search.best_estimator_.get_params()["views"] == search.best_params_["views"]
    classifier = GradNetClassifier(max_epochs=2, random_state=0).fit(lazy, data[1])
    classifier.set_params(schedule="cosine", early_stopping=True).partial_fit(lazy, data[1])
    assert {"schedule", "early_stopping"} <= set(dict(classifier.callbacks_))
    twin = pickle.loads(pickle.dumps(classifier))
    for each in (twin, classifier):
        each.partial_fit(lazy, data[1])
    np.testing.assert_array_equal(twin.predict_proba(lazy), classifier.predict_proba(lazy))
    assert clone(classifier).get_params()["schedule"] == "cosine"


@pytest.mark.parametrize("weight", [None, np.arange(N) % 4])
def test_the_temperature_lowers_the_loss_of_the_rows_held_out(data, lazy, weight):
    y = np.where(np.arange(N) % 7 < 2, (data[1] + 1) % K, data[1])  # labels that are wrong are learned by heart

    def halves(dataset, y):
        rows = np.arange(len(y))
        return Subset(dataset, rows[::2]), Subset(dataset, rows[1::2])

    classifier = GradNetClassifier(train_split=halves, max_epochs=200, random_state=0)
    classifier.fit(lazy, y, sample_weight=weight)
    rows = np.arange(N) if weight is None else np.flatnonzero(weight)
    held_out = rows[1::2]
    of_rows = None if weight is None else weight[held_out]
    found = log_loss(y[held_out], classifier.predict_proba(lazy[held_out]), sample_weight=of_rows)
    temperature, predicted = classifier.temperature_, classifier.predict(lazy)
    assert 1.1 < temperature < 50
    for other in (1.0, 0.99 * temperature, 1.01 * temperature):
        classifier.temperature_ = other
        assert found < log_loss(y[held_out], classifier.predict_proba(lazy[held_out]), sample_weight=of_rows)
        np.testing.assert_array_equal(classifier.predict(lazy), predicted)
    assert classifier.set_params(train_split=None).fit(lazy, y).temperature_ == 1


def test_without_rows_held_out_the_temperature_is_one(data, lazy):
    assert GradNetClassifier(max_epochs=1).fit(lazy, data[1]).temperature_ == 1
    assert not hasattr(GradNetClassifier(), "temperature_")


@of_unrelated_labels
def test_no_epochs_with_everything_on(data, lazy):
    options = {"early_stopping": True, "schedule": "cosine", "views": "all", "base_logits": True}
    classifier = GradNetClassifier(max_epochs=0, **options).fit(lazy, data[1])
    assert classifier.predict_proba(lazy).shape == (N, K)


def test_auto_gives_every_layer_its_rate(data, lazy):
    classifier = GradNetClassifier(7, max_epochs=1).fit(lazy, data[1])
    rates = {id(g["params"][0]): g["lr"] for g in classifier.optimizer_.param_groups}
    for layer in (*classifier.module_.hidden, classifier.module_.output):
        assert rates[id(layer.weight)] == rates[id(layer.bias)] == pytest.approx(0.05 / layer.in_features**0.5)
    plain = GradNetClassifier(lr=0.1, optimizer=torch.optim.SGD, max_epochs=1).fit(lazy, data[1])
    assert [g["lr"] for g in plain.optimizer_.param_groups] == [0.1]


def test_a_seed_decides_everything_and_global_states_are_left_alone(data, lazy):
    with random_state_untouched():
        fits = [GradNetClassifier(random_state=3, dropout=0.2).fit(lazy, data[1]).predict_proba(lazy) for _ in range(2)]
    np.testing.assert_array_equal(*fits)
    assert not np.array_equal(
        fits[0], GradNetClassifier(random_state=4, dropout=0.2).fit(lazy, data[1]).predict_proba(lazy)
    )


@pytest.mark.parametrize("structure", ["layer", [["layers.1"], ["layers.1", "layers.3"]]])
def test_partial_fit_goes_on_where_fit_left_off(data, lazy, structure):
    options = {"structure": structure, "random_state": 0}
    whole = GradNetClassifier(max_epochs=4, **options).fit(lazy, data[1])
    parts = GradNetClassifier(max_epochs=2, **options).fit(lazy, data[1]).partial_fit(lazy, data[1])
    warm = GradNetClassifier(max_epochs=2, warm_start=True, **options).fit(lazy, data[1]).fit(lazy, data[1])
    np.testing.assert_array_equal(parts.predict_proba(lazy), whole.predict_proba(lazy))
    np.testing.assert_array_equal(warm.predict_proba(lazy), whole.predict_proba(lazy))


def test_pickles_and_clones(data, lazy):
    classifier = GradNetClassifier(random_state=0, max_epochs=2).fit(lazy, data[1])
    twin = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(twin.predict_proba(lazy), classifier.predict_proba(lazy))
    twin.partial_fit(lazy, data[1])
    assert not hasattr(clone(classifier), "module_")


def test_parameters_persist_without_pickle(data, lazy, tmp_path):
    classifier = GradNetClassifier(random_state=0, max_epochs=2).fit(lazy, data[1])
    classifier.save_params(f_params=tmp_path / "gradnet.safetensors", use_safetensors=True)
    other = GradNetClassifier(random_state=1, max_epochs=1).fit(lazy, data[1])
    other.load_params(f_params=tmp_path / "gradnet.safetensors", use_safetensors=True)
    np.testing.assert_array_equal(other.predict_proba(lazy), classifier.predict_proba(lazy))


def test_skorch_callbacks_and_validation_see_true_scores(data, lazy):
    scoring = EpochScoring("balanced_accuracy", lower_is_better=False, name="score")
    classifier = GradNetClassifier(
        callbacks=[("scoring", scoring), ("schedule", LRScheduler("StepLR", step_size=10))],
        train_split=ValidSplit(3, stratified=True),
        max_epochs=40,
        random_state=0,
    ).set_params(callbacks__scoring__name="renamed", optimizer__weight_decay=1e-6)
    y = np.array(["x", "y", "z"])[data[1]]
    classifier.fit(lazy, y)
    assert classifier.history[-1]["renamed"] > 0.6
    assert classifier.history[-1]["valid_acc"] > 0.6


def test_dense_and_lazy_features_are_interchangeable(data, lazy):
    dense = lazy.toarray()
    classifier = GradNetClassifier(n_labels=K, blocks=lazy.blocks, max_epochs=2, random_state=0).fit(dense, data[1])
    assert_close(classifier.predict_proba(lazy), classifier.predict_proba(dense))
    single = GradientFeaturizer(lazy.features.engine.net.float()).fit_transform(data[0])
    lazy.features.engine.net.double()
    assert_close(classifier.predict_proba(single), classifier.predict_proba(dense), 1e-3)


def test_lr_auto_can_be_set_on_a_fitted_net(data, lazy):
    classifier = GradNetClassifier(lr=0.1, max_epochs=1).fit(lazy, data[1]).set_params(lr="auto")
    assert len(classifier.optimizer_.param_groups) == 6
    classifier.partial_fit(lazy, data[1])


def test_threads_do_not_share_the_random_state(data, lazy):
    def fit(seed):
        return GradNetClassifier(random_state=seed, max_epochs=2).fit(lazy, data[1]).predict_proba(lazy)

    with random_state_untouched():
        in_threads = joblib.Parallel(n_jobs=3, prefer="threads")(joblib.delayed(fit)(seed) for seed in range(6))
    for seed, proba in enumerate(in_threads):
        np.testing.assert_array_equal(proba, fit(seed))


def test_weights_of_one_change_nothing_beside_weights_of_the_criterion(data, lazy):
    options = {"random_state": 0, "max_epochs": 1, "lr": 0.0, "criterion__weight": torch.tensor([1.0, 2, 5]).double()}
    plain = GradNetClassifier(**options).fit(lazy, data[1])
    weighted = GradNetClassifier(**options).fit(lazy, data[1], sample_weight=np.ones(N))
    assert weighted.history[-1]["train_loss"] == pytest.approx(plain.history[-1]["train_loss"])


def test_training_in_the_precision_of_the_features(data, lazy):
    dense = lazy.toarray()
    assert GradNetClassifier(max_epochs=1).fit(dense, data[1]).module_.output.weight.dtype == torch.float64
    single = GradNetClassifier(max_epochs=1).fit(dense.astype(np.float32), data[1])
    assert single.module_.output.weight.dtype == torch.float32
    assert single.predict_proba(dense).dtype == np.float32


def test_trains_where_the_features_are(device, data):
    lazy = GradientFeaturizer(MLP(8, K), device=device).fit_transform(data[0])
    classifier = GradNetClassifier(random_state=0, max_epochs=40).fit(lazy, data[1])
    assert next(classifier.module_.parameters()).device.type == device.type
    assert classifier.score(lazy, data[1]) > 0.9
