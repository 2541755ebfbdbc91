"""A net for the laws of the scale graph, with what is known of it by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch
from drawn import drawn
from torch import nn


@dataclass(frozen=True)
class Case:
    """A net with `units` units that can be scaled, counted by hand, and rows for it; the same each time.

    `extra` is by how much the rank of the function's Jacobian falls short of m - `units` for another reason, `why`.
    `approximate` of the units are free but for a batch norm's eps. `pinned` are parts of the names of what
    the report says that pins units. With `seed` every unit is on in some rows and off in others.
    """

    name: str
    build: Callable[[], nn.Module]
    units: int
    shape: tuple[int, ...] = (4,)
    extra: int = 0
    why: str = ""
    approximate: int = 0
    pinned: tuple[str, ...] = ()
    seed: int = 0

    def net(self, dtype=torch.float64) -> nn.Module:
        """Return a new net: in training mode where it has batch norms, else in evaluation mode."""
        net = drawn(self.build, crc32(self.name.encode()) + self.seed)
        return net.to(dtype).train(self.has_batch_norm(net))

    def X(self, n=40, dtype=torch.float64) -> torch.Tensor:
        """Return rows of shape (n, *shape)."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()) + self.seed)
        X = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)
        size = torch.rand(n, *[1] * len(self.shape), generator=generator, dtype=torch.float64)
        return (X * 10 ** (2 * size - 1)).to(dtype)

    @staticmethod
    def has_batch_norm(net) -> bool:
        """Return whether the statistics of a batch are part of the function."""
        return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules())
