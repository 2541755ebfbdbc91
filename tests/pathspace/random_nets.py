"""Nets that are drawn at random from all that a scale graph knows, and some that it does not."""

import random

import torch
import torch.nn.functional as F
from drawn import drawn
from pathspace.nets import EXACT
from torch import nn

LAYERS = {  # of c channels: what is built, and how many channels it gives
    "conv": lambda c, n: (nn.Conv2d(c, n, 3, padding=1), n),
    "pointwise": lambda c, n: (nn.Conv2d(c, n, 1, bias=False), n),
    "depthwise": lambda c, n: (nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), 2 * c),
    "transposed": lambda c, n: (nn.ConvTranspose2d(c, c * n, 3, padding=1, groups=c), c * n),
    "batch norm": lambda c, n: (nn.BatchNorm2d(c, eps=EXACT, affine=n > 1), c),
    "relu": lambda c, n: (nn.ReLU(), c),
    "prelu": lambda c, n: (nn.PReLU(c if n > 1 else 1), c),
    "pool": lambda c, n: (nn.MaxPool2d(3, 1, 1) if n > 1 else nn.AvgPool2d(3, 1, 1), c),
}
FUNCTIONS = {  # of one tensor; they keep the channels
    "scale": lambda x: -0.7 * x,
    "pad": lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0)), 2, 1),
    "up": lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 2),
    "roll": lambda x: x.roll(1, 1),
    "sigmoid": torch.sigmoid,
    "constant": lambda x: x + 0.3,
}
JOINS = {"add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "maximum": torch.maximum}
STEPS = [*LAYERS, "conv", "conv", "batch norm", "relu", *FUNCTIONS, *JOINS, "add", "cat", "cat", "chunk", "again"]


class RandomNet(nn.Module):
    """A random course of steps, each on a value from before; mostly the last. Images of shape (n, 2, 4, 4) enter."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.layers, self.steps, channels = nn.ModuleList(), [], [2]
        for _ in range(draw.randint(5, 14)):
            i = len(channels) - 1 if draw.random() < 0.6 else draw.randrange(len(channels))
            c, step, j = channels[i], draw.choice(STEPS), draw.randrange(len(channels))
            if step in LAYERS:
                layer, n = LAYERS[step](c, draw.randint(1, 3))
                self.layers.append(layer)
                j = len(self.layers) - 1
            elif step == "again":  # a layer is called once more
                known = [k for k, layer in enumerate(self.layers) if channels_of(layer) == c]
                if not known:
                    continue
                j = draw.choice(known)
                n = getattr(self.layers[j], "out_channels", c)
            elif step == "chunk":
                j, n = draw.randint(0, 1), c // 2
            elif step == "cat":
                n = c + channels[j]
            else:
                n = c
            if n == 0 or n > 8 or (step == "chunk" and c % 2) or (step in JOINS and channels[j] != c):
                continue
            self.steps.append((step, i, j))
            channels.append(n)
        self.flat = draw.random() < 0.5
        self.head = nn.Linear(channels[-1] * (16 if self.flat else 1), 3)

    def forward(self, x):
        values = [x]
        for step, i, j in self.steps:
            x = values[i]
            if step in LAYERS or step == "again":
                x = self.layers[j](x)
            elif step in FUNCTIONS:
                x = FUNCTIONS[step](x)
            elif step in JOINS:
                x = JOINS[step](x, values[j])
            else:
                x = torch.cat([values[j], x], 1) if step == "cat" else x.chunk(2, 1)[j]
            values.append(x)
        return self.head(values[-1].flatten(1) if self.flat else values[-1].mean((2, 3)))


def channels_of(layer):
    """Return the number of channels that a layer with weights takes."""
    return getattr(layer, "in_channels", None) or getattr(layer, "num_features", None)


def random_net(seed):
    """Return a net in double precision, its parameters and running statistics drawn as well."""
    return drawn(lambda: RandomNet(seed), seed)
