"""Small modules with the structures that an engine has to get right, each a function of every row by itself."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


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


class Temperature(nn.Module):
    """A parameter without axes, in a layer and in the net itself."""

    def __init__(self):
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.tensor(0.5)), Scaled()

    def forward(self, x):
        return self.scale * self.body(x).tanh()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.tensor(1.5)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.scale * x)


class Attention(nn.Module):
    def __init__(self, batch_first, need_weights=False):
        super().__init__()
        self.batch_first, self.need_weights = batch_first, need_weights
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.Linear(4, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        out, weights = self.attention(x, x, x, need_weights=self.need_weights)
        out = out if weights is None else out + weights.sum(2, keepdim=True) * weights.square().sum(2, keepdim=True)
        return self.head(out.mean(1 if self.batch_first else 0))


class MaskedAttention(nn.Module):
    """Attention under a constant mask, whose first axis is that of the steps and no row a sample."""

    def __init__(self, n_steps):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
        self.register_buffer("mask", torch.ones(n_steps, n_steps, dtype=torch.bool).triu(1))

    def forward(self, x):
        return self.head(self.attention(x, x, x, attn_mask=self.mask)[0][:, -2])


class PaddedAttention(nn.Module):
    """Attention that leaves out the steps that begin with a negative number, by a keyword with a row a sample."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, kdim=3, vdim=4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        left_out = x[:, :, 0] < 0
        left_out[:, 0] = False
        return self.head(self.attention(x, x[:, :, :3], x, key_padding_mask=left_out)[0].mean(1))


class Decoder(nn.Module):
    """A transformer's decoder, which gets the steps and a memory, and a mask of the steps."""

    def __init__(self, n_steps):
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.register_buffer("mask", torch.ones(n_steps, n_steps, dtype=torch.bool).triu(1))

    def forward(self, x):
        return self.head(self.decoder(x, x.flip(1).tanh(), tgt_mask=self.mask)[:, -2])


class Positions(nn.Module):
    """Embeddings of tokens, of which one is padding, and of their positions, which no row has for itself."""

    def __init__(self, n_steps):
        super().__init__()
        self.token, self.position = nn.Embedding(4, 5, padding_idx=1), nn.Embedding(n_steps, 5)
        self.head = nn.Linear(5, 3)
        self.register_buffer("steps", torch.arange(n_steps))

    def forward(self, tokens):
        return self.head((self.token(tokens) * self.position(self.steps).tanh()).sum(1).tanh())


class Recurrent(nn.Module):
    def __init__(self, kind, n_out=5, **options):
        super().__init__()
        self.recurrent, self.head = kind(4, 5, batch_first=True, **options), nn.Linear(n_out, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Cells(nn.Module):
    """A cell that is called at each step, and given its own state."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Checkpointed(nn.Module):
    """The body is computed a second time in the backward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5)), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False).tanh())


class GradientStopped(nn.Module):
    """One layer counts with its values alone, another in one of its two calls."""

    def __init__(self):
        super().__init__()
        self.gate, self.step, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.step(x).tanh() * self.gate(x).detach()
        with torch.no_grad():
            target = self.step(x + 1)
        return self.head((h - target).tanh())


class Gated(nn.Module):
    """Highway: a gate mixes what a layer returns with its input."""

    def __init__(self):
        super().__init__()
        self.gate, self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        gate = self.gate(x).sigmoid()
        return self.head(gate * self.body(x).tanh() + (1 - gate) * x)


class Fourier(nn.Module):
    """Complex numbers on the way."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.fft.fft2(self.body(x)).real.tanh().flatten(1))


class Mixer(nn.Module):
    """Layers over channels and over steps, in turn."""

    def __init__(self):
        super().__init__()
        self.norm, self.over_steps, self.over_channels = nn.LayerNorm(4), nn.Linear(3, 3), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x + self.over_steps(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head(self.over_channels(self.norm(x)).tanh().mean(1))


class SqueezeExcite(nn.Module):
    """Channels are weighted by what a bottleneck makes of their means."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x)
        weights = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * weights[:, :, None, None]).tanh().mean((2, 3)))


class DenselyConnected(nn.Module):
    """Every layer gets what all before it returned."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([x, self.first(x).relu()], 1)
        x = torch.cat([x, self.second(x).relu()], 1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Down, up to the size that the way down had, and joined with it."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)
        self.last = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        up = self.up(self.down(x).tanh(), output_size=x.shape[2:])
        return self.last(torch.cat([x, up.tanh()], 1)).mean((2, 3))


class AddedInPlace(nn.Module):
    """The shortcut is added to what a normalisation returned, and the sum rectified, in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x):
        h = self.norm(self.conv(x))
        h += x
        return self.head(h.relu_().mean((2, 3)))


class Flattened(nn.Module):
    """Relies on the usual order of memory: by `view` with an error otherwise, by `as_strided` with other numbers."""

    def __init__(self, strided):
        super().__init__()
        self.conv, self.head, self.strided = nn.Conv2d(2, 4, 3), nn.Linear(80, 3), strided

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.as_strided((len(x), 80), (80, 1)) if self.strided else x.view(len(x), -1))


class Scores(nn.Module):
    """Returns more than its logits."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head, self.other, self.kind = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2), kind

    def forward(self, x):
        h = self.body(x).tanh()
        return self.kind(zip(("logits", "other"), (self.head(h), self.other(h))))


def rounded(x):
    """Return the numbers as indices below 5."""
    return (3 * x.abs()).long().clamp(max=4)


def sum_and_product(outputs):
    """Return two scalars of each row."""
    return torch.stack([outputs.sum(1), outputs.prod(1)], 1)


def cut(outputs):
    """Return all outputs but the first."""
    return outputs[:, 1:]


def values_of(items):
    """Return the second entries, as a tuple."""
    return tuple(value for _, value in items)


class Vector(nn.Module):
    """Returns one number a row, without an axis for it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.body(x).tanh()).squeeze(1)


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


class OnDemand(nn.Module):
    """A layer joins in where a row asks for it, and is not called for a batch without such a row."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h, asks = self.always(x), x[:, :1] > 0
        if asks.any():
            h = h + asks * self.sometimes(x)
        return self.head(h.tanh())


class Distances(nn.Module):
    """Distances to points of a parameter, which torch differentiates wrongly under two batches of cotangents."""

    def __init__(self, in_a_layer):
        super().__init__()
        self.layer = nn.Linear(6, 5)
        if in_a_layer:
            self.points = nn.Linear(5, 10, bias=False)
        else:
            self.weight = nn.Parameter(torch.randn(10, 5))

    def forward(self, x):
        return -torch.cdist(self.layer(x).tanh(), self.points.weight if hasattr(self, "points") else self.weight)


class _Twice(torch.autograd.Function):
    """Goes back through NumPy, which takes no batch of cotangents for one."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(2 * grad.cpu().numpy()).to(grad.device)


class Doubled(nn.Module):
    """Rows are doubled by a step of NumPy's: all of them, or those that are large."""

    def __init__(self, everywhere):
        super().__init__()
        self.everywhere = everywhere

    def forward(self, x):
        doubled = (x.abs().amax(1, keepdim=True) > 5) | self.everywhere
        return torch.where(doubled, _Twice.apply(x), x) if doubled.any() else x


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


class Overflows(nn.Module):
    """The logits of large rows are infinite."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) / (x.abs().amax(1, keepdim=True) < 10)
