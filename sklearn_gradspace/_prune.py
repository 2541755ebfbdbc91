"""Pruning: a net without the entries that a mask leaves out.

A trained net and a mask enter; a new net leaves, which `torch.nn.utils.prune` masks. The net itself stays as it is.
"""

from collections.abc import Mapping

import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.prune import BasePruningMethod

from ._base_net import trained_module
from .gradients import as_bool, by_torchs_names, own_copy, plain_name


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
        `torch.nn.utils.prune` has them: names of parameters and keys of the state_dict change with that, but masks go
        by the old names as well. ``torch.nn.utils.prune.remove`` makes it permanent. A shared parameter is pruned
        wherever it is used.

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
    with torch.no_grad():  # else torch keeps masked weights with a graph, which cannot be copied
        for name, entries in checked_mask(pruned, mask).items():
            for module, own_name in owners[name]:
                torch_prune.custom_from_mask(module, own_name, entries)
    if mask_weights not in pruned._forward_pre_hooks.values():
        pruned.register_forward_pre_hook(mask_weights)
    return pruned


def mask_weights(net: nn.Module, inputs=None) -> None:
    """Compute the masked weights of a net anew.

    torch does so when the module that has them is called. This, called with the net, is for weights that are read
    elsewhere: those of an attention's output projection, say.
    """
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                hook(module, inputs)


def module_of(net) -> nn.Module:
    """Return the trained module that `net` is or holds."""
    module = trained_module(net)
    if module is None and isinstance(net, (NeuralNet, FrozenEstimator)):
        raise NotFittedError("net is a skorch net that is not fitted: fit it first.")
    if module is None:
        raise TypeError(f"net must be a torch Module or a fitted skorch net, not {type(net).__name__}.")
    return module


def checked_mask(net: nn.Module, mask) -> dict[str, Tensor]:
    """Return the mask by the names of the parameters of `net`, on their devices, or say what does not match.

    In a pruned net ``"weight"`` and ``"weight_orig"`` are the same.
    """
    if not isinstance(mask, Mapping) or not mask:
        raise TypeError("mask must be a dict from names of parameters to arrays of True and False, at least one.")
    parameters, found = dict(net.named_parameters()), {}
    for name, entries in by_torchs_names(net, mask, "mask").items():
        if name not in parameters:
            names = [plain_name(net, known) for known in parameters]
            raise ValueError(f"mask names {name!r}, but the parameters of net are {names}.")
        parameter = parameters[name]
        array = as_bool(entries, tuple(parameter.shape), f"mask[{name!r}]")
        found[name] = torch.from_numpy(array.copy()).to(parameter.device)
    return found


def _owners(net: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return for each parameter, by its first name, the modules that have it, and its plain name there."""
    first = {id(parameter): name for name, parameter in net.named_parameters()}
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in first.values()}
    for module in net.modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            owners[first[id(parameter)]].append((module, plain_name(module, own_name)))
    return owners
