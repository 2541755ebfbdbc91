"""Small modules with the structures that an engine has to get right, each a function of every row by itself."""

import torch
import torch.nn.functional as F
from torch import nn


class Apply(nn.Module):
    """A function without parameters, as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Residual(nn.Module):
    """x + body(x), and a last activation that may write over the sum."""

    def __init__(self, body, last):
        super().__init__()
        self.body, self.last = body, last

    def forward(self, x):
        return self.last(x + self.body(x))


class Branches(nn.Module):
    """Two ways from the same input, joined."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 4), nn.Linear(6, 3), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(torch.cat([self.left(x).relu(), self.right(x).tanh()], 1))


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.step(self.step(x).tanh()).tanh())


class TiedAutoencoder(nn.Module):
    """The decoder is a module whose parameter is the encoder's."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x).tanh()).tanh())


class BorrowedWeight(nn.Module):
    """The weight of a layer is read a second time outside of the layer, `factor` strong."""

    def __init__(self, factor):
        super().__init__()
        self.encoder, self.head, self.factor = nn.Linear(6, 4), nn.Linear(6, 3), factor

    def forward(self, x):
        h = self.encoder(x).tanh()
        return self.head(x + self.factor * F.linear(h, self.encoder.weight.t()))


class CalledInVain(nn.Module):
    """A layer's output is thrown away, and its weight read elsewhere."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        self.layer(x)
        return F.linear(x.tanh(), self.layer.weight)


class OutputChanged(nn.Module):
    """A forward hook of the user's own changes what a layer returns."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.layer.register_forward_hook(_double)

    def forward(self, x):
        return self.head(self.layer(x).relu())


def _double(module, inputs, output):
    return 2 * output


class ClassToken(nn.Module):
    """A parameter that belongs to the net itself."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), 1, -1), x], 1)
        return self.head((tokens @ tokens.transpose(1, 2)).softmax(2)[:, 0].unsqueeze(1).bmm(tokens)[:, 0])


class UnusedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.idle, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x)


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.Linear(4, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        out = self.attention(x, x, x, need_weights=False)[0]
        return self.head(out.mean(1 if self.batch_first else 0))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class InputOverwritten(nn.Module):
    """What a layer has read is written over; autograd permits it, for the layer's weight is frozen."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale.weight.requires_grad_(False)

    def forward(self, x):
        h = x * 2
        first = self.scale(h)
        h.zero_()
        return self.head((first + h).tanh())


class ClampedInPlace(nn.Module):
    """The input of a layer is clamped in place after the layer has copied it."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = LinearOfCopy(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = x * 2
        first = self.layer(h)
        return self.head((first + h.clamp_(-0.5, 0.5)).tanh())


class LinearOfCopy(nn.Linear):
    def forward(self, x):
        return F.linear(x.clone(), self.weight, self.bias)


class InputShifted(nn.Module):
    """The net shifts the rows it is given in place, and reads one weight twice."""

    def __init__(self):
        super().__init__()
        self.body = BorrowedWeight(1.0)

    def forward(self, x):
        return self.body(x.sub_(1))


class ScaledLinear(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return F.linear(x, 2 * self.weight.tanh(), self.bias)


class TimeFolded(nn.Module):
    """The steps of a sequence are taken into the batch, and back."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(4, 5), nn.Linear(15, 3)

    def forward(self, x):
        return self.head(self.step(x.flatten(0, 1)).tanh().view(len(x), -1))


class SequenceFirst(nn.Module):
    """The steps come first and the rows second."""

    def __init__(self):
        super().__init__()
        self.step, self.norm, self.head = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.norm(self.step(x.transpose(0, 1)).tanh()).sum(0))


class RowsSorted(nn.Module):
    """The rows are sorted by length and put back, as before a packed sequence."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        order = x.norm(dim=1).argsort()
        return self.head(self.layer(x[order]).tanh()[order.argsort()])


class Experts(nn.Module):
    """Each row goes to one of two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        to_first = x[:, 0] > 0
        h = x.new_zeros(len(x), 5)
        h = h.masked_scatter(to_first[:, None], self.first(x[to_first]))
        h = h.masked_scatter(~to_first[:, None], self.second(x[~to_first]))
        return self.head(h.tanh())


class PairProduct(nn.Module):
    """A layer with two inputs, and one that is called by keyword."""

    def __init__(self):
        super().__init__()
        self.pair, self.head = nn.Bilinear(3, 3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(input=self.pair(x[:, :3], x[:, 3:]).tanh())


class Masked(nn.Module):
    """A tensor that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.mask = nn.Linear(6, 3), torch.tensor([True, False, True, True, False, True])

    def forward(self, x):
        return self.layer(x.masked_fill(self.mask, 0.5))


class CountsCalls(nn.Module):
    """Writes to a large buffer in every forward pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("calls", torch.zeros(1_000_000))

    def forward(self, x):
        self.calls.add_(1)
        return self.linear(x)
