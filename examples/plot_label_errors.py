"""
Wrong labels and unknown classes
================================

A trained net is asked which of its new images have a wrong label, and which ones show something that it has never seen.
Its confidence is an answer to both. This example measures whether gradients give a better one.

Everything is repeated five times, with other splits, other nets and other errors; tables and bars show means and
standard deviations.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier

from sklearn_gradspace import GradientKernel, GradientKernelClassifier
from sklearn_gradspace.gradients import FactoredGradients, GradientEngine
from sklearn_gradspace.modules import MLP

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)


def train(X, y, seed):
    """Return a net with two hidden layers, trained for ten epochs."""
    torch.manual_seed(seed)
    return NeuralNetClassifier(
        MLP(X.shape[1], len(np.unique(y)), hidden_layer_sizes=(64, 32)),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=10,
        batch_size=64,
        train_split=None,
        verbose=0,
    ).fit(X, y)


def table(results, *columns):
    """Print the mean and the standard deviation of every contender's measures."""
    print(f"{'':32}" + "".join(f"{column:>20}" for column in columns))
    for name, values in results.items():
        pairs = zip(np.mean(values, axis=0), np.std(values, axis=0))
        print(f"{name:32}" + "".join(f"{mean:>12.3f} ± {std:.3f}" for mean, std in pairs))


def bars(results, column, title):
    """Draw one measure of every contender."""
    values = np.array(list(results.values()))[:, :, column]  # (n_contenders, n_repetitions)
    _, ax = plt.subplots(figsize=(7, 0.4 * len(values) + 0.8), layout="constrained")
    colors = ["C0" if "gradient" in name else "0.7" for name in results]
    ax.barh(list(results), values.mean(1), xerr=values.std(1), color=colors)
    ax.invert_yaxis()
    ax.set(title=title, xlim=(0.5, 1))


def show(images, titles):
    """Draw ten images."""
    _, axes = plt.subplots(2, 5, figsize=(7, 3.6), layout="constrained")
    for ax, image, title in zip(axes.flat, images, titles):
        ax.imshow(image.reshape(8, 8), cmap="gray_r")
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()


# %%
# Wrong labels
# ------------
#
# The net learns from a third of the images. In another third a tenth of the labels are replaced by others at random.
# How suspicious is a label c that was given to an image x?
#
# - *Confidence*: :math:`1 - p_c(x)`, with the probabilities of the net.
# - *Norm of the gradient*: the length of :math:`\nabla_w\,\mathrm{CE}(f_w(x), c)`, by
#   :class:`~sklearn_gradspace.gradients.FactoredGradients`.
# - *Left out*: one minus the score of c that :class:`~sklearn_gradspace.GradientKernelClassifier` predicts for x,
#   fitted to the given labels of all other images. ``loo_decision_function_`` has these scores from a single fit. The
#   classifier corrects the net's probabilities or, with ``base_output=False``, starts anew.
#
# The last one has seen more than the net has: the other images with their labels, a tenth of them wrong. So it is also
# given the last layer's gradients alone, which are the activations that enter it, and the gradients of a linear net,
# which are the pixels.


def suspicions(net, X, given):
    """Return the suspicion of each given label by every contender, and the classifier that starts anew."""
    rows = np.arange(len(X))
    gradients = FactoredGradients(GradientEngine(net.module_, X, layers="weights"), X)
    squared_norms = sum(gradients.squared_norms().values()).numpy()  # (n, n_labels)
    last_layer, pixels = ["layers.5.weight"], torch.nn.Linear(64, 10)
    alphas = (0.03, 0.3, 3.0)
    correction = GradientKernelClassifier(net, alphas=alphas).fit(X, given)
    anew = GradientKernelClassifier(net, alphas=alphas, base_output=False).fit(X, given)
    last = GradientKernelClassifier(net, layers=last_layer, alphas=alphas, base_output=False).fit(X, given)
    pixel = GradientKernelClassifier(pixels, alphas=alphas, base_output=False).fit(X, given)
    return {
        "confidence": 1 - net.predict_proba(X)[rows, given],
        "norm of the gradient": squared_norms[rows, given],
        "left out, gradients, corrected": 1 - correction.loo_decision_function_[rows, given],
        "left out, gradients, anew": 1 - anew.loo_decision_function_[rows, given],
        "left out, last layer, anew": 1 - last.loo_decision_function_[rows, given],
        "left out, pixels, anew": 1 - pixel.loo_decision_function_[rows, given],
    }, anew


results = {}
for seed in range(5):
    X_base, X_rest, y_base, y_rest = train_test_split(X, y, train_size=1 / 3, stratify=y, random_state=seed)
    X_new, _, y_new, _ = train_test_split(X_rest, y_rest, train_size=0.5, stratify=y_rest, random_state=seed)
    net = train(X_base, y_base, seed)

    rng = np.random.default_rng(seed)
    given, wrong = y_new.copy(), rng.choice(len(y_new), len(y_new) // 10, replace=False)
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    is_wrong = given != y_new

    scores, classifier = suspicions(net, X_new, given)
    for name, score in scores.items():
        precision = is_wrong[np.argsort(-score)[: len(wrong)]].mean()
        results.setdefault(name, []).append((average_precision_score(is_wrong, score), precision))

# %%
# Average precision is the area under the curve of precision and recall. The other column is the share of wrong labels
# among as many of the most suspicious ones as there are wrong ones.

table(results, "average precision", f"among the first {len(wrong)}")
bars(results, 0, "Wrong labels: average precision")

# %%
# Neither the norm of the gradient, which grows with the length of the activations as well as with the error, nor the
# corrected net comes up to the confidence. The classifier that starts anew is a little above it on average, by no more
# than about the spread. That is hardly due to the gradients, since the last layer and the pixels do about as well: what
# helps is the labels of the other images.

confidence = np.array(results["confidence"])
for name in ("left out, gradients, anew", "left out, last layer, anew", "left out, pixels, anew"):
    gain = np.array(results[name])[:, 0] - confidence[:, 0]
    print(f"{name} − confidence: {gain.mean():+.3f} ± {gain.std():.3f}, better in {(gain > 0).sum()} of 5")

# %%
# The most suspicious labels of the last repetition, with the one that the classifier proposes:

suspicious = np.argsort(-scores["left out, gradients, anew"])[:10]
proposed = classifier.classes_[classifier.loo_decision_function_.argmax(1)]
show(
    X_new[suspicious],
    [f"given {given[i]}, proposed {proposed[i]}\ntruly {y_new[i]}" for i in suspicious],
)

# %%
# Unknown classes
# ---------------
#
# Now a net learns from half of the images of eight digits. New images are the other half, and all images of the two
# digits that are left out: another pair in every repetition. How unknown is an image?
#
# - *Confidence*: one minus the largest probability.
# - *Energy*: :math:`-\log \sum_c \exp f_c(x)` of the logits f.
# - *Distance*: one minus the mean of the ten largest values of :class:`~sklearn_gradspace.GradientKernel` with images
#   that the net was trained on. Again the last layer alone and the pixels have the same distance for comparison.

results = {}
for seed, left_out in enumerate([(8, 9), (0, 1), (2, 3), (4, 5), (6, 7)]):
    known = ~np.isin(y, left_out)
    codes = np.unique(y[known], return_inverse=True)[1]
    X_train, X_test, y_train, _ = train_test_split(X[known], codes, train_size=0.5, stratify=codes, random_state=seed)
    X_new = np.concatenate([X_test, X[~known]])
    is_unknown = np.arange(len(X_new)) >= len(X_test)
    net = train(X_train, y_train, seed)
    logits = net.forward(X_new).numpy()

    kernels = {
        "distance, gradients": GradientKernel(net),
        "distance, last layer": GradientKernel(net, layers=["layers.5.weight"]),
        "distance, pixels": GradientKernel(torch.nn.Linear(64, 8)),
    }
    scores = {"confidence": 1 - softmax(logits, axis=1).max(1), "energy": -logsumexp(logits, axis=1)}
    for name, kernel in kernels.items():
        nearest = np.sort(kernel.fit(X_train).transform(X_new), axis=1)[:, -10:]
        scores[name] = 1 - nearest.mean(1)
    for name, score in scores.items():
        results.setdefault(name, []).append((roc_auc_score(is_unknown, score),))

# %%
# The area under the ROC curve is the probability that an image of an unknown digit gets a higher score than one of a
# known digit.

table(results, "AUROC")
bars(results, 0, "Unknown classes: area under the ROC curve")

# %%
# The distance in gradient space sees unknown digits better than the confidence, the energy and the activations that
# enter the last layer do. Yet the distance of pixels, which needs no net, is no worse, on average even better. Digits
# are centred and of one size; for other images, run the comparison again.

aurocs = {name: np.array(values)[:, 0] for name, values in results.items()}
for name in ("confidence", "energy", "distance, last layer", "distance, pixels"):
    gain = aurocs["distance, gradients"] - aurocs[name]
    print(f"distance, gradients − {name}: {gain.mean():+.3f} ± {gain.std():.3f}, better in {(gain > 0).sum()} of 5")

# %%
# Of the last repetition's unknown images, these five are the most unknown in gradient space, and these five the least:

order = np.argsort(-scores["distance, gradients"])
order = order[is_unknown[order]]
truth = np.concatenate([np.full(len(X_test), -1), y[~known]])
predicted = np.unique(y[known])[logits.argmax(1)]
chosen = [*order[:5], *order[-5:]]
show(X_new[chosen], [f"a {truth[i]}, the net says {predicted[i]}" for i in chosen])
