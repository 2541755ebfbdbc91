"""Units: neurons and channels, and the weights that enter them.

A net, the name of a parameter and numbers for its entries enter; numbers for units leave.
"""

from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from .gradients import leaves, masked_weight, owner, plain_name, shared_copy


def unit_sums(net: nn.Module, name: str, values: np.ndarray) -> np.ndarray:
    """Return the sums over the entries that enter each unit, of shape (n_units,).

    The units of a parameter are along its first axis; those of a transposed convolution along the second one, of each
    group. A number without axes is a unit.
    """
    layer = owner(net, name)[0]
    if isinstance(layer, _ConvTransposeNd) and values.ndim > 1:
        grouped = values.reshape(layer.groups, -1, *values.shape[1:])  # (groups, n_in / groups, n_out / groups, ...)
        return grouped.swapaxes(1, 2).reshape(layer.out_channels, -1).sum(1)
    return values.reshape(len(values), -1).sum(1) if values.ndim else values.reshape(1)


def linear_chain(net: nn.Module, names, sample_shape: tuple[int, ...] | None = None) -> list[str]:
    """Return the names of the weights of a net of linear layers, each of which takes what the last gives.

    Parameters
    ----------
    net : Module
    names : iterable of str
        Plain names of the parameters to draw.
    sample_shape : tuple of int, optional
        Shape of a sample. With it the net is run, to see that nothing leads past a layer.

    Raises
    ------
    ValueError
        Where the net is none such, or not all of its weights are to be drawn.
    """
    owners = {name: owner(net, name)[0] for name in names if name.rpartition(".")[2] == "weight"}
    layers = {name: layer for name, layer in owners.items() if isinstance(layer, nn.Linear)}
    reason = _misfit(net, layers) or (None if sample_shape is None else _bypass(net, layers, sample_shape))
    if reason:
        raise ValueError(f"a graph needs a net of linear layers, one after the other; of this one {reason}.")
    return list(layers)


def _misfit(net: nn.Module, layers: dict[str, nn.Linear]) -> str | None:
    """Return which weight of a net is none of its layers', or does not fit the layer before; None if all are well."""
    weights = {plain_name(net, name) for name, p in net.named_parameters(remove_duplicate=False) if p.ndim > 1}
    left_out = sorted(weights - layers.keys())
    if left_out:
        return f"{left_out[0]!r} is no linear layer's, is shared, or was left out of the importances"
    broken = [b for a, b in pairwise(layers) if layers[a].out_features != layers[b].in_features]
    if broken:
        return f"{broken[0]!r} does not take what comes before it"
    return None if layers else "nothing is a linear layer"


def _bypass(net: nn.Module, layers: dict[str, nn.Linear], sample_shape: tuple[int, ...]) -> str | None:
    """Return in what a net is no chain of its layers: the order of calls, or a way around one; None if it is one."""
    first = next(iter(layers))
    if layers[first].in_features != prod(sample_shape):
        return f"{first!r} does not take the {prod(sample_shape)} features of a sample"
    X = torch.ones(1, *sample_shape).to(masked_weight(net, first)).requires_grad_()
    for cut in layers:
        twin = shared_copy(net).requires_grad_(False)
        called: list = []
        for name in layers:

            def record(layer, args, output, name=name, cut=cut, called=called):
                called.append(name)
                return output.detach() if name == cut else output

            owner(twin, name)[0].register_forward_hook(record)
        with torch.inference_mode(False), torch.enable_grad():
            returned = leaves(twin(X))[0]
        if called != list(layers):
            return "the layers are not called once each, in their order"
        if returned.requires_grad:
            return f"something leads past {cut!r}"
    return None
