"""Small ReLU nets, with all ways of connecting units that a scale graph has to get right."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

# torch has no batch norm with eps=0 in training; beside this one, no variance is changed by rounding.
EXACT = 1e-300


class Net(nn.Module):
    """Named layers, and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def mlp(*widths, activation=nn.ReLU, bias=True):
    layers = [nn.Linear(i, o, bias=bias) for i, o in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in (layer, activation())))[:-1]


def with_activation(*activations):
    """An MLP 4-5-...-5-3 with the activations after its hidden layers."""
    layers = [part for activation in activations for part in (nn.Linear(5, 5), activation)]
    return nn.Sequential(nn.Linear(4, 5), *layers[1:], nn.Linear(5, 3))


def every_call_of_relu():
    def forward(net, x):
        x = net.act(net.a(x)).relu()
        x = F.relu(net.b(x), inplace=True)
        return net.d(F.relu(torch.relu(net.c(x).relu_())))

    sizes = {"a": (4, 5), "b": (5, 4), "c": (4, 5), "d": (5, 3)}
    return Net(forward, act=nn.ReLU(inplace=True), **{name: nn.Linear(*size) for name, size in sizes.items()})


def conv(rank, *between, channels=3, features=None, kernel_size=2, **options):
    """A convolution of two channels, ReLU, what is `between`, and a linear layer of `features` columns."""
    layer = getattr(nn, f"Conv{rank}d")(2, channels, kernel_size, **options)
    return nn.Sequential(layer, nn.ReLU(), *between, nn.Flatten(), nn.Linear(features, 2))


def two_convs(second, *between, features, channels=4, first=None):
    """Two convolutions in two dimensions with ReLU, something between them, the mean over positions, a linear layer."""
    first = first or nn.Conv2d(2, channels, 2)
    return nn.Sequential(
        first, nn.ReLU(), *between, second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 2)
    )


def transposed(rank, **options):
    first = getattr(nn, f"Conv{rank}d")(2, 4, 1)
    layer = getattr(nn, f"ConvTranspose{rank}d")(4, 4, 2, **options)
    pool = getattr(nn, f"AdaptiveAvgPool{rank}d")(1)
    return nn.Sequential(first, nn.ReLU(), layer, nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))


def flattened(flatten, features=12):
    return Net(
        lambda net, x: net.head(flatten(net.conv(x).relu())), conv=nn.Conv2d(2, 3, 2), head=nn.Linear(features, 2)
    )


def between_convs(function, features=3):
    """A function of the first of two convolutions' units."""

    def forward(net, x):
        return net.head(net.second(function(net.first(x).relu())).relu().mean((2, 3)))

    return Net(forward, first=nn.Conv2d(2, 3, 2), second=nn.Conv2d(features, 3, 2), head=nn.Linear(3, 2))


def between_linear(function, features=4):
    """A function of the units of an MLP's hidden layer."""
    return Net(
        lambda net, x: net.head(net.second(function(net.first(x).relu())).relu()),
        first=nn.Linear(4, 4),
        second=nn.Linear(features, 3),
        head=nn.Linear(3, 2),
    )


def normalized(bias=False, **options):
    return nn.Sequential(nn.Linear(4, 5, bias=bias), nn.BatchNorm1d(5, **options), nn.ReLU(), nn.Linear(5, 3))


def normalized_conv(rank, **options):
    layer = getattr(nn, f"Conv{rank}d")(2, 3, 2, bias=False)
    norm = getattr(nn, f"BatchNorm{rank}d")(3, **options)
    return nn.Sequential(layer, norm, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2**rank, 2))


class Block(nn.Module):
    """activation(shortcut(x) + second(relu(first(x)))): a residual block of an MLP."""

    def __init__(self, width, hidden, out=None, plus=torch.add, activation=F.relu):
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, out or width)
        self.shortcut = nn.Identity() if out is None else nn.Linear(width, out, bias=False)
        self.plus, self.activation, self.out = plus, activation, out or width

    def forward(self, x):
        return self.activation(self.plus(self.shortcut(x), self.second(F.relu(self.first(x)))))


def residual(*blocks, width=3):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), *blocks, nn.Linear(blocks[-1].out, 2))


def in_place(x, y):
    y += x
    return y


class ConvBlock(nn.Module):
    """The basic block of a ResNet, with batch norm; with `stride` 2 its shortcut is a convolution, too."""

    def __init__(self, width, out, stride=1, eps=EXACT):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out, eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps)
        self.downsample = None
        if stride > 1 or out != width:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out, eps))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return torch.relu(y)


def resnet(*blocks, width=2, out=2):
    stem = [nn.Conv2d(2, width, 2, bias=False), nn.BatchNorm2d(width, EXACT), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 2))


class PreActivation(nn.Module):
    """x + second(relu(bn2(first(relu(bn1(x))))))."""

    def __init__(self, width, hidden):
        super().__init__()
        self.bn1, self.first = nn.BatchNorm1d(width, EXACT), nn.Linear(width, hidden, bias=False)
        self.bn2, self.second = nn.BatchNorm1d(hidden, EXACT), nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return x + self.second(self.bn2(self.first(self.bn1(x).relu())).relu())


def pre_activation(*blocks):
    stem = nn.Linear(4, 3, bias=False)
    return nn.Sequential(stem, *blocks, nn.BatchNorm1d(3, eps=EXACT), nn.ReLU(), nn.Linear(3, 2))


def dense_block():
    def forward(net, x):
        x = net.stem(x).relu()
        x = torch.cat([x, net.first(x).relu()], 1)
        x = torch.cat([x, net.second(x).relu()], dim=1)
        return net.head(x.flatten(1))

    layers = {"stem": nn.Conv1d(2, 2, 2), "first": nn.Conv1d(2, 2, 3, padding=1), "second": nn.Conv1d(4, 1, 1)}
    return Net(forward, **layers, head=nn.Linear(10, 3))


def with_raw_input():
    return Net(
        lambda net, x: net.head(torch.cat((net.first(x).relu(), x), -1)), first=nn.Linear(4, 3), head=nn.Linear(7, 3)
    )


def inception():
    def forward(net, x):
        x = net.stem(x).relu()
        x = torch.cat([net.one(x), net.two(x), net.pool(x)], 1).relu()
        return net.head(x.mean((2, 3)))

    return Net(
        forward,
        stem=nn.Conv2d(2, 2, 1),
        one=nn.Conv2d(2, 2, 1),
        two=nn.Conv2d(2, 3, 3, padding=1),
        pool=nn.MaxPool2d(3, 1, 1),
        head=nn.Linear(7, 2),
    )


def unet():
    def forward(net, x):
        skip = net.down(x).relu()
        x = net.up(net.deep(F.max_pool2d(skip, 2)).relu()).relu()
        return net.head(torch.cat([x, skip], 1)).mean((2, 3))

    return Net(
        forward,
        down=nn.Conv2d(2, 2, 3, padding=1),
        deep=nn.Conv2d(2, 3, 1),
        up=nn.ConvTranspose2d(3, 2, 2, 2),
        head=nn.Conv2d(4, 2, 1),
    )


def parted(part):
    """Units in parts, which go different ways and come back in another order."""

    def forward(net, x):
        a, b = part(net.first(x).relu())
        return net.head(torch.cat([b, net.second(a).relu()], 1))

    return Net(forward, first=nn.Linear(4, 4), second=nn.Linear(2, 3), head=nn.Linear(5, 2))


def side_by_side(join, features, first=None, second=None):
    """Two convolutions of the same images, what `join` makes of their units and the images, and a linear layer."""
    return Net(
        lambda net, x: net.head(join(net.first(x).relu(), net.second(x).relu(), x)),
        first=first or nn.Conv1d(2, 4, 1),
        second=second or nn.Conv1d(2, 3, 1),
        head=nn.Linear(features, 2),
    )


def beside_a_linear_branch():
    """Flattened images beside units of a linear layer of their mean."""

    def forward(net, x):
        return net.head(torch.cat([net.linear(x.mean(2)).relu(), net.conv(x).relu().flatten(1)], 1))

    return Net(forward, conv=nn.Conv1d(2, 4, 2), linear=nn.Linear(2, 3), head=nn.Linear(19, 2))


def normalised_parts():
    """The same behind a batch norm."""
    part = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, EXACT))
    net = parted(lambda x: x.chunk(2, 1))
    net.first = part
    return net


def joined_along_positions():
    """Channels of two layers that a third one reads with the same weights."""
    return Net(
        lambda net, x: net.head(torch.cat([net.one(x), net.two(x)], 2).relu().mean(2)),
        one=nn.Conv1d(2, 3, 2),
        two=nn.Conv1d(2, 3, 1),
        head=nn.Linear(3, 2),
    )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, each with batch norm, beside the identity."""

    def __init__(self, width, hidden):
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden, EXACT)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden, EXACT)
        self.project, self.bn3 = nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width, EXACT)

    def forward(self, x):
        y = F.relu(self.bn1(self.expand(x)))
        y = F.relu(self.bn2(self.depthwise(y)))
        return x + self.bn3(self.project(y))


def read_by_two_norms():
    """Units that two batch norms read, and nothing else."""

    def forward(net, x):
        x = F.leaky_relu(net.stem(x), 0.1)
        return net.head(torch.cat([net.one(x).relu(), net.two(x).relu()], 1))

    norms = {name: nn.BatchNorm1d(3, eps=EXACT) for name in ("one", "two")}
    return Net(forward, stem=nn.Linear(4, 3), **norms, head=nn.Linear(6, 2))
