"""
Nets of ten million weights
===========================

All gradients of a net of ten million weights, for ten labels, take 400 MB for a single image. But the gradient of a
linear layer is an outer product, :math:`\\delta a^\\top`, and what is wanted of it often needs no more than its two
factors. This example computes norms, kernels and projections of such gradients, looks at the memory, and then turns to
a ResNet-18.
"""

import sys
import threading
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from sklearn_gradspace import GradientFeaturizer, GradientKernel
from sklearn_gradspace.gradients import FactoredGradients, GradientEngine
from sklearn_gradspace.modules import MLP

torch.manual_seed(0)
net = MLP(784, 10, hidden_layer_sizes=(2560, 2560, 512)).eval()
X = np.random.default_rng(0).normal(size=(32, 784)).astype(np.float32)
engine = GradientEngine(net, X[:2], layers="weights")
print(f"{engine.n_params:,} weights; a row's gradients for {engine.n_labels} labels: ", end="")
print(f"{engine.n_params * engine.n_labels * 4 / 1e6:.0f} MB")
print(engine.rules)


# %%
# Memory is read off while it runs, by a thread that looks at the size of this process; where the system does not tell
# that, it is not shown.


def resident():
    """Return the bytes that this process holds in memory, or NaN."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return np.nan


def with_memory(function):
    """Return what `function` returns, and by how many MB the process has grown meanwhile, at most."""
    done, start, peak = threading.Event(), resident(), [0]

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        returned = function()
    finally:
        peak[0] = max(peak[0], resident() - start)
        done.set()
        watcher.join()
    return returned, peak[0] / 1e6


# %%
# Norms and products without gradients
# ------------------------------------
#
# :class:`~sklearn_gradspace.gradients.FactoredGradients` holds one pass through the net. Here are the norms of the
# gradients of 32 rows for ten labels, that would take 13 GB; and all inner products between the gradients of eight
# rows.

used = {}
norms, used["norms, 32 rows × 10 labels"] = with_memory(lambda: FactoredGradients(engine, X).squared_norms())
for name, of_parameter in norms.items():
    print(f"{name:16} {tuple(of_parameter.shape)}, mean norm {of_parameter.sqrt().mean():.2e}")


def products():
    factored = FactoredGradients(engine, X[:8])
    return sum(factored.inner(factored).values())


inner, used["products, (8 × 10)²"] = with_memory(products)
assert torch.allclose(inner.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1), sum(norms.values())[:8], rtol=1e-4)

# %%
# The exact separator's kernel is made of them. Most of the memory that it takes here, and that the features below take,
# is that of a moment in which ``fit`` looks at two rows in double precision: 16 bytes for each weight, and 64 for each
# of the largest layer.

kernel, used["kernel of 32 rows"] = with_memory(lambda: GradientKernel(net).fit(X).transform(X))

# %%
# Features of a large net
# -----------------------
#
# A classifier that needs features gets them from a projection: 1,000 numbers a label for the ten million. Whole
# gradients exist for a few rows at a time.

featurizer = GradientFeaturizer(net, projection=250, percentile=100, scale=None, power=None, random_state=0)
short, used["projected, 8 rows"] = with_memory(lambda: featurizer.fit_transform(X[:8]).toarray())
print(f"projected features: {short.shape}")

formed = {"norms, 32 rows × 10 labels": 32, "products, (8 × 10)²": 8, "kernel of 32 rows": 32, "projected, 8 rows": 8}
fig, ax = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
places = np.arange(len(used))
would = [formed[name] * engine.n_labels * engine.n_params * 4 / 1e6 for name in used]
ax.barh(places - 0.2, would, 0.38, color="0.75", label="gradients, if they were formed")
ax.barh(places + 0.2, [max(value, 1) for value in used.values()], 0.38, color="C0", label="growth of the process")
ax.set_yticks(places, list(used))
ax.invert_yaxis()
ax.set(xscale="log", xlabel="memory in MB")
fig.legend(ncols=2, fontsize=9, loc="outside upper center")
for name, megabytes in used.items():
    print(f"{name:28} {megabytes:8.0f} MB, formed {formed[name] * engine.n_labels * engine.n_params * 4 / 1e6:8.0f} MB")

# %%
# A ResNet-18
# -----------
#
# Gradients of convolutions are sums of outer products over positions: they are formed, but one layer at a time. Here
# are the norms for eleven million weights, layer by layer, in a net as torch makes it.


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)).relu()


widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
blocks = [block for n_in, n_out, stride in widths for block in (Block(n_in, n_out, stride), Block(n_out, n_out, 1))]
resnet = nn.Sequential(
    nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
)  # fmt: skip
resnet.eval()
images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
engine = GradientEngine(resnet, images, layers="weights")
norms, used = with_memory(lambda: FactoredGradients(engine, images).squared_norms())
print(f"{engine.n_params:,} weights: {used:.0f} MB, formed {2 * 10 * engine.n_params * 4 / 1e6:.0f} MB")

_, ax = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
ax.bar(range(len(norms)), [of_parameter.sqrt().mean().item() for of_parameter in norms.values()], color="C0")
ax.set_xticks(range(len(norms)), norms, rotation=90, fontsize=6)
ax.set(yscale="log", ylabel="mean norm", title="gradients of a ResNet-18, by parameter")
if sys.platform != "linux":
    print("the growth of the process is known on Linux alone")
