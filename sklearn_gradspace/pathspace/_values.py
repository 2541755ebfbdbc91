"""What a layer's output is to the scale graph: one entry a channel, and where the channels lie.

The entries are numbers of units, or whatever else belongs to a channel. Batch and positions are not looked at.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


class Unsupported(Exception):  # noqa: N818 (it is a verdict on an operation, caught where operations are run)
    """Rescaling does not commute with an operation; the message says why."""


@dataclass(frozen=True)
class Value:
    """The channels of one tensor in a net.

    Parameters
    ----------
    pieces : tuple of (Tensor of shape (n_channels,) or None)
        Entries of the channels, one piece after the other. None is any number of channels that cannot be rescaled.
    axis : {1, -1}
        Where the channels lie.
    ndim : int or None
        Number of axes, where it is known.
    flat : {"", "repeat", "tile"}
        Whether positions were flattened into the last axis, and how: all of a channel's positions in a row, or all
        channels of a position.
    """

    pieces: tuple[Tensor | None, ...] = (None,)
    axis: int = -1
    ndim: int | None = None
    flat: str = ""

    @property
    def is_root(self) -> bool:
        """Whether no channel can be rescaled."""
        return all(piece is None for piece in self.pieces)

    @property
    def channels(self) -> Tensor:
        """All entries, of shape (n_channels,)."""
        if None in self.pieces or self.flat:
            raise Unsupported("the number of its channels is not known")
        return torch.cat(self.pieces)

    def columns(self, n: int, fill: Tensor) -> Tensor:
        """Return the entries of `n` columns; `fill` of shape () is what columns that cannot be rescaled get."""
        known = sum(len(piece) for piece in self.pieces if piece is not None)
        holes = len(self.pieces) - sum(piece is not None for piece in self.pieces)
        if holes == len(self.pieces):
            return fill.expand(n)
        if holes > 1 or (holes and (self.flat or known > n)):
            raise Unsupported("what it reads are rescaled and other columns, of which it is not known which are which")
        hole = fill.expand(max(0, n - known))
        entries = torch.cat([hole if piece is None else piece for piece in self.pieces])
        if len(entries) == n:
            return entries
        if not self.flat or n % len(entries):
            raise Unsupported(f"it reads {n} columns where {len(entries)} channels come in")
        times = n // len(entries)
        return entries.repeat_interleave(times) if self.flat == "repeat" else entries.repeat(times)

    def is_channel_axis(self, dim: int) -> bool:
        """Return whether `dim` is where the channels lie; a linear layer's output is taken to be a matrix."""
        if self.ndim is None:
            return dim in (1, -1)
        return dim % self.ndim == self.axis % self.ndim

    def as_matrix(self) -> "Value":
        """Return the same with two axes, if their number was not known."""
        return replace(self, ndim=2) if self.ndim is None else self

    def flattened(self, start: int, end: int) -> "Value":
        """Return what flattening the axes from `start` to `end` makes of it."""
        if self.is_root or (self.ndim == 2 and start == 1):
            return self
        last = end == -1 or (self.ndim is not None and end == self.ndim - 1)
        if last and start == 1:
            return Value(self.pieces, -1, 2, "repeat" if self.axis == 1 else "tile")
        if last and start >= 2 and self.axis == 1:
            return replace(self, ndim=start + 1)
        raise Unsupported(f"it flattens the axes {start} to {end}")

    def reduced(self, dims, keepdim: bool) -> "Value":
        """Return what a mean or a sum over `dims` makes of it."""
        if self.is_root:
            return self
        dims = [dims] if isinstance(dims, int) else dims
        if dims is None or self.ndim is None:
            raise Unsupported("it is not known which axes it reduces")
        dims = {dim % self.ndim for dim in dims}
        if dims & {0, self.axis % self.ndim}:
            raise Unsupported("it reduces the channels or the samples")
        ndim = self.ndim if keepdim else self.ndim - len(dims)
        return replace(self, ndim=ndim, axis=-1 if ndim == 2 else self.axis)

    def split(self, sizes, dim: int) -> tuple["Value", ...]:
        """Return the parts along `dim`, of the given `sizes`; of a single size, or of so many channels each."""
        if self.is_root:
            raise Unsupported("its input cannot be rescaled")
        if not self.is_channel_axis(dim):
            raise Unsupported("it splits another axis than the channels")
        matrix = self.as_matrix()
        return tuple(replace(matrix, pieces=(part,)) for part in torch.split(self.channels, sizes))


def concatenate(values, dim: int, merge) -> Value:
    """Return the concatenation of `values` along `dim`; `merge` joins two tensors of entries, along other axes."""
    known = [value for value in values if not value.is_root]
    if not known:
        return Value()
    first = known[0].as_matrix() if known[0].ndim is None and dim == 1 else known[0]
    if any((value.axis, value.flat) != (first.axis, first.flat) for value in known) or first.flat:
        raise Unsupported("it joins tensors whose channels lie differently")
    if first.is_channel_axis(dim):
        return replace(first, pieces=tuple(piece for value in values for piece in value.pieces))
    if len(known) < len(values):
        raise Unsupported("it joins what can be rescaled with what cannot")
    entries = first.channels
    for value in known[1:]:
        entries = merge(entries, value.channels)
    return replace(first, pieces=(entries,))
