"""GradNetClassifier: views, weights, labels, states, and that the representation of the features does not matter."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from asserts import assert_close, random_state_untouched
from scipy import sparse
from sklearn.base import clone
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(8, K, (5,)).double()
    return GradientFeaturizer(net).fit_transform(data[0])


def test_it_is_a_skorch_classifier():
    assert isinstance(GradNetClassifier(), NeuralNetClassifier)


def test_prediction_sums_the_outputs_over_all_views(data, lazy):
    classifier = GradNetClassifier(random_state=0, max_epochs=2).fit(lazy, data[1])
    views = torch.from_numpy(lazy.toarray()).unflatten(1, (K, -1))
    with torch.no_grad():
        summed = sum(classifier.module_.eval()(views[:, k]) for k in range(K))
    assert_close(classifier.forward(lazy), summed)
    np.testing.assert_array_equal(classifier.predict(lazy), summed.argmax(1).numpy())
    assert_close(classifier.predict_proba(lazy), (summed / K).softmax(1))


def test_training_shows_one_random_view_a_row(data):
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

    GradNetClassifier(module=Spy(), n_labels=K, max_epochs=20, random_state=0, lr=1e-3).fit(X, data[1])
    seen = torch.cat(seen).flatten().numpy().astype(int).reshape(20, N)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch // K), np.arange(N))
    counts = np.bincount(seen.ravel() % K, minlength=K)
    assert (np.abs(counts - counts.sum() / K) < 4 * np.sqrt(counts.sum() / K)).all()


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


def test_the_penalty_is_half_lambda_times_the_squared_weights(data, lazy):
    free, penalised = (
        GradNetClassifier(regularization=value, max_epochs=1, batch_size=-1, random_state=0, lr=0.0).fit(lazy, data[1])
        for value in (0.0, 0.3)
    )
    weights = [p for p in free.module_.parameters() if p.ndim > 1]
    expected = 0.15 * sum(float((w.detach() ** 2).sum()) for w in weights)
    assert_close(penalised.history[-1]["train_loss"] - free.history[-1]["train_loss"], np.array(expected), 1e-8)


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


def test_partial_fit_goes_on_where_fit_left_off(data, lazy):
    whole = GradNetClassifier(random_state=0, max_epochs=4).fit(lazy, data[1])
    parts = GradNetClassifier(random_state=0, max_epochs=2).fit(lazy, data[1]).partial_fit(lazy, data[1])
    warm = GradNetClassifier(random_state=0, max_epochs=2, warm_start=True).fit(lazy, data[1]).fit(lazy, data[1])
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
