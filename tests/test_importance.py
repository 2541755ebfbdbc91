"""Importances are means over rows of scores of gradients by autograd, and their rankings keep the laws."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from asserts import assert_close, random_state_untouched, untouched
from cases import BY_NAME
from scipy.stats import spearmanr
from sklearn.base import clone
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_gradspace import EdgeImportance, GradientFeaturizer, GradientKernelClassifier, finetune
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace._units import unit_sums
from sklearn_gradspace.gradients import GradientEngine, GradientFeatures, two_logits
from sklearn_gradspace.modules import MLP

CASES = [
    "mlp of three layers",
    "linear on steps",
    "conv2d groups",
    "conv2d twice",
    "transposed conv2d every option",
    "batch norm 2d",
    "tied weights",
    "called twice",
    "unused layer",
    "parameters without axes",
    "embedding",
    "lstm",
    "one logit",
    "weight norm",
]
POWERS = {"gradient": 1, "sensitivity": 1, "fisher": 2}


def row_gradients(net, X, kind):
    """Return, by name, autograd's gradients of shape (n, n_labels, *shape), and the probabilities."""
    net = net.eval()
    parameters = dict(net.named_parameters())
    found, probabilities = {name: [] for name in parameters}, []
    for row in X:
        row = torch.as_tensor(row)[None]
        logits = two_logits(net(row if row.dtype == torch.int64 else row.double()))
        probabilities.append(logits.detach().softmax(1)[0].numpy())
        of_row = [
            torch.autograd.grad(-logits.log_softmax(1)[0, k], parameters.values(), retain_graph=True, allow_unused=True)
            for k in range(logits.shape[1])
        ]
        for name, *of_labels in zip(parameters, *of_row):
            zeros = torch.zeros_like(parameters[name])
            found[name].append(torch.stack([zeros if g is None else g.to_dense() for g in of_labels]).numpy())
    return {name: np.array(values) for name, values in found.items()}, np.array(probabilities)


def weights_of(labels, probabilities, y):
    eye = np.eye(probabilities.shape[1])
    return {
        "true": lambda: eye[y],
        "predicted": lambda: eye[probabilities.argmax(1)],
        "expected": lambda: probabilities,
        "all": lambda: np.full(probabilities.shape, 1 / probabilities.shape[1]),
    }[labels]()


def row_scores(net, X, y, score, labels):
    gradients, probabilities = row_gradients(net, X, score)
    weights, parameters = weights_of(labels, probabilities, y), dict(net.named_parameters())
    found = {}
    for name, g in gradients.items():
        scores = np.einsum("nk,nk...->n...", weights, np.abs(g) ** POWERS[score])
        found[name] = scores * (np.abs(parameters[name].detach().numpy()) if score == "sensitivity" else 1)
    return found


def numbers(case):
    n_labels = 2 if case.name == "one logit" else 3
    return np.random.default_rng(0).integers(0, n_labels, len(case.X))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("score", POWERS)
def test_means_and_standard_errors_are_those_of_autograd(name, score, device):
    case = BY_NAME[name]
    net, y = case.net(), numbers(case)
    for labels in ("true", "expected"):
        scores = row_scores(net, case.X, y, score, labels)
        found = EdgeImportance(net, criterion=score, labels=labels, layers="all", batch_size=2, device=device)
        found.fit(case.X, y)
        largest = max(values.mean(0).max() for values in scores.values())
        assert list(found.importances_) == list(scores)
        for parameter, values in scores.items():
            np.testing.assert_allclose(found.importances_[parameter], values.mean(0), 1e-9, 1e-12 * largest)
            error = values.std(0, ddof=1) / np.sqrt(len(values))
            np.testing.assert_allclose(found.standard_errors_[parameter], error, 1e-6, 1e-9 * largest)


@pytest.mark.parametrize("labels", ["predicted", "all"])
@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d"])
def test_other_labels(name, labels):
    case = BY_NAME[name]
    scores = row_scores(case.net(), case.X, None, "gradient", labels)
    found = EdgeImportance(case.net(), criterion="gradient", labels=labels, layers="all").fit(case.X)
    for parameter, values in scores.items():
        assert_close(found.importances_[parameter], values.mean(0))


def test_labels_by_default():
    case = BY_NAME["mlp of two layers"]
    y = numbers(case)
    for given, labels in ((y, "true"), (None, "expected")):
        one, other = (EdgeImportance(case.net(), labels=kind).fit(case.X, given) for kind in ("auto", labels))
        assert one.rank_correlation(other) == pytest.approx(1)
        assert_close(one.importances_["0.weight"], other.importances_["0.weight"])


def test_sampled_labels_come_to_the_expectation_in_any_batch():
    case = BY_NAME["mlp of two layers"]
    X = np.random.default_rng(0).normal(size=(4000, 6))
    sampled, again = (
        EdgeImportance(case.net(), criterion="fisher", labels="sampled", random_state=1, batch_size=size).fit(X)
        for size in (7, "auto")
    )
    expected = EdgeImportance(case.net(), criterion="fisher").fit(X)
    for name, values in expected.importances_.items():
        assert_close(sampled.importances_[name], again.importances_[name])
        deviations = (sampled.importances_[name] - values) / sampled.standard_errors_[name]
        assert np.abs(deviations).max() < 5


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice"])
@pytest.mark.parametrize("score", ["sensitivity", "fisher", "survival"])
@pytest.mark.parametrize("labels", ["true", "expected"])
def test_any_batch_size_gives_the_same(name, score, labels):
    case = BY_NAME[name]
    y = numbers(case)
    whole = EdgeImportance(case.net(), criterion=score, labels=labels, per_class=True).fit(case.X, y)
    for size in (1, 2, 3):
        parts = clone(whole).set_params(batch_size=size).fit(case.X, y)
        for parameter in whole.importances_:
            assert_close(parts.importances_[parameter], whole.importances_[parameter])
            assert_close(parts.class_importances_[parameter], whole.class_importances_[parameter])
        np.testing.assert_allclose(parts.stability_, whole.stability_, 1e-6)


@pytest.mark.parametrize("labels", ["true", "all"])
def test_survival_is_how_often_selection_leaves_an_entry(labels):
    case = BY_NAME["conv2d"]
    net, y = case.net(), numbers(case)
    engine = GradientEngine(net, case.X)
    features = GradientFeatures(engine, 20)
    survives = features(case.X, None) != 0
    survives = survives[range(len(y)), y] if labels == "true" else survives.double().mean(1)
    found = EdgeImportance(net, criterion="survival", labels=labels, percentile=20).fit(case.X, y)
    for block in engine.blocks:
        assert_close(found.importances_[block.name].ravel(), survives[:, block.slice].double().mean(0))


def test_magnitude_needs_no_data_and_has_no_error():
    case = BY_NAME["mlp of two layers"]
    net = case.net()
    found = EdgeImportance(net, criterion="magnitude").fit(case.X[:1])
    for name, values in found.importances_.items():
        assert_close(values, net.get_parameter(name).abs())
        assert not found.standard_errors_[name].any()


def test_classes_make_up_the_whole():
    case = BY_NAME["mlp of three layers"]
    X = np.random.default_rng(0).normal(size=(30, 6))
    y = np.array(["b", "a", "c"])[np.random.default_rng(1).integers(0, 3, 30)]
    found = EdgeImportance(case.net(), per_class=True, classes=["a", "b", "c"]).fit(X, y)
    shares = np.array([(y == label).mean() for label in found.classes_])
    for name, values in found.importances_.items():
        assert_close(np.tensordot(shares, found.class_importances_[name], 1), values)
    # The class is the label of that number, in the order that was given.
    alone = EdgeImportance(case.net()).fit(X[y == "b"], np.full((y == "b").sum(), 1))
    assert_close(found.importances_of("b")["0.weight"], alone.importances_["0.weight"])
    assert_close(found.class_standard_errors_["0.weight"][1], alone.standard_errors_["0.weight"], 1e-6)
    kept = found.mask(0.2, label="b")
    assert all(torch.equal(kept[name], other) for name, other in alone.mask(0.2).items())


def test_predicted_classes_without_labels():
    case = BY_NAME["mlp of three layers"]
    X = np.random.default_rng(0).normal(size=(30, 6))
    predicted = case.net().eval()(torch.from_numpy(X)).argmax(1).numpy()
    found, given = (EdgeImportance(case.net(), labels="all", per_class=True).fit(X, y) for y in (None, predicted))
    for name, values in given.class_importances_.items():
        np.testing.assert_allclose(found.class_importances_[name], values)


def rescaled(net, rng):
    """Return a twin of a ReLU net of linear layers or convolutions that computes the same."""
    twin = pickle.loads(pickle.dumps(net))
    layers = [layer for layer in twin if hasattr(layer, "weight")]
    with torch.no_grad():
        for layer, after in pairwise(layers):
            factors = torch.from_numpy(10 ** rng.uniform(-1, 1, len(layer.weight)))
            layer.weight *= factors.view(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias *= factors
            columns = factors.repeat_interleave(after.weight.shape[1] // len(factors))
            after.weight /= columns.view(1, -1, *[1] * (after.weight.ndim - 2))
    return twin


@pytest.mark.parametrize("shape", [(6,), (2, 7, 6)])
def test_a_rescaled_twin_has_the_same_sensitivities(shape):
    rng = np.random.default_rng(0)
    convolutions = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(1))
    net = (
        nn.Sequential(*convolutions, nn.Linear(36, 3))
        if len(shape) > 1
        else nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))
    )
    net, X = net.double(), rng.normal(size=(40, *shape))
    twin = rescaled(net, rng)
    assert_close(twin(torch.from_numpy(X)), net(torch.from_numpy(X)))
    one, other = (EdgeImportance(n, layers="all").fit(X) for n in (net, twin))
    for name in one.importances_:
        assert_close(other.importances_[name], one.importances_[name])
    assert one.rank_correlation(other) == pytest.approx(1, abs=1e-9)
    assert all(torch.equal(kept, other.mask(0.1)[name]) for name, kept in one.mask(0.1).items())
    gradients = [EdgeImportance(n, criterion="gradient", layers="all").fit(X) for n in (net, twin)]
    assert gradients[0].rank_correlation(gradients[1]) < 0.95


def test_small_gradients_in_single_precision_do_not_vanish():
    """The fourth power of gradients of 1e-10 is below the range of single precision."""
    case = BY_NAME["conv2d twice"]
    net = case.net()
    with torch.no_grad():
        for parameter in net[-1].parameters():
            parameter *= 1e-10
    single = pickle.loads(pickle.dumps(net)).float()
    one, other = (EdgeImportance(n, criterion="fisher").fit(case.X) for n in (net, single))
    for name, errors in one.standard_errors_.items():
        assert_close(other.standard_errors_[name], errors, 1e-3)


def test_units_and_layers():
    case = BY_NAME["conv2d"]
    found = EdgeImportance(case.net(), layers="all").fit(case.X)
    assert_close(found.unit_importances_["0.weight"], found.importances_["0.weight"].sum((1, 2, 3)))
    total = found.importances_["0.weight"].sum() + found.importances_["0.bias"].sum()
    assert found.layer_importances_["0"] == pytest.approx(total)


@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_transposed_convolutions_are_output_channels(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    values = layer.weight.detach().abs().numpy()
    # A unit's weights are those on which its output depends.
    output = layer(torch.rand(1, 4, 5, 5))[0]
    for unit, total in enumerate(unit_sums(layer, "weight", values)):
        (gradient,) = torch.autograd.grad(output[unit].sum(), layer.weight, retain_graph=True)
        assert total == pytest.approx(values[gradient.numpy() != 0].sum(), rel=1e-5)


@pytest.mark.parametrize("keep", [1e-9, 0.1, 0.37, 1])
def test_masks_keep_exactly_as_many_of_the_largest(keep):
    case = BY_NAME["mlp of three layers"]
    found = EdgeImportance(case.net()).fit(case.X)
    everything = np.concatenate([v.ravel() for v in found.importances_.values()])
    chosen = found.mask(keep)
    kept = np.concatenate([m.numpy().ravel() for m in chosen.values()])
    assert kept.sum() == max(1, round(keep * len(kept)))
    assert keep == 1 or everything[kept].min() >= everything[~kept].max()
    for name, mask in found.mask(keep, scope="layer").items():
        values = found.importances_[name]
        assert mask.dtype == torch.bool and mask.shape == values.shape
        assert mask.sum() == max(1, round(keep * values.size))
        assert keep == 1 or values[mask.numpy()].min() >= values[~mask.numpy()].max()


def test_of_equal_entries_the_first_are_kept():
    case = BY_NAME["mlp of two layers"]
    found = EdgeImportance(case.net(), criterion="magnitude").fit(case.X)
    found.importances_ = {name: np.ones_like(v) for name, v in found.importances_.items()}
    assert found.mask(0.2)["0.weight"].flatten().nonzero().flatten().tolist() == list(range(9))
    assert np.isnan(found.rank_correlation(found))


def test_stability_is_the_rank_correlation_of_even_and_odd_rows():
    case = BY_NAME["mlp of three layers"]
    X = np.random.default_rng(0).normal(size=(21, 6))
    found = EdgeImportance(case.net(), batch_size=4).fit(X)
    halves = [EdgeImportance(case.net()).fit(X[half::2]).importances_ for half in (0, 1)]
    ranked = [np.concatenate([v.ravel() for v in half.values()]) for half in halves]
    assert found.stability_ == pytest.approx(spearmanr(*ranked).statistic)
    with pytest.raises(ValueError, match="other has importances of"):
        found.rank_correlation({"0.weight": halves[0]["0.weight"]})


def test_frame_is_sorted_and_complete():
    case = BY_NAME["mlp of two layers"]
    found = EdgeImportance(case.net()).fit(case.X)
    frame = found.to_frame()
    assert len(frame) == sum(v.size for v in found.importances_.values())
    assert frame.importance.is_monotonic_decreasing
    for row in frame.head(10).itertuples():
        assert row.importance == found.importances_[row.parameter][row[2]]
        assert row.weight == case.net().get_parameter(row.parameter)[row[2]].item()


def test_a_single_row_has_no_standard_error():
    case = BY_NAME["conv2d"]
    with pytest.warns(UserWarning, match="single row"):
        found = EdgeImportance(case.net()).fit(case.X[:1])
    assert all(np.isnan(errors).all() for errors in found.standard_errors_.values())
    assert all(np.isfinite(values).all() for values in found.importances_.values())
    assert np.isnan(found.stability_)


def test_shared_parameters_are_counted_once():
    case = BY_NAME["tied weights"]
    found = EdgeImportance(case.net()).fit(case.X)
    assert list(found.importances_) == ["encoder.weight", "head.weight"]


def test_masks_are_the_featurizers_edges():
    case = BY_NAME["mlp of two layers"]
    net = case.net()
    mask = EdgeImportance(net).fit(case.X).mask(0.25)
    features = GradientFeaturizer(net, edges=mask, output="dense").fit_transform(case.X)
    assert features.shape == (5, 3 * sum(int(m.sum()) for m in mask.values()))


@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d", "batch norm 2d"])
def test_net_and_random_states_are_left_alone(name):
    case = BY_NAME[name]
    net = case.net()
    with untouched(net), random_state_untouched():
        EdgeImportance(net, labels="sampled", random_state=0).fit(case.X)
        EdgeImportance(net, criterion="survival").fit(case.X)


def test_pickle_clone_and_a_skorch_net():
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = np.array(["x", "y"])[(X[:, 0] > 0).astype(int)]
    net = NetClassifier(MLP, max_epochs=2, random_state=0).fit(X, y)
    found = EdgeImportance(net, per_class=True).fit(X, y)
    assert found.module_ is net.module_
    assert found.classes_.tolist() == ["x", "y"]
    again = pickle.loads(pickle.dumps(found))
    assert all(torch.equal(m, found.mask()[name]) for name, m in again.mask().items())
    assert clone(found).net is net


def test_labels_of_a_plain_skorch_net_are_numbers_of_outputs():
    X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    y = np.arange(60) % 3 * 2  # of six outputs it sees three
    net = NeuralNetClassifier(MLP(6, 6), criterion=nn.CrossEntropyLoss, max_epochs=1, train_split=None, verbose=0)
    net.fit(X, y)
    assert net.classes_.tolist() == [0, 2, 4]
    one, other = (EdgeImportance(n, per_class=True).fit(X, y) for n in (net, net.module_))
    assert one.classes_.tolist() == list(range(6))
    for name, values in other.class_importances_.items():
        np.testing.assert_array_equal(one.class_importances_[name], values)
    mask = one.mask()
    tuned, again = (finetune(n, X, y, mask, random_state=0) for n in (net, net.module_))
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters()))
    unseen = np.arange(60) % 6
    assert EdgeImportance(net).fit(X, unseen).rank_correlation(EdgeImportance(net.module_).fit(X, unseen)) == 1
    assert EdgeImportance(net, per_class=True).fit(X).classes_.tolist() == list(range(6))
    GradientFeaturizer(net).fit(X, unseen)
    GradientKernelClassifier(net).fit(X, unseen)
    with pytest.raises(ValueError, match=r"labels unknown to the net: \[6\]"):
        EdgeImportance(net).fit(X, np.arange(60) % 7)


def test_classes_need_a_name_for_every_output():
    X, y = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32), np.arange(20) % 2
    net = NetClassifier(MLP, max_epochs=1, random_state=0).fit(X, y)
    importance = EdgeImportance(net, per_class=True, net_output=lambda z: torch.cat([z, z[:, :1]], 1))
    for labels in ((), (y,)):
        with pytest.raises(ValueError, match=r"3 labels and knows the names of 2: pass classes=\["):
            importance.fit(X, *labels)
    assert importance.set_params(classes=["a", "b", "c"]).fit(X).classes_.tolist() == ["a", "b", "c"]


def test_the_order_of_a_modules_labels():
    net, X, y = MLP(6, 3), np.random.default_rng(0).normal(size=(12, 6)), np.arange(12) % 3
    names = np.array(["zero", "one", "two"])
    expected = EdgeImportance(net, per_class=True).fit(X, y)
    named = EdgeImportance(net, per_class=True, classes=names).fit(X, names[y])
    assert named.classes_.tolist() == names.tolist()
    for name, values in expected.class_importances_.items():
        np.testing.assert_array_equal(named.class_importances_[name], values)
    with pytest.warns(UserWarning, match="taken in sorted order"):
        EdgeImportance(net).fit(X, names[y])
    EdgeImportance(net, labels="expected").fit(X, names[y])  # without a warning: labels do not enter


def test_names_of_many_outputs():
    X, names = np.random.default_rng(0).normal(size=(12, 6)), [f"class {i}" for i in range(30)]
    found = EdgeImportance(MLP(6, 30), per_class=True, classes=names).fit(X)  # without scikit-learn's warning
    assert found.classes_.tolist() == names


def test_a_class_without_rows_has_no_importances():
    X, y = np.random.default_rng(0).normal(size=(30, 6)), np.arange(30) % 2
    found = EdgeImportance(BY_NAME["mlp of three layers"].net(), per_class=True).fit(X, y)
    for use in (found.importances_of, lambda label: found.mask(label=label)):
        with pytest.raises(ValueError, match="label=2 has no rows"):
            use(2)
    for label in ([0, 1], 7):
        with pytest.raises(ValueError, match="is none of the classes"):
            found.importances_of(label)
    again = found.set_params(per_class=False).fit(X, y)
    assert not hasattr(again, "class_importances_")
    with pytest.raises(ValueError, match="per_class=True"):
        again.importances_of(0)


def test_gradients_that_overflow_are_refused():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.fill_(1e-38)
        net[2].weight.copy_(torch.tensor([[1e38, 0.0], [0.0, 1e-38]]))
    with pytest.raises(ValueError, match=r"importances of '0.weight' are not finite"):
        EdgeImportance(net).fit(np.full((3, 1, 2), 1e30, np.float32), [1, 1, 1])
