"""
A pipeline on digits
====================

The first thing to try: a small convolutional net that saw some of the digits and was stopped early; a pipeline of its
gradients and GradNet, fitted to others; and, beside them, the exact separator and what does without gradients.
"""

# sphinx_gallery_thumbnail_number = 3
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradientKernelClassifier, GradNetClassifier, HistoryDisplay

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32).reshape(-1, 1, 8, 8)
X_net, X_rest, y_net, y_rest = train_test_split(X, y, train_size=500, stratify=y, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X_rest, y_rest, stratify=y_rest, random_state=0)

fig, axes = plt.subplots(1, 8, figsize=(8, 1.3), layout="constrained")
for ax, image, label in zip(axes, X_train, y_train):
    ax.imshow(image[0], cmap="gray_r")
    ax.set_title(label, fontsize=10)
    ax.axis("off")

# %%
# The net
# -------
#
# It returns logits, so its criterion is ``CrossEntropyLoss``.

torch.manual_seed(0)
module = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
net = NeuralNetClassifier(
    module,
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=0.01,
    batch_size=64,
    max_epochs=4,
    train_split=None,
    verbose=0,
).fit(X_net, y_net)
print(f"base net: {net.score(X_test, y_test):.3f}")

# %%
# The pipeline
# ------------
#
# The net is a parameter of :class:`~sklearn_gradspace.GradientFeaturizer`. Gradients are kept whole here, and divided
# by one number a layer; GradNet begins at the net's own predictions, and holds out rows to know when to stop.

model = make_pipeline(
    GradientFeaturizer(net, percentile=100, scale="layer", power=None),
    GradNetClassifier(
        views="all", base_logits=True, activation="square", early_stopping=True, max_epochs=15, random_state=0
    ),
)
model.fit(X_train, y_train)
print(f"GradNet on gradients: {model.score(X_test, y_test):.3f}")
model

# %%
# What the features are: a lazy array, ten labels' gradients in blocks of layers, computed when they are asked for.

features = model[0].transform(X_test)
print(features)
for block in features.blocks:
    print(f"{block.name:10} {block.shape}")
print(model[0].engine_report_)

# %%
# The losses of the fit:

HistoryDisplay.from_estimator(model)

# %%
# Beside others
# -------------
#
# Two things do without gradients: a new last layer, on the activations that enter the old one, and a linear model of
# the pixels.

with torch.no_grad():
    activations = [net.module_[:-1](torch.from_numpy(part)).numpy() for part in (X_train, X_test)]
last_layer = LogisticRegression(C=10, max_iter=1000).fit(activations[0], y_train)
pixels = LogisticRegression(C=10, max_iter=1000).fit(X_train.reshape(-1, 64), y_train)
kernel = GradientKernelClassifier(net).fit(X_train, y_train)
accuracies = {
    "base net": net.score(X_test, y_test),
    "pixels, linear": pixels.score(X_test.reshape(-1, 64), y_test),
    "last layer retrained": last_layer.score(activations[1], y_test),
    "GradNet on gradients": model.score(X_test, y_test),
    "exact separator on gradients": kernel.score(X_test, y_test),
}
error = np.sqrt([p * (1 - p) / len(y_test) for p in accuracies.values()])
_, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
ax.barh(list(accuracies), accuracies.values(), xerr=error, color=["0.7", "0.7", "0.7", "C0", "C0"])
ax.invert_yaxis()
ax.set(xlim=(0.8, 1), xlabel="test accuracy, with standard errors")
for name, accuracy in accuracies.items():
    print(f"{name:30} {accuracy:.3f}")

# %%
# Which digits are mistaken for which, by the net and by the exact separator on its gradients:

fig, axes = plt.subplots(1, 2, figsize=(8.5, 4), layout="constrained")
for ax, (name, predictor) in zip(axes, {"base net": net, "exact separator": kernel}.items()):
    ConfusionMatrixDisplay.from_estimator(predictor, X_test, y_test, ax=ax, cmap="Blues", colorbar=False)
    ax.set_title(name)

# %%
# This is one split. ``python -m sklearn_gradspace`` makes such a comparison over several, with fine-tuning beside it.
