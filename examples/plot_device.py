"""
On a GPU
========

With ``device="cuda"`` the featurizer's copy of the net, its gradients and GradNet are on a GPU; data stay NumPy arrays
and scikit-learn sees no difference. This example looks whether there is one, and else does the same on the CPU.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_gradspace import ECOptClassifier, GradientFeaturizer, GradNetClassifier
from sklearn_gradspace.gradients import GradientEngine

device = "cuda" if torch.cuda.is_available() else "cpu"
print(f"computing on {torch.cuda.get_device_name() if device == 'cuda' else 'the CPU: there is no GPU here'}")

X, y = make_classification(3000, 40, n_informative=15, n_classes=4, random_state=0)
X = X.astype(np.float32)
X_net, X_rest, y_net, y_rest = train_test_split(X, y, train_size=0.3, stratify=y, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X_rest, y_rest, train_size=0.5, stratify=y_rest, random_state=0)

# %%
# One parameter
# -------------
#
# Training a net takes ``device=``, and so do gradients. GradNet trains where its lazy features are computed.

net = ECOptClassifier((64, 64), max_epochs=5, random_state=0, device=device).fit(X_net, y_net)
model = make_pipeline(
    GradientFeaturizer(net, device=device, scale="layer", power=None, percentile=100),
    GradNetClassifier(views="all", max_epochs=10, random_state=0),
).fit(X_train, y_train)
print(f"weights of the net: {next(net.module_.parameters()).device}")
print(f"features: {model[0].transform(X_test)}")
print(f"GradNet: {next(model[-1].module_.parameters()).device}")
print(f"base net {net.score(X_test, y_test):.3f}, GradNet {model.score(X_test, y_test):.3f}")

# %%
# What comes back
# ---------------
#
# Predictions are NumPy arrays. Up to rounding the features are those of the CPU:

rows = X_test[:50]
of_device = GradientFeaturizer(net, device=device, output="dense").fit(X_train).transform(rows)
of_cpu = GradientFeaturizer(net, device="cpu", output="dense", dtype="float64").fit(X_train).transform(rows)
print(type(of_device), of_device.dtype)
same = np.isclose(of_device, of_cpu, atol=1e-3)
print(f"features within 1e-3 of those in double precision on the CPU: {same.mean():.4%}")

# %%
# An entry that differs has most often been at the threshold of the selection.
#
# How many rows at a time
# -----------------------
#
# A pass costs some time however few its rows are, on a GPU more than on a CPU. Gradients of all labels, a second, over
# the rows in a batch; what warms up is not counted.


def gradients_per_second(engine, n, seconds=0.4):
    """Return the rate at which gradients are made in batches of n rows."""
    batch, done = X_train[:n], 0
    for rate_of in ("warm-up", "measured"):
        start = time.perf_counter()
        while time.perf_counter() - start < (0.05 if rate_of == "warm-up" else seconds):
            for _ in engine.parts(batch):
                pass
            if device == "cuda":
                torch.cuda.synchronize()
            done += n * engine.n_labels * (rate_of == "measured")
    return done / (time.perf_counter() - start)


engine = GradientEngine(net.module_, X_train[:2], device=device)
sizes = [1, 4, 16, 64, 256, 1024]
rates = [gradients_per_second(engine, n) for n in sizes]
_, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(sizes, rates, "o-")
ax.set(xscale="log", yscale="log", xlabel="rows in a batch", ylabel="gradients a second")
ax.set_title(f"{engine.n_params:,} weights, on {device}")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()

# %%
# ``batch_size="auto"`` chooses by scikit-learn's ``working_memory``. On CUDA devices ``dtype="tf32"`` and
# ``"bfloat16"`` are faster and inexact; ``rounding_error_`` says how much:

inexact = GradientFeaturizer(net, device=device, dtype="bfloat16").fit(X_train)
print(f"largest error in bfloat16, relative to the largest entry: {inexact.rounding_error_:.1e}")
