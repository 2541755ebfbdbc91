"""Displays draw what the importances are."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from cases import BY_NAME
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp of three layers", {"kind": "pie"}, "kind='pie' is none of"),
        ("mlp of three layers", {"kind": "filters"}, "kind='filters' needs"),
        ("conv2d", {"kind": "filters", "layer": "9"}, "layer='9'"),
        ("branches", {"kind": "graph"}, "'right.weight' does not take what comes before it"),
        ("mlp of three layers", {"kind": "agreement"}, "needs `other`"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=message):
        EdgeImportanceDisplay.from_estimator(fitted(name), **options)
