"""Displays draw what the importances are."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from cases import BY_NAME
from scipy.stats import spearmanr
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_gradspace import EdgeImportance, EdgeImportanceDisplay


@pytest.fixture(autouse=True)
def _figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def fitted(name, **options):
    case = BY_NAME[name]
    return EdgeImportance(case.net(), **options).fit(case.X, np.arange(5) % 3)


def test_graph_has_the_strongest_edges_of_each_layer():
    found = fitted("mlp of three layers")
    display = EdgeImportanceDisplay.from_estimator(found, kind="graph", n_edges=7)
    edges = [collection for collection in display.ax_.collections if hasattr(collection, "get_segments")]
    assert [len(of_layer.get_segments()) for of_layer in edges] == [7, 7, 7]
    assert [len(dots.get_offsets()) for dots in display.ax_.collections if dots not in edges] == [6, 5, 4, 3]
    # The last edge drawn, on top of all others, is the most important one.
    values = found.importances_["0.weight"]
    to, origin = np.unravel_index(values.argmax(), values.shape)
    segment = edges[0].get_segments()[-1]
    places = [dots.get_offsets() for dots in display.ax_.collections if dots not in edges]
    np.testing.assert_allclose(segment, [places[0][origin], places[1][to]])
    positive = found.module_[0].weight[to, origin] > 0
    color = edges[0].get_colors()[-1]
    assert (color[2] > color[0]) == positive


def test_inputs_that_are_images_are_drawn_as_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 3))
    X = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    found = EdgeImportance(net).fit(X)
    display = EdgeImportanceDisplay.from_estimator(found, kind="graph")
    assert display.ax_.images[0].get_array().shape == (3, 4)
    np.testing.assert_allclose(display.ax_.images[0].get_array().ravel(), found.importances_["1.weight"].sum(0))
    filters = EdgeImportanceDisplay.from_estimator(found, kind="filters", n_filters=5)
    order = np.argsort(-found.unit_importances_["1.weight"])[:5]
    assert [text.get_text() for text in filters.ax_.texts] == [str(unit) for unit in order]


@pytest.mark.parametrize("c_in", [1, 2, 3])
def test_filters_of_a_convolution(c_in):
    net = nn.Sequential(nn.Conv2d(c_in, 9, 3), nn.Flatten(), nn.Linear(36, 3))
    found = EdgeImportance(net).fit(np.random.default_rng(0).normal(size=(4, c_in, 4, 4)))
    display = EdgeImportanceDisplay.from_estimator(found, kind="filters", layer="0")
    assert len(display.ax_.texts) == 9
    picture = display.ax_.images[0].get_array()
    assert picture.min() >= 0 and picture.max() <= 1


def test_layers_are_bars_of_shares():
    found = fitted("mlp of three layers")
    display = EdgeImportanceDisplay.from_estimator(found)
    shares = [bar.get_width() for bar in display.ax_.patches[:3]]
    total = sum(found.layer_importances_.values())
    np.testing.assert_allclose(shares, [value / total for value in found.layer_importances_.values()])


def test_agreement_is_a_scatter_plot_of_two_scores():
    found, other = fitted("mlp of three layers"), fitted("mlp of three layers", criterion="magnitude")
    display = EdgeImportanceDisplay.from_estimator(found, kind="agreement", other=other)
    assert [len(dots.get_offsets()) for dots in display.ax_.collections] == [30, 20, 12]
    assert f"{found.rank_correlation(other):.2f}" in display.ax_.get_title()
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("sensitivity", "magnitude")


def test_axes_are_those_given_and_classes_can_be_drawn():
    found = fitted("mlp of three layers", per_class=True)
    figure, ax = plt.subplots()
    display = EdgeImportanceDisplay.from_estimator(found, kind="graph", label=1, ax=ax)
    assert display.ax_ is ax and display.figure_ is figure
    np.testing.assert_array_equal(display.importances["0.weight"], found.class_importances_["0.weight"][1])
    assert display.plot().ax_ is not ax


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, X):
        hidden = torch.relu(self.enter(X))
        return self.leave(hidden + torch.relu(self.inner(hidden)))


class Tied(Residual):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(5, 5)
        self.again.weight = self.inner.weight

    def forward(self, X):
        return self.leave(self.again(torch.relu(self.inner(torch.relu(self.enter(X))))))


def half_frozen():
    net = BY_NAME["mlp of three layers"].net().float()
    net[0].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (Residual, (6,), "something leads past 'inner.weight'"),
        (Tied, (6,), "'again.weight' is no linear layer's, is shared, or was left out"),
        (half_frozen, (6,), "'0.weight' is no linear layer's, is shared, or was left out"),
        (lambda: nn.Sequential(nn.Conv1d(2, 2, 2), nn.Flatten(), nn.Linear(4, 3)), (2, 3), "'0.weight' is no linear"),
        (lambda: nn.Sequential(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(6, 3)), (2, 6), "not take the 12 features"),
    ],
)
def test_nets_that_are_no_chains_are_refused(make, shape, message):
    torch.manual_seed(0)
    net, X = make(), np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        EdgeImportanceDisplay.from_estimator(EdgeImportance(net).fit(X), kind="graph")


def test_outputs_are_called_by_their_classes():
    case = BY_NAME["mlp of three layers"]
    names = ["ant", "bee", "cow"]
    found = EdgeImportance(case.net(), classes=names).fit(case.X, [*names, "ant", "bee"])
    display = EdgeImportanceDisplay.from_estimator(found, kind="graph")
    assert [text.get_text() for text in display.ax_.texts] == names


def test_agreement_is_that_of_what_is_drawn():
    found, other = fitted("mlp of three layers", per_class=True), fitted("mlp of three layers", criterion="magnitude")
    by_class = fitted("mlp of three layers", criterion="fisher", per_class=True)
    names = {"name": "one", "other_name": "two"}
    for of, values in ((other, other.importances_), (by_class, by_class.importances_of(1))):
        display = EdgeImportanceDisplay.from_estimator(found, kind="agreement", label=1, other=of, **names)
        a, b = (np.concatenate([v.ravel() for v in d.values()]) for d in (found.importances_of(1), values))
        assert display.ax_.get_title() == f"rank correlation {spearmanr(a, b).statistic:.2f}"
        assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("one", "two")


def test_classes_without_rows_and_unfitted_estimators():
    case = BY_NAME["mlp of three layers"]
    found = EdgeImportance(case.net(), per_class=True).fit(case.X, np.arange(5) % 2)
    with pytest.raises(ValueError, match="label=2 has no rows"):
        EdgeImportanceDisplay.from_estimator(found, label=2)
    with pytest.raises(NotFittedError):
        EdgeImportanceDisplay.from_estimator(found, kind="agreement", other=EdgeImportance(case.net()))
    with pytest.raises(NotFittedError):
        found.rank_correlation(EdgeImportance(case.net()))
    with pytest.raises(TypeError, match="not of a int"):
        found.rank_correlation(3)
