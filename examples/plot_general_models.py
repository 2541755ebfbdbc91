"""
General models on gradients
===========================

With ``labels="predicted"`` a row of :class:`~sklearn_gradspace.GradientFeaturizer` is one gradient, that of the label
which the net itself predicts, and ``projection=`` makes it short. Any model of scikit-learn takes it. This example sets
three of them beside the base net, and beside the same models on activations and on pixels.

The net is trained on a third of the digits, the models on another, and all are scored on the last; five times, with
other splits and nets.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from skorch import NeuralNetClassifier

from sklearn_gradspace import GradientFeaturizer
from sklearn_gradspace.modules import MLP

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)

# %%
# Two scalars of the net are differentiated: the loss at the predicted label, which is the default, and the logit of
# that label. Where the net is sure of itself the loss is nearly flat, and its gradient small; that of the logit is not.
#
# Each of the three weight matrices has 32 features. The activations are those that enter the last layer.


def features_of(net):
    """Return the transformers that make the models' features."""

    def activations(X):
        return net.module_.layers[:-1](torch.from_numpy(X)).detach().numpy()

    shared = {"labels": "predicted", "percentile": 100, "projection": 32, "random_state": 0}
    return {
        "gradient of the loss": GradientFeaturizer(net, **shared),
        "gradient of the logit": GradientFeaturizer(net, scalar="logit", **shared),
        "activations": FunctionTransformer(activations),
        "pixels": FunctionTransformer(),
    }


models = {
    "PCA, nearest neighbours": make_pipeline(PCA(20, random_state=0), KNeighborsClassifier()),
    "LinearSVC": make_pipeline(StandardScaler(), LinearSVC(C=0.1)),
    "HistGradientBoosting": HistGradientBoostingClassifier(max_iter=10, max_leaf_nodes=8, max_bins=63, random_state=0),
}

base, accuracies = [], {}
for seed in range(5):
    X_base, X_rest, y_base, y_rest = train_test_split(X, y, train_size=1 / 3, stratify=y, random_state=seed)
    X_train, X_test, y_train, y_test = train_test_split(
        X_rest, y_rest, train_size=0.5, stratify=y_rest, random_state=seed
    )
    torch.manual_seed(seed)
    net = NeuralNetClassifier(
        MLP(64, 10, hidden_layer_sizes=(64, 32)),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=10,
        batch_size=64,
        train_split=None,
        verbose=0,
    ).fit(X_base, y_base)
    base.append(net.score(X_test, y_test))
    for features, transformer in features_of(net).items():
        for name, model in models.items():
            score = make_pipeline(transformer, model).fit(X_train, y_train).score(X_test, y_test)
            accuracies.setdefault((features, name), []).append(score)

# %%
# Accuracies, with the standard deviation over the repetitions:

rows = list(dict.fromkeys(features for features, _ in accuracies))
print(f"{'':24}" + "".join(f"{name:>26}" for name in models))
for features in rows:
    values = [accuracies[features, name] for name in models]
    print(f"{features:24}" + "".join(f"{np.mean(v):>18.3f} ± {np.std(v):.3f}" for v in values))
print(f"base net alone: {np.mean(base):.3f} ± {np.std(base):.3f}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for i, features in enumerate(rows):
    values = np.array([accuracies[features, name] for name in models])  # (n_models, n_repetitions)
    color = ("C0", "C9", "0.5", "0.8")[i]
    ax.bar(np.arange(len(models)) + 0.2 * i, values.mean(1), 0.18, yerr=values.std(1), color=color, label=features)
ax.axhline(np.mean(base), color="k", linestyle="--", label="base net")
ax.set(ylim=(0.8, 1), ylabel="accuracy")
ax.set_xticks(np.arange(len(models)) + 0.3, models)
fig.legend(ncols=5, fontsize=8, loc="outside upper center")

# %%
# Gradients of the loss are worse than all else, the base net included: take those of the logit. They are level with the
# activations for ``LinearSVC``, ahead for boosting and behind for nearest neighbours. The best of all here are nearest
# neighbours of pixels, which need no net.

for name in models:
    gain = np.subtract(accuracies["gradient of the logit", name], accuracies["activations", name])
    print(f"{name}: logit − activations {gain.mean():+.3f} ± {gain.std():.3f}, better in {(gain > 0).sum()} of 5")
