"""
Grid search over gradients
==========================

Everything about gradient features and GradNet is a parameter of a pipeline, so scikit-learn's searches and displays
work on it. This example searches the percentile of gradients that are kept and the penalty, and draws how accuracy
depends on them and on the number of rows.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import (
    GridSearchCV,
    LearningCurveDisplay,
    StratifiedKFold,
    ValidationCurveDisplay,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from skorch import NeuralNetClassifier

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
from sklearn_gradspace.modules import MLP

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_net, X_rest, y_net, y_rest = train_test_split(X, y, train_size=500, stratify=y, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X_rest, y_rest, train_size=450, stratify=y_rest, random_state=0)

torch.manual_seed(0)
net = NeuralNetClassifier(
    MLP(64, 10, hidden_layer_sizes=(16,)),
    criterion=torch.nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=0.01,
    max_epochs=6,
    batch_size=64,
    train_split=None,
    verbose=0,
).fit(X_net, y_net)
print(f"base net: {net.score(X_test, y_test):.3f}")

# %%
# The search
# ----------
#
# The net is trained already, on other rows, so it is shared by all fits: cloning a pipeline neither copies nor resets
# it. GradNet begins at the net's own predictions.

model = make_pipeline(
    GradientFeaturizer(net, scale="rms", power=None),
    GradNetClassifier(hidden_sizes=16, base_logits=True, max_epochs=8, batch_size=64, random_state=0),
)
grid = {
    "gradientfeaturizer__percentile": [5, 20, 100],
    "gradnetclassifier__regularization": [0, 1e-3, 1e-2],
}
folds = StratifiedKFold(3, shuffle=True, random_state=0)
search = GridSearchCV(model, grid, cv=folds).fit(X_train, y_train)
print(search.best_params_)
print(f"cross-validation {search.best_score_:.3f}, test {search.score(X_test, y_test):.3f}")

# %%
# Mean accuracy over the folds, with its standard deviation:

percentiles, penalties = grid.values()
mean, std = (search.cv_results_[f"{of}_test_score"].reshape(len(percentiles), -1) for of in ("mean", "std"))
fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
image = ax.imshow(mean, cmap="viridis")
for i, j in np.ndindex(mean.shape):
    color = "white" if mean[i, j] < (mean.min() + mean.max()) / 2 else "black"
    ax.text(j, i, f"{mean[i, j]:.3f}\n± {std[i, j]:.3f}", ha="center", va="center", color=color, fontsize=9)
ax.set_xticks(range(len(penalties)), penalties)
ax.set_yticks(range(len(percentiles)), percentiles)
ax.set(xlabel="regularization", ylabel="percentile of entries kept")
fig.colorbar(image, label="accuracy")

# %%
# Displays
# --------
#
# The same by scikit-learn's displays: accuracy over one parameter, on training and validation rows, and over the number
# of rows. The dotted line is the base net on the test rows.

fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
best = search.best_estimator_
name = "gradnetclassifier__hidden_sizes"
ValidationCurveDisplay.from_estimator(
    best, X_train, y_train, param_name=name, param_range=[1, 8, 64], cv=folds, ax=axes[0]
)
axes[0].set(xscale="log", xlabel="hidden units a layer", ylabel="accuracy")
LearningCurveDisplay.from_estimator(best, X_train, y_train, train_sizes=[75, 150, 300], cv=folds, ax=axes[1])
axes[1].set(xlabel="rows", ylabel="")
for ax in axes:
    ax.axhline(net.score(X_test, y_test), color="0.5", linestyle=":")
    ax.legend(loc="lower right")

# %%
# Of 450 rows the folds are small, and neighbours in the table differ by less than folds do: a few percent of the
# entries are too few, and the rest is a matter of taste. The choice of the percentile is one of features, that of the
# penalty one of the classifier. With
# ``Pipeline(memory=...)`` scikit-learn would fit the featurizer once for all penalties; for a net this small it hardly
# matters, since ``fit`` computes statistics alone.
