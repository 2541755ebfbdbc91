"""A net with two hidden units, a rescaled twin of it, and their basis paths."""

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

from sklearn_gradspace.pathspace import equivalent, path_values, rescale

net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
with torch.no_grad():
    net[0].weight.copy_(torch.tensor([[2.0, -1.0], [0.5, 1.5]]))
    net[2].weight.copy_(torch.tensor([[1.0, -2.0]]))
twin = rescale(copy.deepcopy(net), [4.0, 0.5])
assert equivalent(net, twin)

INPUTS, HIDDEN, OUTPUT = [(0, 2.6), (0, 0.4)], [(2, 2.6), (2, 0.4)], (4, 1.5)
COLORS = {(0, 0): "C0", (0, 1): "C0", (1, 1): "C3", (1, 0): "C3"}  # of the unit that a path leads through


def number(value):
    return f"{value:g}".replace("-", "−")


def edge(ax, start, end, weight, color, skeleton, at):
    style = {"lw": 3.2, "alpha": 0.85} if skeleton else {"lw": 1.1, "ls": (0, (4, 2))}
    ax.plot(*zip(start, end), color=color, zorder=1, **style)
    x, y = (s + at * (e - s) for s, e in zip(start, end))
    box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
    ax.text(x, y, number(weight), ha="center", va="center", fontsize=11, color=color, bbox=box)


def draw(ax, net, title, factors=None):
    first, last = net[0].weight.tolist(), net[2].weight.tolist()[0]
    for unit, color in enumerate(("C0", "C3")):
        for i in range(2):
            edge(ax, INPUTS[i], HIDDEN[unit], first[unit][i], color, i == unit, 0.5 if i == unit else 0.27)
        edge(ax, HIDDEN[unit], OUTPUT, last[unit], color, True, 0.5)
    named = [("$x_1$", INPUTS[0]), ("$x_2$", INPUTS[1]), ("$h_1$", HIDDEN[0]), ("$h_2$", HIDDEN[1]), ("$y$", OUTPUT)]
    for name, place in named:
        ax.plot(*place, "o", ms=25, mfc="white", mec="k", zorder=2)
        ax.text(*place, name, ha="center", va="center", fontsize=11, zorder=3)
    for place, factor in zip(HIDDEN, factors or []):
        above = place[1] > 1.5
        ax.text(place[0], place[1] + (0.5 if above else -0.5), f"$c$ = {number(factor)}", ha="center", va="center")
    ax.set(xlim=(-0.5, 4.5), ylim=(-0.5, 3.5))
    ax.set_title(title, fontsize=11)
    ax.axis("off")


fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained", width_ratios=(1, 1, 1.05))
draw(axes[0], net, "a net")
draw(axes[1], twin, "a rescaled twin", [4.0, 0.5])

# Basis paths: in a net with one hidden layer, the weights that lead to it are theirs.
values = [path_values(n)["0.weight"] for n in (net, twin)]
ax = axes[2]
ax.axis("off")
ax.set(xlim=(0, 10), ylim=(0, 10))
ax.set_title("basis paths", fontsize=11)
for x, text in zip((0, 4.4, 7.4), ("path", "net", "twin")):
    ax.text(x, 8.9, text, fontsize=10, color="0.4")
for row, (unit, i) in enumerate([(0, 0), (1, 1), (0, 1), (1, 0)]):
    color, y = COLORS[unit, i], 7.4 - 1.7 * row
    kind = "bold" if unit == i else "normal"
    ax.text(0, y, f"$x_{i + 1} \\to h_{unit + 1} \\to y$", color=color, fontsize=11)
    for x, n, value in zip((4.4, 7.4), (net, twin), values):
        w, v = n[0].weight[unit, i].item(), n[2].weight[0, unit].item()
        assert abs(w * v - value[unit, i]) < 1e-12
        ax.text(x, y, number(w * v), color=color, fontsize=11, weight=kind)
ax.text(0, 0.5, "thick: the skeleton\ndashed: the other weights", fontsize=9, color="0.3")
