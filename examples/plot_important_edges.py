"""
Important edges
===============

Which weights of a net matter? This example trains a small net on digits, reads the importance of its weights off the
gradients of single images, draws it, and asks whether it is worth something: by pruning, by training what is left,
and beside two controls.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier

from sklearn_gradspace import EdgeImportance, EdgeImportanceDisplay, finetune, prune
from sklearn_gradspace.modules import MLP

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32).reshape(-1, 8, 8)
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=0.6, stratify=y, random_state=0)


def train(seed, max_epochs=15):
    """Return a net with two hidden layers."""
    torch.manual_seed(seed)
    return NeuralNetClassifier(
        MLP(64, 10, hidden_layer_sizes=(64, 32)),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=max_epochs,
        batch_size=64,
        train_split=None,
        verbose=0,
    ).fit(X_train, y_train)


def accuracy(net):
    """Return the accuracy of a module on the test images."""
    with torch.no_grad():
        return (net(torch.from_numpy(X_test)).argmax(1).numpy() == y_test).mean()


# %%
# The importance of a weight w is here the mean of :math:`|w\,g|` over images, with the derivative g of an image's loss:
# by how much the loss would change, to first order, without the weight.

net = train(0)
importance = EdgeImportance(net, per_class=True).fit(X_train, y_train)
print(importance.to_frame().head(5))

# %%
# The net as a graph: the inputs as an image, dark where a pixel matters, then the units of each layer, and between them
# the edges that matter most.

EdgeImportanceDisplay.from_estimator(importance, kind="graph", n_edges=120)

# %%
# The same for the images of a three alone. Other pixels and other edges matter.

display = EdgeImportanceDisplay.from_estimator(importance, kind="graph", label=3, n_edges=120)
display.ax_.set_title("What matters for images of a three", fontsize=10)

# %%
# The weights that enter the units of the first layer, as images, the most important units first; and how much of the
# importance is in which layer.

EdgeImportanceDisplay.from_estimator(importance, kind="filters", n_filters=16)
EdgeImportanceDisplay.from_estimator(importance, kind="layers")

# %%
# The ranking hardly depends on which images it is taken from: ``stability_`` is the rank correlation of two halves. It
# is another matter which score one takes. Weights that are large and hardly matter come from pixels that are always
# white.

magnitude = EdgeImportance(net, criterion="magnitude").fit(X_train)
print(f"stability {importance.stability_:.3f}, with the magnitude {importance.rank_correlation(magnitude):.3f}")
EdgeImportanceDisplay.from_estimator(importance, kind="agreement", other=magnitude)

# %%
# What it is worth
# ----------------
#
# Three nets are pruned to some of their weights, by :func:`~sklearn_gradspace.prune`, and what is left is trained for
# two more epochs, by :func:`~sklearn_gradspace.finetune`. A control is the magnitude of a weight; another one is a mask
# that has as many weights of each layer as that of the sensitivity, in random places.

kept = [0.5, 0.2, 0.1, 0.05, 0.02]
scores = ["sensitivity", "sensitivity, shuffled", "fisher", "magnitude"]
found = {(score, tuned): np.empty((3, len(kept))) for score in scores for tuned in (False, True)}


def shuffled(mask, generator):
    """Return a mask with as many entries of each parameter in random places."""
    return {name: m.flatten()[torch.randperm(m.numel(), generator=generator)].view(m.shape) for name, m in mask.items()}


whole = []
for seed in range(3):
    net, generator = train(seed), torch.Generator().manual_seed(seed)
    whole.append(accuracy(net.module_))
    for score in scores:
        importance = EdgeImportance(net, criterion=score.partition(",")[0]).fit(X_train, y_train)
        for i, keep in enumerate(kept):
            mask = importance.mask(keep)
            mask = shuffled(mask, generator) if "shuffled" in score else mask
            pruned = prune(net, mask)
            tuned = finetune(pruned, X_train, y_train, mask, lr=0.01, max_epochs=2, random_state=seed)
            found[score, False][seed, i], found[score, True][seed, i] = accuracy(pruned), accuracy(tuned)

print(f"the whole nets: {np.mean(whole):.3f}\n{'kept':32}" + "".join(f"{keep:>8.0%}" for keep in kept))
for (score, tuned), values in found.items():
    name = score + (", fine-tuned" if tuned else "")
    print(f"{name:32}" + "".join(f"{value:8.3f}" for value in values.mean(0)))

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True, layout="constrained")
for (score, tuned), values in found.items():
    style = {"color": ("C0", "C0", "C2", "C3")[scores.index(score)], "ls": ":" if "shuffled" in score else "-"}
    axes[int(tuned)].errorbar(kept, values.mean(0), values.std(0), marker="o", ms=3, label=score, **style)
for ax, title in zip(axes, ("pruned", "pruned and fine-tuned")):
    ax.axhline(np.mean(whole), color="k", lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="weights kept", title=title)
    ax.set_xticks(kept, [f"{keep:.0%}" for keep in kept])
    ax.minorticks_off()
axes[0].set_ylabel("test accuracy")
axes[0].legend(frameon=False, fontsize=8)

# %%
# For these nets the sensitivity keeps more accuracy than the magnitude and the diagonal of the Fisher information,
# before further training above all. It is not just the sizes of layers: with the places shuffled little is left. With a
# fifth of the weights and two more epochs nothing is lost, whether these were chosen by sensitivity or by magnitude.
# Other nets may well turn it around: of a perceptron that has seen MNIST for three epochs only, the magnitude chooses
# the better weights to keep; see the user guide.

# %%
# On MNIST
# --------
#
# The same picture of a perceptron 784-128-128-10 that was trained on 5,000 images, and its curves, by
# ``benchmarks/edges.py``. Pixels at the margin, which are always white, have no edges that matter.
#
# .. image:: ../../benchmarks/results/edges_mlp_graph.png
#    :alt: The inputs as an image, two layers of 128 units each, ten outputs, and the most important edges between them.
#
# .. image:: ../../benchmarks/results/edges_mlp.png
#    :alt: Accuracy against the share of edges that is kept, a curve for each score, dotted ones for controls.
