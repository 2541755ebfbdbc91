"""Units: neurons and channels, and the weights that enter them.

A net, the name of a parameter and numbers for its entries enter; numbers for units leave.
"""

from itertools import pairwise

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd


def unit_sums(net: nn.Module, name: str, values: np.ndarray) -> np.ndarray:
    """Return the sums over the entries that enter each unit, of shape (n_units,).

    The units of a parameter are along its first axis; those of a transposed convolution along the second one, of each
    group. A number without axes is a unit.
    """
    layer = net.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, _ConvTransposeNd) and values.ndim > 1:
        grouped = values.reshape(layer.groups, -1, *values.shape[1:])  # (groups, n_in / groups, n_out / groups, ...)
        return grouped.swapaxes(1, 2).reshape(layer.out_channels, -1).sum(1)
    return values.reshape(len(values), -1).sum(1) if values.ndim else values.reshape(1)


def linear_chain(net: nn.Module, names) -> list[str]:
    """Return the names, among `names`, of the weights of linear layers of which each takes what the last gives."""
    layers = {
        name: net.get_submodule(name.rpartition(".")[0])
        for name in names
        if name.rpartition(".")[2] == "weight" and isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Linear)
    }
    chain = list(layers)
    broken = [b for a, b in pairwise(chain) if layers[a].out_features != layers[b].in_features]
    if not chain or broken:
        what = f"{broken[0]!r} does not take what comes before it" if broken else "it has no linear layers"
        raise ValueError(f"a graph needs a net of linear layers, one after the other; of this one {what}.")
    return chain
