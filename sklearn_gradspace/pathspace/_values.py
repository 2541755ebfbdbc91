"""What a layer's output is to the scale graph: one entry a channel, and where the channels lie.

The entries are numbers of units, or whatever else belongs to a channel. Lengths of other axes are not known; which of
them are the same is, in part.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


class Unsupported(Exception):  # noqa: N818 (it is a verdict on an operation, caught where operations are run)
    """Rescaling does not commute with an operation; the message says why."""


class OtherAxis(Unsupported):
    """The channels lie on another axis than an operation takes, or in another number."""


@dataclass(frozen=True)
class Doubt:
    """A tensor was taken for a matrix, since the number of its axes is not known, and may be a batch of sequences.

    Parameters
    ----------
    entries : Tensor of shape (n,)
        Entries that cannot be rescaled if it is no matrix.
    width : int or None
        What divides the length of its last axis if it is no matrix; None where it is taken for a matrix until a layer
        disagrees.
    """

    entries: Tensor
    width: int | None


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
    flat : tuple of (str, object)
        How positions were flattened into the last axis, a pair a piece, or none. "repeat" is all of a channel's
        positions in a row, "tile" all channels of a position; with each as many positions as `positions` says.
    positions : object
        How many positions there are, all axes but the samples' and the channels': a number, or what is the same for
        tensors that have as many.
    rows : object
        The same for tensors whose first axis is known to have the same length, and the same meaning.
    doubt : Doubt, optional
        What depends on its being a matrix.
    """

    pieces: tuple[Tensor | None, ...] = (None,)
    axis: int = -1
    ndim: int | None = None
    flat: tuple[tuple[str, object], ...] = ()
    positions: object = field(default_factory=object)
    rows: object = field(default_factory=object)
    doubt: Doubt | None = None

    @property
    def is_root(self) -> bool:
        """Whether no channel can be rescaled."""
        return all(piece is None for piece in self.pieces)

    @property
    def is_matrix(self) -> bool:
        """Whether it is known to have two axes."""
        return self.ndim == 2 and self.doubt is None

    @property
    def layout(self) -> tuple[tuple[str, object], ...]:
        """`flat`, with one position where nothing was flattened."""
        return self.flat or (("", 1),) * len(self.pieces)

    @property
    def channels(self) -> Tensor:
        """All entries, of shape (n_channels,)."""
        if None in self.pieces or self.flat:
            raise Unsupported("the number of its channels is not known")
        return torch.cat(self.pieces)

    def columns(self, n: int, fill: Tensor) -> Tensor:
        """Return the entries of `n` columns; `fill` of shape () is what columns that cannot be rescaled get."""
        if self.is_root:
            return fill.expand(n)
        layout = list(zip(self.pieces, self.layout, strict=True))
        left, unknown = n, Counter[object]()
        for piece, (_, positions) in layout:
            if piece is None:
                unknown[object()] = 1
            elif isinstance(positions, int):
                left -= positions * len(piece)
            else:
                unknown[positions] += len(piece)
        if len(unknown) > 1:
            raise OtherAxis(
                "what it reads are rescaled and other columns, or channels of several tensors that were flattened, of "
                "which it is not known which are which"
            )
        each = sum(unknown.values())  # channels of which as many positions are left
        if (each == 0) != (left == 0) or (each and (left < each or left % each)):
            raise OtherAxis(
                f"it reads {n} columns where {sum(len(p) for p, _ in layout if p is not None)} channels come in"
            )
        columns = []
        for piece, (kind, positions) in layout:
            if piece is None:
                columns.append(fill.expand(left))
                continue
            times = positions if isinstance(positions, int) else left // each
            columns.append(piece.repeat_interleave(times) if kind == "repeat" else piece.repeat(times))
        if self.doubt and len(self.doubt.entries) and self.doubt.width and n % self.doubt.width == 0:
            raise OtherAxis("what it reads may have been cut along positions instead of channels")
        return torch.cat(columns)

    def is_channel_axis(self, dim: int) -> bool:
        """Return whether `dim` is where the channels lie; a linear layer's output is taken to be a matrix."""
        if self.ndim is None:
            return dim in (1, -1)
        if not -self.ndim <= dim < self.ndim:
            raise OtherAxis("it acts on an axis that a matrix lacks")
        return dim % self.ndim == self.axis % self.ndim

    def as_matrix(self, entries: Tensor, width: int | None = None) -> "Value":
        """Return the same, taken for a matrix on which `entries` depend as well, if that is not known."""
        if self.is_matrix or (self.ndim or 2) > 2:
            return self
        if self.doubt:
            entries, width = torch.cat([self.doubt.entries, entries]), self.doubt.width
        return replace(self, ndim=2, doubt=Doubt(entries, width))

    def flattened(self, start: int, end: int) -> "Value":
        """Return what flattening the axes from `start` to `end` makes of it."""
        if self.is_root:
            return Value(rows=self.rows) if start > 0 else Value()
        if self.ndim == 2 and start == 1:
            if self.doubt and None in self.pieces:
                raise OtherAxis("it flattens what may be sequences, of which some cannot be rescaled")
            known = self.doubt is None or self.doubt.width is None
            return self if known else replace(self, doubt=replace(self.doubt, width=1))
        last = end == -1 or (self.ndim is not None and end == self.ndim - 1)
        if last and start == 1 and self.positions == 1 and not self.flat:
            return replace(self, axis=-1, ndim=2)
        if last and start == 1:
            kind, pieces = ("repeat", self.pieces) if self.axis == 1 else ("tile", (self.channels,))
            return replace(self, pieces=pieces, axis=-1, ndim=2, flat=((kind, self.positions),) * len(pieces))
        if last and start >= 2 and self.axis == 1:
            return replace(self, ndim=start + 1)
        raise OtherAxis(f"it flattens the axes {start} to {end}")

    def reduced(self, dims, keepdim: bool) -> "Value":
        """Return what a mean or a sum over `dims` makes of it."""
        dims = [dims] if isinstance(dims, int) else dims
        if self.is_root:
            return Value(rows=self.rows) if dims and min(dims) > 0 else Value()
        if dims is None or self.ndim is None:
            raise OtherAxis("it is not known which axes it reduces")
        dims = {dim % self.ndim for dim in dims}
        if dims & {0, self.axis % self.ndim}:
            raise OtherAxis("it reduces the channels or the samples")
        ndim = self.ndim if keepdim else self.ndim - len(dims)
        positions = 1 if len(dims) == self.ndim - 2 else object()
        return replace(self, ndim=ndim, axis=-1 if ndim == 2 else self.axis, positions=positions)

    def cut(self, dim: int, parts) -> tuple["Value", ...]:
        """Return the parts along `dim`, which `parts` makes of the entries."""
        if self.is_root:
            raise Unsupported("its input cannot be rescaled")
        if not self.is_channel_axis(dim):
            raise OtherAxis("it takes a part of another axis than the channels")
        entries = self.channels
        certain = dim == -1 and self.ndim is None
        whole = self if certain else self.as_matrix(entries, len(entries))
        found = tuple(replace(whole, pieces=(part,)) for part in parts(entries))
        if dim != -1 or not whole.doubt or whole.doubt.width in (None, 1):
            return found
        try:  # what becomes of the last axis if it is no matrix
            widths = [len(part) for part in parts(torch.arange(whole.doubt.width))]
        except OtherAxis:
            return tuple(replace(part, doubt=None) for part in found)
        if len(widths) != len(found):
            raise OtherAxis("it may be sequences, of which it takes another number of parts")
        return tuple(replace(part, doubt=replace(part.doubt, width=width)) for part, width in zip(found, widths))


def common_rows(values) -> object:
    """Return the `rows` of all `values`, or others if they are not the same."""
    first = values[0].rows
    return first if all(value.rows == first for value in values) else object()


def common_doubt(values) -> Doubt | None:
    """Return what depends on any of `values` being a matrix."""
    doubts = [value.doubt for value in values if value.doubt]
    if not doubts:
        return None
    widths = [doubt.width for doubt in doubts]
    return Doubt(torch.cat([doubt.entries for doubt in doubts]), None if None in widths else min(widths))


def concatenate(values, dim: int, merge) -> Value:
    """Return the concatenation of `values` along `dim`; `merge` joins two tensors of entries, along other axes."""
    known = [value for value in values if not value.is_root]
    rows = common_rows(values) if dim > 0 or (known and known[0].is_channel_axis(dim)) else object()
    if not known:
        return Value(rows=rows)
    first = replace(known[0], ndim=next((value.ndim for value in known if value.ndim), None), rows=rows)
    if any(value.axis != first.axis for value in known):
        raise Unsupported("it joins tensors whose channels lie differently")
    if first.is_channel_axis(dim):
        pieces = tuple(piece for value in values for piece in value.pieces)
        flat = sum((value.layout for value in values), ()) if any(value.flat for value in known) else ()
        return replace(first, pieces=pieces, flat=flat, **_axes_of_joined(known, dim))
    if len(known) < len(values):
        raise Unsupported("it joins what can be rescaled with what cannot")
    entries = first.channels
    for value in known[1:]:
        if len(value.channels) != len(entries):
            raise OtherAxis("it joins tensors of different numbers of channels")
        entries = merge(entries, value.channels)
    return replace(first, pieces=(entries,), positions=object(), doubt=common_doubt(known))


def _axes_of_joined(values, dim: int) -> dict:
    """Return `ndim` and `doubt` of a concatenation along the channels, of which there is one matrix, or none."""
    ndim = next((value.ndim for value in values if value.ndim), None)
    if any(value.is_matrix for value in values):
        return {"ndim": 2, "doubt": None}
    doubt = common_doubt(values)
    if dim != 1:
        if doubt and doubt.width:
            raise OtherAxis("what it joins may have been cut along positions instead of channels")
        return {"ndim": ndim, "doubt": doubt}
    if (ndim or 2) > 2:
        return {"ndim": ndim, "doubt": None}
    # Sequences of different widths cannot be joined along their positions.
    widths = {_width(value) for value in values} - {None}
    if len(widths) > 1 and 1 not in widths:
        return {"ndim": 2, "doubt": None}
    no_entries = torch.zeros(0, dtype=torch.long)
    width = None if doubt and doubt.width is None else min(widths, default=None)
    return {"ndim": 2, "doubt": Doubt(doubt.entries if doubt else no_entries, width)}


def _width(value: Value) -> int | None:
    if value.doubt:
        return value.doubt.width
    return None if None in value.pieces else len(value.channels)
