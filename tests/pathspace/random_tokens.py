"""Nets of linear layers, drawn at random, that run on matrices, on sequences, or on both."""

import random

import torch
from drawn import drawn
from pathspace.nets import EXACT
from torch import nn

STEPS = [
    *("linear", "linear", "relu", "cut", "cut", "cut", "part", "part", "cat", "cat", "last", "add", "flatten"),
    *("norm", "slopes", "view", "mean"),
]
LAYERS = {  # for a value of this shape, with n outputs
    "linear": lambda shape, n: nn.Linear(shape[-1], n),
    "norm": lambda shape, n: nn.BatchNorm1d(shape[1], eps=EXACT),
    "slopes": lambda shape, n: nn.PReLU(shape[1]),
}


class RandomTokens(nn.Module):
    """A random course of steps, each on a value from before, for inputs of one shape (n, 4) or (n, t, 4)."""

    def __init__(self, seed, shape):
        super().__init__()
        self.layers, self.steps, x = nn.ModuleList(), [], torch.zeros(6, *shape)
        draw, values = random.Random(seed), [x]
        for _ in range(draw.randint(4, 10)):
            i = len(values) - 1 if draw.random() < 0.7 else draw.randrange(len(values))
            step, j, k = draw.choice(STEPS), draw.randrange(len(values)), draw.randint(0, 3)
            if step == "norm" and len(shape) > 1:
                continue  # a graph cannot know that there are sequences
            if step in LAYERS:
                self.layers.append(LAYERS[step](values[i].shape, draw.choice([2, 4, 4, 4])))
                j = len(self.layers) - 1
            try:
                y = self.run(step, values, i, j, k)
            except (RuntimeError, IndexError, ValueError):
                continue
            if y.numel() and y.ndim > 1 and y.shape[0] == 6:
                self.steps.append((step, i, j, k))
                values.append(y)
        self.head = nn.Linear(values[-1].shape[-1], 3)

    def run(self, step, values, i, j, k):
        x = values[i]
        return {
            "linear": lambda: self.layers[j](x).relu(),
            **dict.fromkeys(("norm", "slopes"), lambda: self.layers[j](x)),
            "relu": lambda: x.relu(),
            "cut": lambda: [x[:, 1:], x[:, :2], x[:, 2:], x[:, 1:3]][k],
            "part": lambda: [x.chunk(2, 1)[1], x.split(2, 1)[0], x.split(2, -1)[-1], x.chunk(2, -1)[0]][k],
            "cat": lambda: torch.cat([x, values[j]], 1),
            "last": lambda: torch.cat([x, values[j]], -1),
            "add": lambda: x - 2 * values[j],
            "flatten": lambda: x.flatten(1),
            "view": lambda: [x.view(x.size(0), -1), x.reshape(values[0].shape[0], -1), x.view(-1, 8), x.contiguous()][
                k
            ],
            "mean": lambda: x.mean(1 + k % 2, keepdim=True),
        }[step]()

    def forward(self, x):
        values = [x]
        for step in self.steps:
            values.append(self.run(step[0], values, *step[1:]))
        return self.head(values[-1])


def random_tokens(seed, shape):
    """Return a net in double precision, its parameters and running statistics drawn as well."""
    return drawn(lambda: RandomTokens(seed, shape), seed)
