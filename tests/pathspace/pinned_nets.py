"""Small nets with units that cannot be rescaled, or that a scale graph does not know to be free."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from pathspace.nets import EXACT, Net, mlp
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def product_of_branches():
    return two_branches(torch.mul)


def maximum_of_branches():
    return two_branches(torch.maximum)


def two_branches(join):
    return Net(
        lambda net, x: net.head(join(net.left(x).relu(), net.right(x).relu())),
        left=nn.Linear(4, 3),
        right=nn.Linear(4, 3),
        head=nn.Linear(3, 2),
    )


def added_to_joined():
    """One unit that is added to those of two layers side by side, as broadcasting has it."""
    return Net(
        lambda net, x: net.head((net.c(x) + torch.cat([net.a(x), net.b(x)], 1)).relu()),
        c=nn.Linear(4, 1), a=nn.Linear(4, 1), b=nn.Linear(4, 3), head=nn.Linear(4, 2),
    )  # fmt: skip


def bilinear():
    return Net(
        lambda net, x: net.bilinear(net.left(x).relu(), net.right(x).relu()),
        left=nn.Linear(4, 3),
        right=nn.Linear(4, 2),
        bilinear=nn.Bilinear(3, 2, 2),
    )


def matrix_product():
    def forward(net, x):
        x = net.stem(x).relu()
        return net.head(torch.matmul(x, x.transpose(1, 2)).flatten(1))

    return Net(forward, stem=nn.Conv1d(2, 3, 2), head=nn.Linear(9, 2))


def written_in_part():
    """Some units are written over others, which torch.fx does not trace."""

    def forward(net, x):
        x = net.hidden(x).relu()
        x[:, :2] = x[:, 1:]
        return net.head(x)

    return Net(forward, hidden=nn.Linear(4, 3), head=nn.Linear(3, 2))


def pooled_columns(pool):
    """A layer for sequences that takes a matrix for one of them, and so mixes its columns."""
    layers = [nn.Flatten(), nn.Linear(12, 4), pool, nn.ReLU(), nn.Linear(4, 2)]
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), *layers)


def pooled_channels(pool):
    """Images are pooled by a function that takes the samples for channels, and the channels for rows."""
    return Net(lambda net, x: net.head(pool(net.conv(x).relu()).mean(2)), conv=nn.Conv1d(2, 3, 2), head=nn.Linear(3, 2))


def mean_over_tokens():
    return Net(lambda net, x: net.head(net.stem(x).relu().mean(1)), stem=nn.Linear(3, 4), head=nn.Linear(4, 2))


def positions_into_linear():
    """A linear layer along the positions, of which there are as many as channels."""
    layers = [nn.Conv1d(2, 4, 2), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)]
    return nn.Sequential(OrderedDict(zip(("conv", "relu", "positions", "relu2", "flatten", "head"), layers)))


def tokens_of(function):
    """Channels become columns, and linear layers read them at each position."""
    layers = {"conv": nn.Conv1d(2, 4, 2), "mix": nn.Linear(4, 4), "head": nn.Linear(12, 2)}
    return Net(lambda net, x: net.head(net.mix(function(net.conv(x).relu())).flatten(1)), **layers)


def columns_into_images():
    def forward(net, x):
        return net.head(net.conv(net.stem(x).relu().view(-1, 2, 4)).relu().flatten(1))

    return Net(forward, stem=nn.Linear(4, 8), conv=nn.Conv1d(2, 2, 2), head=nn.Linear(6, 2))


def half_rows():
    """Each sample becomes two rows."""
    return Net(lambda net, x: net.head(net.stem(x).relu().view(-1, 3)), stem=nn.Linear(4, 6), head=nn.Linear(3, 2))


def rows_of_channels():
    """Each channel becomes a row, of as many positions as there are columns of a flattened sample."""
    layers = {"conv": nn.Conv1d(2, 4, 1), "head": nn.Linear(8, 2)}
    return Net(lambda net, x: net.head(net.conv(x).relu().reshape(x.shape[0] * 4, -1)), **layers)


def rows_of_two_images():
    """Each sample is two images, which are flattened into one row."""

    def forward(net, x):
        y = net.conv(x.view(-1, 2, 4)).relu()
        return net.head(y.view(x.size(0), -1))

    return Net(forward, conv=nn.Conv1d(2, 3, 1), head=nn.Linear(24, 2))


def of_tokens(function, features=4, after=lambda y: y.sum(1), **layers):
    """A linear layer and ReLU at each of several tokens, a function of net and that, and a linear layer again."""
    return Net(
        lambda net, x: after(net.head(function(net, net.first(x).relu(), x))),
        first=nn.Linear(3, 4),
        head=nn.Linear(features, 2),
        **layers,
    )


def tokens_without_head():
    return Net(lambda net, x: net.first(x).relu()[:, :2].flatten(1), first=nn.Linear(3, 4))


def tokens_into_convolution():
    """A batch norm of as many tokens as columns, and a convolution of the tokens."""
    layers = {"first": nn.Linear(3, 4), "norm": nn.BatchNorm1d(4, EXACT), "conv": nn.Conv1d(4, 2, 4)}
    return Net(lambda net, x: net.conv(net.norm(net.first(x).relu()).relu()).flatten(1), **layers)


def norm_called_twice():
    def forward(net, x):
        x = torch.cat([net.norm(net.left(x)), net.norm(net.right(x))], 1).relu()
        return net.head(net.middle(x).relu())

    layers = {name: nn.Linear(4, 3, bias=False) for name in ("left", "right")}
    norm = nn.BatchNorm1d(3, eps=EXACT, affine=False)
    return Net(forward, **layers, norm=norm, middle=nn.Linear(6, 3), head=nn.Linear(3, 2))


def norm_called_on_the_input():
    layers = {"same": nn.Linear(4, 4, bias=False), "norm": nn.BatchNorm1d(4, eps=EXACT, affine=False)}
    layers |= {"middle": nn.Linear(4, 3), "head": nn.Linear(3, 2)}
    return Net(lambda net, x: net.head(net.middle(net.norm(net.same(net.norm(x).relu()))).relu()), **layers)


def borrowed_weight():
    """A layer's weight is read by a function, too."""
    layers = {"first": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    return Net(lambda net, x: net.head(F.linear(net.first(x).relu(), net.first.weight).relu()), **layers)


def with_weight_norm():
    return nn.Sequential(mlp(4, 4, 4), weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))


def first_by(parametrization):
    return nn.Sequential(parametrization(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))


def behind_a_batch_norm(parametrization):
    """Nothing that can be rescaled comes into the layer."""
    norm = nn.BatchNorm1d(4, EXACT, affine=False)
    return nn.Sequential(nn.Linear(4, 4), norm, parametrization(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))


def by_a_function(factor=1):
    """The first layer's parameters are used, not the layer."""

    def forward(net, x):
        return net.head(F.linear(x, net.a.weight if factor == 1 else factor * net.a.weight, net.a.bias).relu())

    return Net(forward, a=nn.Linear(4, 3), head=nn.Linear(3, 2))


def returns_hidden_units():
    def forward(net, x):
        x = net.first(x).relu()
        return torch.cat([x, net.head(net.second(x).relu())], 1)

    return Net(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 3), head=nn.Linear(3, 2))


def returns_what_a_norm_reads():
    layers = {"first": nn.Linear(4, 3), "norm": nn.BatchNorm1d(3, EXACT, affine=False), "head": nn.Linear(3, 2)}
    return Net(lambda net, x: torch.cat([y := net.first(x), net.head(net.norm(y))], 1), **layers)


def recurrent():
    layers = {"recurrent": nn.GRU(3, 4, batch_first=True), "hidden": nn.Linear(4, 3), "head": nn.Linear(3, 2)}
    return Net(lambda net, x: net.head(net.hidden(net.recurrent(x)[0][:, -1]).relu()), **layers)


def squeeze_excite():
    def forward(net, x):
        x = net.conv(x).relu()
        gate = net.excite(net.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return net.head((x * gate[:, :, None, None]).mean((2, 3)))

    layers = {"squeeze": nn.Linear(3, 2), "excite": nn.Linear(2, 3), "head": nn.Linear(3, 2)}
    return Net(forward, conv=nn.Conv2d(2, 3, 2), **layers)


def shared_weight():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    return net


def called_twice():
    layers = {"step": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    return Net(lambda net, x: net.head(net.step(net.step(x).relu()).relu()), **layers)


def attention():
    def forward(net, x):
        x = net.stem(x).relu()
        return net.head(net.attention(x, x, x, need_weights=False)[0].mean(1))

    layers = {"stem": nn.Linear(3, 4), "attention": nn.MultiheadAttention(4, 2, batch_first=True)}
    return Net(forward, **layers, head=nn.Linear(4, 2))


class OwnParameter(nn.Module):
    """A parameter that belongs to the net itself, and is put to use by a function."""

    def __init__(self, function, *shape):
        super().__init__()
        self.first, self.head, self.own = nn.Linear(4, 4), nn.Linear(4, 2), nn.Parameter(torch.randn(*shape))
        self.function = function

    def forward(self, x):
        return self.head(self.function(self.first(x).relu(), self.own))


class Branching(nn.Module):
    """A way through the net that depends on the data."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.left(x).relu() if x.sum() > 0 else self.right(x).relu()


def branching_inside():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Branching(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def with_other_forward():
    """A ReLU whose forward is another one."""
    net = mlp(4, 5, 5, 3)
    net[3].forward = torch.tanh
    return net


def shared_memory():
    """Two weights of one memory."""
    net = mlp(4, 5, 4, bias=False).double()
    net[2].weight = nn.Parameter(net[0].weight.detach().t())
    return net
