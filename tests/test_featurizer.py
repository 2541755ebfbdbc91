"""GradientFeaturizer: its numbers, its representations, the kinds of nets, and what it leaves alone."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import reference
import torch
from asserts import assert_close, random_state_untouched, untouched
from cases import BY_NAME
from nets import Apply, cut, sum_and_product
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier, _featurizer, check_gradients
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.gradients import GradientArray, GradientEngine
from sklearn_gradspace.modules import MLP

N_LABELS, SIZES = 3, (6 * 5, 5 * 3)


def make_net(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(6, N_LABELS, (5,)).to(dtype)


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(12, 6))


@pytest.mark.parametrize("percentile", [15, 40, 100])
@pytest.mark.parametrize("scale", ["minmax", "maxabs", "rms", "layer", None])
@pytest.mark.parametrize("power", [0.5, None, 2])
def test_features_equal_the_reference(net, X, percentile, scale, power):
    train, new = X[:8], X[8:]
    featurizer = GradientFeaturizer(net, percentile=percentile, scale=scale, power=power, output="dense", batch_size=3)
    features = featurizer.fit(train).transform(new)
    weights = np.r_[0 : SIZES[0], SIZES[0] + 5 : SIZES[0] + 5 + SIZES[1]]  # all but the two biases
    selected = [reference.select(reference.gradients(net, x)[..., weights], SIZES, percentile) for x in (train, new)]
    expected = selected[1] if scale is None else reference.scale(*selected, scale, SIZES)
    expected = expected if power is None else reference.power_norm(expected, power)
    assert_close(features, expected.reshape(4, -1), 1e-7 if power == 0.5 else 1e-10)


def test_representations_hold_the_same_numbers(net, X):
    lazy = GradientFeaturizer(net).fit_transform(X)
    dense = GradientFeaturizer(net, output="dense").fit_transform(X)
    csr = GradientFeaturizer(net, output="csr").fit_transform(X)
    assert isinstance(lazy, GradientArray) and isinstance(dense, np.ndarray) and sparse.issparse(csr)
    assert lazy.shape == dense.shape == csr.shape == (12, N_LABELS * sum(SIZES))
    np.testing.assert_array_equal(lazy.toarray(), dense)
    np.testing.assert_array_equal(csr.toarray(), dense)
    assert csr.nnz == np.count_nonzero(dense)


def test_fit_transform_is_fit_then_transform(net, X):
    featurizer = GradientFeaturizer(net, output="dense")
    np.testing.assert_array_equal(featurizer.fit_transform(X), featurizer.fit(X).transform(X))


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 5}, {"n_jobs": 2}, {"n_jobs": 2, "batch_size": 4}]
)
def test_batches_and_jobs_do_not_show(net, X, options):
    expected = GradientFeaturizer(net, output="dense").fit_transform(X)
    assert_close(GradientFeaturizer(net, output="dense", **options).fit_transform(X), expected)


def test_samples_of_any_rank():
    images = np.random.default_rng(0).normal(size=(5, 2, 6, 6)).astype(np.float32)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    featurizer = GradientFeaturizer(net).fit(images)
    assert featurizer.sample_shape_ == (2, 6, 6)
    for same in (torch.from_numpy(images), images.tolist()):
        assert featurizer.transform(same).shape == (5, 4 * (54 + 192))
    with pytest.raises(ValueError, match=r"samples of shape \(2, 6, 5\).*fitted to \(2, 6, 6\)"):
        featurizer.transform(images[..., :5])


def test_nets_of_indices_get_integers():
    tokens = np.random.default_rng(0).integers(0, 9, (5, 4))
    net = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 3)).double()
    features = GradientFeaturizer(net, percentile=100, scale=None, power=None, output="dense").fit_transform(tokens)
    expected = reference.gradients(net, tokens)
    assert_close(features.reshape(5, 3, -1), expected[..., : 27 + 36])


def test_every_kind_of_trained_net_gives_the_same(X):
    y = np.arange(12) % N_LABELS
    classifier = NetClassifier(MLP, max_epochs=1, random_state=0).fit(X, y)
    kinds = [classifier.module_, classifier, FrozenEstimator(classifier), lambda X, y: classifier]
    features = [GradientFeaturizer(kind, output="dense").fit_transform(X, y) for kind in kinds]
    for other in features[1:]:
        np.testing.assert_array_equal(other, features[0])


def test_the_default_net_is_seeded_by_the_random_state(X):
    y = np.arange(12) % N_LABELS
    first, second = (GradientFeaturizer(random_state=0, output="dense").fit_transform(X, y) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, GradientFeaturizer(random_state=1, output="dense").fit_transform(X, y))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_users_is_changed(net, X, training):
    net.train(training)
    net.layers[1].bias.requires_grad_(False)
    net(torch.from_numpy(X)).sum().backward()
    with untouched(net), random_state_untouched():
        featurizer = clone(GradientFeaturizer(net, output="dense"))
        featurizer.fit(X).transform(X)
        joblib.hash(featurizer)
        pickle.dumps(featurizer)
    with random_state_untouched():
        GradientFeaturizer(random_state=0).fit(X, np.arange(12) % 3)


def test_clone_shares_a_trained_net_and_keeps_settings(net):
    featurizer = GradientFeaturizer(net, percentile=30, output="dense").set_output(transform="pandas")
    twin = clone(featurizer)
    assert twin.net is net and twin.percentile == 30
    assert twin._sklearn_output_config == featurizer._sklearn_output_config


def test_a_clone_of_an_unfitted_skorch_net_is_refused_by_fit(X):
    featurizer = GradientFeaturizer(NetClassifier(MLP))
    with pytest.raises(NotFittedError, match=r"FrozenEstimator") as error:
        clone(featurizer).fit(X)
    assert ".module_" in str(error.value)


def test_pickle_and_joblib_keep_the_numbers_and_the_one_net(net, X, tmp_path):
    featurizer = GradientFeaturizer(net, output="dense").fit(X)
    joblib.dump(featurizer, tmp_path / "featurizer.joblib")
    for twin in (pickle.loads(pickle.dumps(featurizer)), joblib.load(tmp_path / "featurizer.joblib")):
        np.testing.assert_array_equal(twin.transform(X), featurizer.transform(X))
        assert twin.net is twin.module_ is twin.features_.engine.net


def test_a_pickled_lazy_array_gives_the_same(net, X):
    lazy = GradientFeaturizer(net).fit_transform(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).toarray(), lazy.toarray())


def test_data_frames_hold_dense_output_alone(net, X):
    featurizer = GradientFeaturizer(net, output="dense").set_output(transform="pandas").fit(X)
    frame = featurizer.transform(X)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(featurizer.get_feature_names_out())
    assert frame.columns[0] == "label0 layers.1.weight[0,0]" and frame.columns[-1] == "label2 layers.3.weight[2,4]"
    assert frame.columns.is_unique
    for output in ("lazy", "csr"):
        with pytest.raises(ValueError, match="output='dense'"):
            GradientFeaturizer(net, output=output).set_output(transform="pandas")


def test_a_global_data_frame_output_lets_lazy_and_sparse_pass(net, X):
    with config_context(transform_output="pandas"):
        assert isinstance(GradientFeaturizer(net).fit_transform(X), GradientArray)
        assert sparse.issparse(GradientFeaturizer(net, output="csr").fit_transform(X))
        assert isinstance(GradientFeaturizer(net, output="dense").fit_transform(X), pd.DataFrame)


def test_layers_are_chosen_by_pattern(net, X):
    featurizer = GradientFeaturizer(net, layers=["layers.3.*"]).fit(X)
    assert [block.name for block in featurizer.blocks_] == ["layers.3.weight", "layers.3.bias"]
    assert [rule.rule for rule in featurizer.engine_report_] == ["closed_form", "closed_form"]


def test_float32_nets_give_float32_features(X):
    assert GradientFeaturizer(make_net(torch.float32)).fit_transform(X).dtype == np.float32
    assert GradientFeaturizer(make_net()).fit_transform(X).dtype == np.float64


def test_verbose_shows_a_bar_and_the_default_is_silent(net, X, capsys):
    GradientFeaturizer(net, output="dense").fit_transform(X)
    assert capsys.readouterr() == ("", "")
    GradientFeaturizer(net, output="dense", verbose=1).fit_transform(X)
    assert "statistics" in capsys.readouterr().err


def test_runs_where_it_is_told(device, X):
    lazy = GradientFeaturizer(make_net(), device=device).fit_transform(X)
    assert lazy.compute_device.type == device.type
    assert_close(lazy.toarray(), GradientFeaturizer(make_net(), output="dense").fit_transform(X), 1e-7)


SCALARS = ["cross_entropy", "log_probability", "logit", sum_and_product]


@pytest.mark.parametrize("scalar", SCALARS, ids=["cross_entropy", "log_probability", "logit", "function"])
@pytest.mark.parametrize("power", [0.5, None])
def test_features_of_every_scalar_equal_the_reference(net, X, scalar, power):
    featurizer = GradientFeaturizer(net, layers="all", scale="maxabs", scalar=scalar, power=power, output="dense")
    features = featurizer.fit(X[:8]).transform(X[8:])
    sizes = [parameter.numel() for parameter in net.parameters()]
    train, new = (reference.select(reference.gradients(net, x, scalar), sizes, 15) for x in (X[:8], X[8:]))
    expected = reference.scale(train, new, "maxabs", sizes)
    expected = expected if power is None else reference.power_norm(expected, power)
    assert featurizer.n_labels_ == expected.shape[1]
    assert_close(features.reshape(expected.shape), expected, 1e-7)


@pytest.mark.parametrize("name", ["returns a tuple", "returns a dict", "one logit", "one logit without an axis"])
def test_net_output_picks_the_logits(name):
    case = BY_NAME[name]
    options = {"percentile": 100, "scale": None, "power": None, "layers": "all", "output": "dense"}
    found = GradientFeaturizer(case.net(), net_output=case.output, **options).fit_transform(case.X)
    expected = reference.gradients(case.net(), case.X, output=case.output)
    assert_close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "tf32", None])
def test_dtype_is_a_precision_near_the_truth(X, dtype):
    net = make_net(torch.float32)
    options = {"percentile": 100, "scale": "layer", "power": None, "output": "dense"}
    with untouched(net):
        featurizer = GradientFeaturizer(net, dtype=dtype, **options)
        features = featurizer.fit_transform(X)
    assert features.dtype == (np.float64 if dtype == "float64" else np.float32)
    expected = GradientFeaturizer(make_net(torch.float32).double(), **options).fit_transform(X)
    assert_close(features, expected, {"float64": 1e-12, "bfloat16": 0.1}.get(dtype, 1e-4))
    assert (featurizer.rounding_error_ is None) == (dtype not in ("bfloat16", "tf32"))


def test_sampled_selection_says_how_wrong_it_is(X):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(6, 3, (1000, 10))
    exact, sampled = (GradientFeaturizer(net, selection=how, output="dense") for how in ("exact", "sampled"))
    differ = ((exact.fit_transform(X[:8]) != 0) != (sampled.fit_transform(X[:8]) != 0)).mean()
    assert exact.selection_error_ == 0
    # Scaling makes zeros of the entries at the minimum.
    assert 0 < sampled.selection_error_ < 0.02 and sampled.selection_error_ == pytest.approx(differ, abs=0.005)


def predicted(net, X):
    """Return the labels that a net predicts."""
    return reference.probabilities(net, X).argmax(1)


@pytest.mark.parametrize("name", ["mlp of two layers", "one logit", "two classes", "many classes"])
@pytest.mark.parametrize("scalar", ["cross_entropy", "log_probability", "logit"])
@pytest.mark.parametrize("scale", [None, "minmax"])
def test_the_predicted_view_is_that_of_the_predicted_label(name, scalar, scale):
    case = BY_NAME[name]
    net, X = case.net(), np.concatenate([case.X, -case.X, case.X + 1])
    with torch.no_grad():
        net[-1].bias -= net(torch.tensor(X)).mean(0)  # so that not all rows have one label
    options = {"scalar": scalar, "layers": "all", "scale": scale, "batch_size": 2}
    featurizer = GradientFeaturizer(net, labels="predicted", output="dense", **options)
    sizes = [parameter.numel() for parameter in net.parameters()]
    selected = reference.select(reference.gradients(net, X, scalar), sizes, 15)
    labels = predicted(net, X) if selected.shape[1] > 1 else np.zeros(len(X), int)
    assert selected.shape[1] == 1 or len(set(labels)) > 1
    views = selected[np.arange(len(X)), labels]
    expected = reference.power_norm(views if scale is None else reference.scale(views, views, scale, sizes), 0.5)
    assert_close(featurizer.fit_transform(X), expected, 1e-7)
    assert featurizer.n_labels_ == 1


def test_representations_of_the_predicted_view_hold_the_same_numbers(net, X):
    lazy, dense, csr = (
        GradientFeaturizer(net, labels="predicted", output=output).fit_transform(X)
        for output in ("lazy", "dense", "csr")
    )
    assert lazy.shape == dense.shape == csr.shape == (12, sum(SIZES)) and lazy.n_labels == 1
    np.testing.assert_array_equal(lazy.toarray(), dense)
    np.testing.assert_array_equal(csr.toarray(), dense)
    np.testing.assert_array_equal(lazy.view().flatten(1).cpu(), dense)
    np.testing.assert_array_equal(lazy.view(torch.zeros(12, dtype=int)).cpu(), dense)
    np.testing.assert_array_equal(lazy[5], dense[5])
    with pytest.raises(ValueError, match="a row has a single view"):
        lazy.view(torch.ones(12, dtype=int))


def test_with_the_predicted_view_labels_may_be_another_tasks(net, X):
    y = np.array(["a", "b", "c", "d", "e", "f"] * 2)
    assert len(set(y)) > N_LABELS
    model = make_pipeline(GradientFeaturizer(net, labels="predicted", output="dense"), LogisticRegression())
    assert set(model.fit(X, y).predict(X)) <= set(y)
    with pytest.raises(ValueError, match="labels unknown to the base net"):
        model.set_params(gradientfeaturizer__labels="all").fit(X, y)


def test_the_predicted_view_suits_general_models_and_has_names(net, X):
    y = np.arange(12) % N_LABELS
    featurizer = GradientFeaturizer(net, labels="predicted", output="csr")
    search = GridSearchCV(
        make_pipeline(featurizer, LogisticRegression()), {"gradientfeaturizer__labels": ["all", "predicted"]}, cv=2
    )
    assert search.fit(X, y).cv_results_["rank_test_score"].size == 2
    names = featurizer.fit(X).get_feature_names_out()
    assert len(names) == sum(SIZES) and names[0] == "predicted layers.1.weight[0,0]"
    lazy = GradientFeaturizer(net, labels="predicted").fit_transform(X)
    assert GradNetClassifier(max_epochs=1).fit(lazy, y).predict(lazy).shape == (12,)


def halves(shape):
    return np.arange(np.prod(shape)).reshape(shape) % 2 == 0


EDGES = {
    "one parameter": {"layers.1.weight": halves((5, 6))},
    "tensors": {"layers.1.weight": torch.from_numpy(halves((5, 6))), "layers.3.weight": torch.eye(3, 5) > 0},
    "a dropped parameter": {"layers.3.weight": np.zeros((3, 5), bool), "layers.1.weight": halves((5, 6))},
    "columns": np.arange(sum(SIZES)) % 3 > 0,
    "all": np.ones(sum(SIZES), bool),
}


def columns_of(edges):
    """Return which of the net's weights `edges` keeps."""
    shapes = {"layers.1.weight": (5, 6), "layers.3.weight": (3, 5)}
    if not isinstance(edges, dict):
        return edges
    return np.concatenate([np.asarray(edges.get(name, np.ones(shape, bool))).ravel() for name, shape in shapes.items()])


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("percentile", [30, 100])
@pytest.mark.parametrize("scale", ["minmax", "layer", None])
def test_features_of_some_edges_equal_the_reference(net, X, edges, percentile, scale):
    options = {"edges": edges, "percentile": percentile, "scale": scale, "batch_size": 5}
    features = GradientFeaturizer(net, output="dense", **options).fit(X[:8]).transform(X[8:])
    kept = columns_of(edges)
    sizes = np.array([kept[: SIZES[0]].sum(), kept[SIZES[0] :].sum()])
    sizes = sizes[sizes > 0]
    weights = np.r_[0 : SIZES[0], SIZES[0] + 5 : SIZES[0] + 5 + SIZES[1]][kept]
    train, new = (
        reference.select(reference.gradients(net, x)[..., weights], sizes, percentile) for x in (X[:8], X[8:])
    )
    expected = new if scale is None else reference.scale(train, new, scale, sizes)
    assert_close(features, reference.power_norm(expected, 0.5).reshape(4, -1), 1e-7)


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_representations_and_names_of_some_edges_agree(net, X, edges):
    lazy, dense, csr = (
        GradientFeaturizer(net, edges=edges, output=output).fit_transform(X) for output in ("lazy", "dense", "csr")
    )
    n_kept = columns_of(edges).sum()
    assert lazy.shape == dense.shape == csr.shape == (12, N_LABELS * n_kept)
    assert sum(block.size for block in lazy.blocks) == n_kept
    np.testing.assert_array_equal(lazy.toarray(), dense)
    np.testing.assert_array_equal(csr.toarray(), dense)
    np.testing.assert_array_equal(lazy[3], dense[3])
    labels = torch.arange(12) % N_LABELS
    views = dense.reshape(12, N_LABELS, n_kept)
    assert_close(lazy.view(labels), views[np.arange(12), labels])
    assert_close(torch.cat([part.clone() for part in lazy.parts()]), views)
    for options in ({"batch_size": 1}, {"batch_size": 5, "n_jobs": 2}):
        assert_close(GradientFeaturizer(net, edges=edges, output="dense", **options).fit_transform(X), dense)
    everything = GradientFeaturizer(net).fit(X).get_feature_names_out()
    names = GradientFeaturizer(net, edges=edges).fit(X).get_feature_names_out()
    assert list(names) == list(everything[np.tile(columns_of(edges), N_LABELS)])
    classifier = GradNetClassifier(max_epochs=1).fit(lazy, np.arange(12) % 3)
    assert classifier.predict(lazy).shape == (12,) and classifier.blocks_ == lazy.blocks


def test_edges_are_searched_over_and_survive_clone_and_pickle(net, X):
    y = np.arange(12) % N_LABELS
    pipeline = make_pipeline(GradientFeaturizer(net, output="csr"), LogisticRegression())
    search = GridSearchCV(pipeline, {"gradientfeaturizer__edges": [None, *EDGES.values()]}, cv=2, error_score="raise")
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()
    featurizer = GradientFeaturizer(net, edges=EDGES["tensors"], output="dense").fit(X)
    np.testing.assert_array_equal(clone(featurizer).fit_transform(X), featurizer.transform(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(featurizer)).transform(X), featurizer.transform(X))


@pytest.mark.parametrize("labels", ["all", "predicted"])
@pytest.mark.parametrize("edges", [None, EDGES["one parameter"]])
def test_the_fisher_scale_is_of_all_labels_before_selection(net, X, labels, edges):
    train, new = X[:8], X[8:]
    options = {"scale": "fisher", "percentile": 40, "power": None, "labels": labels, "edges": edges, "output": "dense"}
    features = GradientFeaturizer(net, batch_size=3, **options).fit(train).transform(new)
    kept = np.ones(sum(SIZES), bool) if edges is None else columns_of(edges)
    weights = np.r_[0 : SIZES[0], SIZES[0] + 5 : SIZES[0] + 5 + SIZES[1]][kept]
    gradients = reference.gradients(net, train)[..., weights]
    divisor = np.sqrt((reference.probabilities(net, train)[..., None] * gradients**2).sum((0, 1)) / 8)
    sizes = [kept[: SIZES[0]].sum(), kept[SIZES[0] :].sum()]
    expected = reference.select(reference.gradients(net, new)[..., weights], sizes, 40) / divisor
    if labels == "predicted":
        expected = expected[np.arange(4), predicted(net, new)]
    assert_close(features, expected.reshape(4, -1))


@pytest.mark.parametrize("options", [{}, {"labels": "predicted"}, {"edges": EDGES["one parameter"]}], ids=str)
def test_whitening_comes_before_edges_and_selection(net, X, options):
    whole = GradientFeaturizer(net, scale="kronecker", percentile=100, power=None, output="dense").fit_transform(X)
    views = whole.reshape(12, N_LABELS, -1)
    mask = columns_of(options.get("edges", {}))
    expected = reference.select(views[..., mask], [mask[: SIZES[0]].sum(), mask[SIZES[0] :].sum()], 40)
    if options.get("labels") == "predicted":
        expected = expected[np.arange(12), predicted(net, X)]
    options = {"scale": "kronecker", "percentile": 40, "power": None, **options}
    lazy, dense, csr = (
        GradientFeaturizer(net, output=output, **options).fit_transform(X) for output in ("lazy", "dense", "csr")
    )
    assert_close(dense, expected.reshape(12, -1))
    np.testing.assert_array_equal(lazy.toarray(), dense)
    np.testing.assert_array_equal(csr.toarray(), dense)
    for batches in ({"batch_size": 1}, {"batch_size": 5, "n_jobs": 2}):
        assert_close(GradientFeaturizer(net, output="dense", **options, **batches).fit_transform(X), dense, 1e-9)


def test_whitening_is_learned_from_rows_drawn_by_the_random_state(net, X, monkeypatch):
    whole = GradientFeaturizer(net, scale="kronecker", output="dense", random_state=0).fit_transform(X)
    monkeypatch.setattr(_featurizer, "_WHITENING_ROWS", 5)
    first, again, other = (
        GradientFeaturizer(net, scale="kronecker", output="dense", random_state=seed).fit_transform(X)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, whole)


def test_sampled_selection_of_whitened_gradients_says_how_wrong_it_is(X):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(6, 3, (1000, 10))
    options = {"scale": "kronecker", "layers": "layers.3.weight", "output": "dense"}
    exact, sampled = (GradientFeaturizer(net, selection=how, **options) for how in ("exact", "sampled"))
    differ = ((exact.fit_transform(X[:8]) != 0) != (sampled.fit_transform(X[:8]) != 0)).mean()
    assert exact.selection_error_ == 0 and 0 < sampled.selection_error_ == pytest.approx(differ)


def jitter(X, generator):
    return X + generator.normal(size=X.shape)


def test_training_rows_carry_the_augmentation_and_nothing_else_does(net, X):
    plain, augmenting = GradientFeaturizer(net).fit(X), GradientFeaturizer(net, augment=jitter)
    train = augmenting.fit_transform(X)
    assert train.augment is jitter and train[2:4].augment is jitter and augmenting.transform(X).augment is None
    expected = plain.transform(X)
    for same in (train, augmenting.transform(X), clone(augmenting).fit(X).transform(X)):
        np.testing.assert_array_equal(same.toarray(), expected.toarray())
    shaken = jitter(X, np.random.default_rng(3))
    drawn = train.augmented(np.random.default_rng(3))
    np.testing.assert_array_equal(drawn.toarray(), plain.transform(shaken).toarray())
    assert pickle.loads(pickle.dumps(train)).augment is jitter


SETTINGS = {
    "logit": {"scalar": "logit"},
    "function": {"scalar": sum_and_product},
    "net_output": {"net_output": cut},
    "sampled": {"selection": "sampled"},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
    "fisher": {"scale": "fisher"},
    "kronecker": {"scale": "kronecker", "layers": "all"},
    "several": {"scalar": "log_probability", "net_output": cut, "dtype": "float32", "selection": "sampled"},
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_settings_survive_clone_pickle_and_joblib(X, options, tmp_path):
    net = make_net(torch.float32)
    featurizer = GradientFeaturizer(net, output="dense", **options)
    assert clone(featurizer).get_params() == featurizer.get_params()
    expected = featurizer.fit_transform(X)
    joblib.dump(featurizer, tmp_path / "featurizer.joblib")
    for twin in (pickle.loads(pickle.dumps(featurizer)), joblib.load(tmp_path / "featurizer.joblib")):
        np.testing.assert_array_equal(twin.transform(X), expected)
        assert twin.rounding_error_ == featurizer.rounding_error_
        assert twin.selection_error_ == featurizer.selection_error_
    np.testing.assert_array_equal(clone(featurizer).fit_transform(X), expected)


def test_settings_are_searched_over(net, X):
    y = np.arange(12) % N_LABELS
    pipeline = make_pipeline(GradientFeaturizer(net, output="csr"), LogisticRegression())
    grid = {"gradientfeaturizer__scalar": SCALARS, "gradientfeaturizer__selection": ["exact", "sampled"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    scores = search.cv_results_["mean_test_score"].reshape(len(SCALARS), 2)
    assert np.isfinite(scores).all()
    assert (scores[:, 0] == scores[:, 1]).all()  # small layers are sampled whole


def sizes_of_passes(featurizer, X, monkeypatch):
    """Return what a fitted featurizer makes of X, and the numbers of rows of its passes through the net."""
    seen, forward = [], GradientEngine.forward

    def recorded(self, rows, *of):
        seen.append(len(rows))
        return forward(self, rows, *of)

    with monkeypatch.context() as patch:
        patch.setattr(GradientEngine, "forward", recorded)
        return featurizer.transform(X), seen


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_the_budget_of_scikit_learn_sets_the_batches_and_not_the_numbers(net, X, rows, monkeypatch):
    X = np.concatenate([X, X + 1, X - 1])
    engine = GradientEngine(net, X)
    with config_context(working_memory=(engine.memory(rows) + engine.memory(rows + 1)) / 2**21):
        featurizer = GradientFeaturizer(net, output="dense").fit(X)
    features, sizes = sizes_of_passes(featurizer, X, monkeypatch)
    assert max(sizes) == rows and sum(sizes) == len(X)
    assert_close(features, GradientFeaturizer(net, output="dense").fit_transform(X), 1e-7)


def test_a_budget_that_is_too_small_takes_a_row_at_a_time(net, X, monkeypatch):
    with config_context(working_memory=0):
        featurizer = GradientFeaturizer(net, output="dense").fit(X)
    assert sizes_of_passes(featurizer, X, monkeypatch)[1] == [1] * len(X)


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_memory_that_runs_out_does_not_show(net, X, monkeypatch):
    expected = GradientFeaturizer(net, output="dense").fit_transform(X)
    forward = GradientEngine.forward

    def limited(self, rows, *of):
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, rows, *of)

    monkeypatch.setattr(GradientEngine, "forward", limited)
    assert_close(GradientFeaturizer(net, output="dense").fit_transform(X), expected, 1e-7)


def test_the_report_prints_as_a_table(net, X):
    report = GradientFeaturizer(net, layers="all").fit(X).engine_report_
    lines = str(report).splitlines()
    assert [line.split()[:2] for line in lines] == [[name, "closed_form"] for name, _ in net.named_parameters()]
    assert len({line.index("a Linear layer") for line in lines}) == 1


def test_outputs_that_are_not_finite_name_the_rows(net, X):
    class Logarithm(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net

        def forward(self, x):
            return self.body(x) + x[:, :1].log()

    good = np.abs(X)
    bad = good.copy()
    bad[[2, 5], 0] = -1
    featurizer = GradientFeaturizer(Logarithm(), output="dense")
    for compute in (featurizer.fit(good).transform, featurizer.fit):
        with pytest.raises(ValueError, match=r"NaN or infinity for rows \[2, 5\]: its gradients"):
            compute(bad)


def test_gradients_that_are_not_finite_are_refused(X):
    net = nn.Sequential(nn.Linear(6, 3, bias=False), Apply(lambda x: x.abs().sqrt()), nn.Linear(3, 3))
    X[2] = 0  # where the outputs are finite and the derivative of the root is not
    with pytest.raises(ValueError, match="gradients of net overflow: they are not finite although its outputs are"):
        GradientFeaturizer(net).fit(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of torch
def test_a_compiled_net_is_the_net_it_was_made_from(net, X):
    compiled = torch.compile(net)  # at the first call, which does not come
    featurizer = GradientFeaturizer(compiled, output="dense").fit(X)
    assert featurizer.module_ is net and check_gradients(compiled, X[:3]).ok
    assert np.array_equal(featurizer.transform(X), GradientFeaturizer(net, output="dense").fit(X).transform(X))


@pytest.mark.parametrize("compiled", [False, True])
def test_compiling_is_only_passed_on(net, X, compiled):
    assert GradientFeaturizer(net, compile=compiled).fit(X).features_.compile is compiled


def test_tensors_that_numpy_does_not_read():
    """As those on a CUDA device are: samples and labels in a precision that NumPy lacks."""
    y = torch.arange(12) % 3
    net, X = MLP(4, 3, (5,)), torch.randn(12, 4).bfloat16()
    one, other = (GradientFeaturizer(net).fit_transform(X.to(d), y.to(d)).toarray() for d in (torch.float32, X.dtype))
    np.testing.assert_array_equal(one, other)


def test_targets_of_a_regression_net(X):
    Y = np.random.default_rng(1).normal(size=(len(X), 3))
    features = GradientFeaturizer(MLP(6, 3, (5,)).double(), scalar="logit", output="dense")
    found = make_pipeline(features, Ridge()).fit(X, Y).predict(X)
    dense = features.fit_transform(X)
    assert_close(found, Ridge().fit(dense, Y).predict(dense), 1e-12)
    assert np.array_equal(features.fit_transform(X, Y[:, 0]), dense)
