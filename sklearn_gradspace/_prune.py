"""Pruning: a net without the entries that a mask leaves out.

A trained net and a mask enter; a new net leaves, which `torch.nn.utils.prune` masks. The net itself stays as it is.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ._base_net import trained_module
from .gradients import own_copy


def prune(net, mask) -> nn.Module:
    """Return a copy of a net in which all entries outside of a mask are zero, and stay so in training.

    Parameters
    ----------
    net : Module or fitted skorch net
        The net, which is not changed. One that is pruned already is pruned further.
    mask : dict of str to bool array or Tensor of the parameter's shape
        Which entries stay, as of :meth:`EdgeImportance.mask`. Parameters that it leaves out stay whole.

    Returns
    -------
    pruned : Module
        A new net of the same kind, whose weights are its parameters ``weight_orig`` times ``weight_mask``, as
        `torch.nn.utils.prune` has them; ``torch.nn.utils.prune.remove`` makes that permanent. A shared parameter is
        pruned wherever it is used.

    References
    ----------
    M. Paganini, J. Forde, "Streamlining Tensor and Network Pruning in PyTorch", arXiv:2004.13770.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace import prune
    >>> net = torch.nn.Linear(3, 2)
    >>> pruned = prune(net, {"weight": torch.tensor([[True, False, True], [False, True, True]])})
    >>> int((pruned.weight == 0).sum()), int((net.weight == 0).sum())
    (2, 0)
    """
    pruned = own_copy(module_of(net))
    owners = _owners(pruned)
    for name, entries in checked_mask(pruned, mask).items():
        for module, own_name in owners[name]:
            torch_prune.custom_from_mask(module, own_name, entries)
    return pruned


def module_of(net) -> nn.Module:
    """Return the trained module that `net` is or holds."""
    module = trained_module(net)
    if module is None:
        raise TypeError(f"net must be a torch Module or a fitted skorch net, not {type(net).__name__}.")
    return module


def checked_mask(net: nn.Module, mask) -> dict[str, Tensor]:
    """Return the mask by the names of the parameters of `net`, on their devices, or say what does not match.

    In a pruned net ``"weight"`` may stand for ``"weight_orig"``.
    """
    if not isinstance(mask, Mapping) or not mask:
        raise TypeError("mask must be a dict from names of parameters to arrays of True and False, at least one.")
    parameters, found = dict(net.named_parameters()), {}
    for name, entries in mask.items():
        own = name if name in parameters else f"{name}_orig"
        if own not in parameters:
            raise ValueError(f"mask names {name!r}, but the parameters of net are {list(parameters)}.")
        parameter = parameters[own]
        entries = entries if isinstance(entries, Tensor) else torch.from_numpy(np.array(entries))
        if entries.dtype != torch.bool or entries.shape != parameter.shape:
            raise ValueError(
                f"mask[{name!r}] must be True and False of shape {tuple(parameter.shape)}; it is of shape "
                f"{tuple(entries.shape)} and dtype {entries.dtype}."
            )
        found[own] = entries.to(parameter.device)
    return found


def _owners(net: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return for each parameter, by its first name, the modules that have it, and what it is called there to torch."""
    first = {id(parameter): name for name, parameter in net.named_parameters()}
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in first.values()}
    for module in net.modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            is_masked = hasattr(module, f"{own_name.removesuffix('_orig')}_mask")
            owners[first[id(parameter)]].append((module, own_name.removesuffix("_orig") if is_masked else own_name))
    return owners
