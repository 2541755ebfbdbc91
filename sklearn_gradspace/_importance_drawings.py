"""Drawings of importances on matplotlib's axes: a net as a graph, filters, layers, one score beside another.

An `EdgeImportanceDisplay` and axes enter; what was drawn stands on the axes.
"""

from math import ceil, prod
from numbers import Integral

import numpy as np
from sklearn.utils import check_scalar

from ._importance_checks import rank_correlation
from ._units import linear_chain

_POSITIVE, _NEGATIVE, _UNIT = "#2166ac", "#b2182b", "#333333"
_FEW_UNITS = 20  # that are labelled one by one
_DOTS = 4000  # of a scatter plot


def draw_graph(display, ax, n_edges: int = 150) -> None:
    """Draw the strongest edges between consecutive layers of units, blue where the weight is positive, red where not.

    Width and opacity grow with the square of the importance as a share of the largest between the same two layers.
    """
    check_scalar(n_edges, "n_edges", Integral, min_val=1)
    names = linear_chain(display.net, display.importances, display.sample_shape)
    importances = [display.importances[name] for name in names]
    sizes = [importances[0].shape[1], *(values.shape[0] for values in importances)]
    entering = [importances[0].sum(0), *(values.sum(1) for values in importances)]
    image = display.image_shape if display.image_shape and prod(display.image_shape) == sizes[0] else None
    places = _places(sizes, importances, image)
    for left, right, name, values in zip(places, places[1:], names, importances):
        _draw_edges(ax, left, right, values, display.weights[name], n_edges)
    if image:
        (x0, y0), (x1, y1) = places[0].min(0), places[0].max(0)
        half = (x1 - x0) / max(image[1] - 1, 1) / 2, (y1 - y0) / max(image[0] - 1, 1) / 2
        extent = (x0 - half[0], x1 + half[0], y0 - half[1], y1 + half[1])
        ax.imshow(entering[0].reshape(image), cmap="Greys", extent=extent, aspect="auto", zorder=1)
    for place, size in list(zip(places, entering))[1 if image else 0 :]:
        largest = min(80.0, 2500.0 / len(place))
        ax.scatter(*place.T, s=2 + largest * _shares(size), color=_UNIT, linewidths=0, zorder=3)
    if sizes[-1] <= _FEW_UNITS:
        known = display.classes is not None and len(display.classes) == sizes[-1]
        for label, place in zip(display.classes if known else range(sizes[-1]), places[-1]):
            ax.annotate(str(label), place, (8, 0), textcoords="offset points", va="center", fontsize=9)
    labels = ["inputs", *(f"{name.rpartition('.')[0] or name}\n{size} units" for name, size in zip(names, sizes[1:]))]
    centres = [place[:, 0].mean() for place in places]
    ax.set_xticks(centres, labels)
    ax.tick_params(bottom=False)
    ax.set(yticks=[], xlim=(places[0][:, 0].min() - 0.12, centres[-1] + 0.15), ylim=(-0.06, 1.06), aspect="auto")
    ax.spines[:].set_visible(False)
    ax.set_title(f"{n_edges} most important edges of each layer\nblue: positive, red: negative", fontsize=10)


def _draw_edges(ax, left: np.ndarray, right: np.ndarray, values: np.ndarray, weights: np.ndarray, n_edges: int) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    strongest = np.argsort(-values, axis=None, kind="stable")[:n_edges][::-1]
    to, origin = np.unravel_index(strongest, values.shape)
    shares = _shares(values)[to, origin] ** 2  # so that the few that stand out do so
    signs = weights[to, origin] >= 0
    colors = [(*to_rgb(_POSITIVE if positive else _NEGATIVE), 0.2 + 0.7 * s) for positive, s in zip(signs, shares)]
    lines = np.stack([left[origin], right[to]], 1)  # (n_edges, 2, 2)
    ax.add_collection(LineCollection(lines, linewidths=0.3 + 2 * shares, colors=colors, zorder=2))  # type: ignore[arg-type]


def _shares(values: np.ndarray) -> np.ndarray:
    """Return importances as shares of the largest one."""
    return values / max(values.max(), np.finfo(float).tiny)


def _places(sizes: list[int], importances: list[np.ndarray], image: tuple[int, int] | None) -> list[np.ndarray]:
    """Return the places of the units of each layer, of shape (n_units, 2).

    Outputs are in order, and so are inputs; units between stand as high as, on average, those that they lead to.
    """
    first = _on_grid(image) if image else _in_column(0, sizes[0])
    places = [_in_column(len(sizes) - 1 + 0.4 * bool(image), sizes[-1])]
    for i in range(len(sizes) - 2, 0, -1):
        strengths = importances[i] ** 2  # (n_after, n_units)
        heights = places[0][:, 1] @ strengths / np.maximum(strengths.sum(0), np.finfo(float).tiny)
        column = np.empty((sizes[i], 2))
        column[np.argsort(-heights, kind="stable")] = _in_column(i + 0.4 * bool(image), sizes[i])
        places.insert(0, column)
    return [first, *places]


def _in_column(x: float, n: int) -> np.ndarray:
    """Return n places in a column, of shape (n, 2), the first on top."""
    y = np.linspace(1, 0, n) if n > 1 else np.array([0.5])
    margin = 0.3 / n if n < _FEW_UNITS else 0
    return np.stack([np.full(n, x), margin + (1 - 2 * margin) * y], 1)


def _on_grid(shape: tuple[int, int]) -> np.ndarray:
    """Return the places of an image's pixels, of shape (n_pixels, 2)."""
    y, x = np.meshgrid(np.linspace(0.78, 0.22, shape[0]), np.linspace(-0.6, 0.6, shape[1]), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def draw_filters(display, ax, layer: str | None = None, n_filters: int = 32) -> None:
    """Draw the filters of a layer as images, the most important first.

    Those of three channels are in colour, others the mean over channels, blue where it is positive and red where not.
    """
    check_scalar(n_filters, "n_filters", Integral, min_val=1)
    name, filters = _filters(display, layer)
    order = np.argsort(-display.importances[name].reshape(len(filters), -1).sum(1), kind="stable")[:n_filters]
    in_colour = filters.shape[1] == 3
    n_columns = min(len(order), max(4, ceil(np.sqrt(2 * len(order)))))
    n_rows, (height, width) = ceil(len(order) / n_columns), filters.shape[2:]
    gap, label = max(1, width // 8), max(1, ceil(height / 3))
    tile = height + gap + label, width + gap
    canvas = np.full((n_rows * tile[0], n_columns * tile[1] - gap, 3), 1.0)
    for rank, unit in enumerate(order):
        top, left = label + rank // n_columns * tile[0], rank % n_columns * tile[1]
        canvas[top : top + height, left : left + width] = _picture(filters[unit], in_colour)
        ax.text(left + width / 2 - 0.5, top - 0.6, str(unit), ha="center", va="bottom", fontsize=8)
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(f"{name}: {len(order)} of {len(filters)} units, the most important first", fontsize=10)


def _filters(display, layer: str | None) -> tuple[str, np.ndarray]:
    """Return the name of a parameter, and its entries as images of shape (n_units, channels, height, width)."""
    image = display.image_shape
    for name, weight in display.weights.items():
        if layer not in (None, name, name.rpartition(".")[0]):
            continue
        if weight.ndim == 4:
            return name, weight
        if weight.ndim == 2 and image and weight.shape[1] == prod(image):
            return name, weight.reshape(len(weight), 1, *image)
    what = "there is none" if layer is None else f"layer={layer!r} is none"
    raise ValueError(
        f"kind='filters' needs a convolution of two axes, or a linear layer on images of `image_shape`; {what}. "
        f"Parameters are {', '.join(display.weights)}."
    )


def _picture(weight: np.ndarray, in_colour: bool) -> np.ndarray:
    """Return an image of shape (height, width, 3) with numbers from 0 to 1."""
    largest = np.abs(weight if in_colour else weight.mean(0)).max() or 1.0
    if in_colour:
        return (weight / largest / 2 + 0.5).transpose(1, 2, 0)
    from matplotlib import colormaps

    return colormaps["RdBu"](weight.mean(0) / largest / 2 + 0.5)[..., :3]


def draw_layers(display, ax) -> None:
    """Draw each parameter's share of the importance as a bar, beside its share of the entries."""
    names = list(display.importances)
    totals = np.array([display.importances[name].sum() for name in names])
    sizes = np.array([display.importances[name].size for name in names])
    places = np.arange(len(names))
    ax.barh(places - 0.2, totals / max(totals.sum(), np.finfo(float).tiny), 0.4, color=_POSITIVE, label="of importance")
    ax.barh(places + 0.2, sizes / sizes.sum(), 0.4, color="0.75", label="of entries")
    ax.set_yticks(places, [f"{name} {tuple(display.importances[name].shape)}" for name in names])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("share")
    ax.legend(frameon=False)


def draw_agreement(display, ax) -> None:
    """Draw each entry's importance by two scores as a dot, on logarithmic axes, and the rank correlation."""
    if display.other is None:
        raise ValueError("kind='agreement' needs `other`, importances by another score or of another net.")
    correlation = rank_correlation(display.importances, display.other)
    names, total = list(display.importances), sum(values.size for values in display.importances.values())
    rng, low = np.random.default_rng(0), np.full(2, np.inf)
    for i, name in enumerate(names):
        pairs = np.stack([display.importances[name].ravel(), np.ravel(display.other[name])])
        shown = ceil(_DOTS * pairs.shape[1] / total)
        if pairs.shape[1] > shown:
            pairs = pairs[:, rng.choice(pairs.shape[1], max(shown, min(300, pairs.shape[1])), replace=False)]
        pairs = pairs[:, (pairs > 0).all(0)]
        low = np.minimum(low, np.quantile(pairs, 0.02, axis=1)) if pairs.size else low
        ax.scatter(*pairs, s=5, alpha=0.35, color=f"C{i}", linewidths=0, label=name, rasterized=True)
    ax.set(xscale="log", yscale="log", xlabel=display.name or "importance", ylabel=display.other_name or "other")
    if np.isfinite(low).all():  # a few entries are next to nothing
        ax.set(xlim=(low[0] / 2, None), ylim=(low[1] / 2, None))
    ax.set_title(f"rank correlation {correlation:.2f}", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    legend = ax.legend(frameon=False, markerscale=3, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


DRAWINGS = {"graph": draw_graph, "filters": draw_filters, "layers": draw_layers, "agreement": draw_agreement}
