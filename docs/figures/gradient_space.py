"""From a sample to GradNet: an image, its gradients for all labels in blocks of layers, and hidden units of blocks."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, Rectangle
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier

from sklearn_gradspace import GradientFeaturizer
from sklearn_gradspace.modules import MLP

torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
net = NeuralNetClassifier(
    MLP(64, 10, hidden_layer_sizes=(12, 12)),
    criterion=torch.nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=0.01,
    max_epochs=4,
    batch_size=64,
    train_split=None,
    verbose=0,
).fit(X[:900], y[:900])
row = 1000
features = GradientFeaturizer(net, percentile=100, scale="layer").fit(X[900:]).transform(X[row : row + 1])
views = features.toarray().reshape(features.n_labels, -1)  # (n_labels, n_params)

layers = ["C0", "C1", "C2"]
fig = plt.figure(figsize=(9, 3.9))
ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 90), ylim=(0, 39))
ax.axis("off")


def arrow(start, end, **options):
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="0.35", **options))


def dots(x, y, color, n):
    ax.plot(np.full(n, x), y, "o", ms=8, color=color, mec="k", mew=0.6, zorder=3)


# The sample and the net.
ax.imshow(X[row].reshape(8, 8), extent=(2, 11, 19, 28), cmap="gray_r", aspect="auto", zorder=2)
ax.add_patch(Rectangle((2, 19), 9, 9, fill=False, lw=0.6))
ax.text(6.5, 29.2, "a sample $x$", ha="center", fontsize=10)
for i, color in enumerate(layers):
    ax.add_patch(Rectangle((15.5 + 2.6 * i, 18.5), 1.8, 10, fc=color, ec="k", lw=0.6))
ax.text(19, 29.2, "trained net", ha="center", fontsize=10)
ax.text(19, 16.2, "$f_w(x)$", ha="center", fontsize=10)
arrow((11.3, 23.5), (15.2, 23.5))
arrow((23.2, 23.5), (32.6, 23.5))
ax.text(27.6, 24.6, "$\\nabla_w\\,\\mathrm{CE}(f_w(x), c)$", ha="center", fontsize=9)

# One gradient a candidate label; entries are shown in groups of some columns, by their largest magnitude.
left, width, height = 35.0, 20.0, 2.5
sizes = np.array([block.size for block in features.blocks])
shown = np.array([10.0, 7.0, 6.0])  # widths of the blocks in the picture
shown *= width / shown.sum()
for label, view in enumerate(views):
    bottom, at, start = 32.5 - label * height, left, 0
    for color, size, extent in zip(layers, sizes, shown):
        parts = np.array_split(np.abs(view[start : start + size]), int(extent * 3))
        strip = np.array([part.max() for part in parts])[None]
        cmap = plt.matplotlib.colors.LinearSegmentedColormap.from_list("", ["white", color])
        ax.imshow(
            strip / strip.max(), extent=(at, at + extent, bottom, bottom + 2), cmap=cmap, aspect="auto", vmin=0, vmax=1
        )
        ax.add_patch(Rectangle((at, bottom), extent, 2, fill=False, ec=color, lw=0.9))
        at, start = at + extent, start + size
    ax.text(left - 0.5, bottom + 1, f"{label}", ha="right", va="center", fontsize=8)
ax.text(left - 0.9, 35.6, "$c$", ha="right", fontsize=10)
centres = left + np.cumsum(shown) - shown / 2
for i, (centre, color) in enumerate(zip(centres, layers)):
    ax.text(centre, 35.6, f"layer {i + 1}", ha="center", color=color, fontsize=9)
ax.text(left + width / 2, 5.2, "gradient space: $K$ views of a row,\nin blocks of layers", ha="center", fontsize=10)
ax.text(left + width / 2, 2.6, "select  ·  scale  ·  power", ha="center", fontsize=9, style="italic", color="0.3")

# GradNet: the hidden units of a block see one layer's gradient alone.
bottom = 32.5 - 3 * height
ax.add_patch(Rectangle((left - 0.4, bottom - 0.25), width + 0.8, 2.5, fill=False, ec="k", lw=1.3, zorder=4))
arrow((left + width + 0.5, bottom + 1), (59.8, bottom + 1))
ax.text(57.8, bottom + 1.7, "a view", ha="center", fontsize=9)
hidden = [np.array([33.2, 30.6, 28.0]), np.array([24.0, 21.4, 18.8]), np.array([14.8, 12.2, 9.6])]
inputs = [30.6, 21.4, 12.2]
outputs = np.linspace(13.5, 29.5, 5)
for heights, centre, color in zip(hidden, inputs, layers):
    ax.add_patch(Rectangle((60.2, centre - 3.4), 1.8, 6.8, fc=color, alpha=0.45, ec=color))
    for to in heights:
        for origin in centre + np.linspace(-2.8, 2.8, 5):
            ax.plot([62, 71], [origin, to], color=color, lw=0.5, alpha=0.7)
        for out in outputs:
            ax.plot([71, 81], [to, out], color="0.7", lw=0.4, zorder=1)
    dots(71, heights, color, 3)
dots(81, outputs, "white", 5)
ax.text(61, 35.6, "blocks", ha="center", fontsize=9)
ax.text(71, 35.6, "hidden units", ha="center", fontsize=9)
ax.text(81, 32, "classes", ha="center", fontsize=9)
ax.text(72, 5.2, "GradNet: the mean of its outputs\nover all $K$ views", ha="center", fontsize=10)
