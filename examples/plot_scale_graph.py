"""
The scale graph of a ResNet-18
==============================

Multiply what leads into a hidden channel of a ReLU net by a positive number, divide what leads out of it by the same,
and the net computes what it did. ``scale_graph`` finds these symmetries in a net as it is. In a residual net the
channels of the stream are shared by all blocks of a stage, and batch norms begin new channels: nobody would want to
list that by hand.
"""

# %%
# The net, in the style of torchvision, and its graph
# ---------------------------------------------------

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

from sklearn_gradspace.pathspace import balance, equivalent, rescale, scale_graph


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    def __init__(self, n_classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        self.stages = nn.Sequential(
            *(nn.Sequential(Block(n_in, n_out, stride), Block(n_out, n_out, 1)) for n_in, n_out, stride in widths)
        )
        self.fc = nn.Linear(512, n_classes)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.stages(x).mean((2, 3)))


torch.manual_seed(0)
net = ResNet18().double().eval()
graph = scale_graph(net)
print(graph)

# %%
# Every parameter says how many units it writes and reads: 64 channels of the stream are written by ``bn1`` and by the
# last batch norm of each block of the first stage. The filters in front of a batch norm are units as well, which
# nothing reads; they are invariant but for its ``eps``.
#
# Twins
# -----
# A net whose units were rescaled by up to a factor of a thousand is another point in the space of weights, and the same
# function. ``balance`` leads both to their canonical twin.

factors = 10 ** (4 * torch.rand(graph.n_units, dtype=torch.double) - 2)
factors[graph.approximate] = 1
twin = rescale(copy.deepcopy(net), factors)

images = torch.randn(2, 3, 64, 64, dtype=torch.double)
with torch.no_grad():
    outputs, of_twin = net(images), twin(images)
print(f"largest difference of outputs: {(outputs - of_twin).abs().max() / outputs.abs().max():.1e}, relative")
differences = [(a - b).abs().max().item() for a, b in zip(net.parameters(), twin.parameters())]
print(f"largest difference of weights: {max(differences):.1f}")
print(f"equivalent: {equivalent(net, twin)}")

# %%
# In a net as torch makes it, too, what leads into a unit and what leads out of it differ: here for the channels between
# the two convolutions of the last block, of which a batch norm's weight and bias lead in, and the second convolution
# out.


def ratios(net):
    block = net.stages[3][1]
    incoming = (block.bn1.weight**2 + block.bn1.bias**2).sqrt()
    outgoing = block.conv2.weight.transpose(0, 1).flatten(1).norm(dim=1)
    return (outgoing / incoming).detach()


figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
bins = torch.logspace(-3, 3, 80).numpy()
axes.hist(ratios(twin), bins, color="0.75", label="a twin")
axes.hist(ratios(net), bins, color="C0", label="as torch makes it")
axes.hist(ratios(balance(twin)), bins, color="C3", label="balanced, either of them")
axes.set(xscale="log", yscale="log", xlabel="norm of outgoing over norm of incoming weights", ylabel="channels")
axes.legend()
plt.show()
