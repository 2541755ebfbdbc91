"""Names of parameters: whose they are, and what pruning makes of them.

`torch.nn.utils.prune` renames ``"0.weight"`` to ``"0.weight_orig"`` and puts ``weight_mask`` beside it. Here such a
parameter keeps the name that it had.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that has a parameter, and what the parameter is called there."""
    path, _, own = name.rpartition(".")
    return net.get_submodule(path), own


def plain_name(net: nn.Module, name: str) -> str:
    """Return the name that a parameter had before pruning."""
    module, own = owner(net, name)
    plain = own.removesuffix("_orig")
    return name.removesuffix("_orig") if plain != own and f"{plain}_mask" in module._buffers else name


def masked_weight(net: nn.Module, name: str) -> Tensor:
    """Return a parameter by its plain name, detached; in a pruned net with zeros for what is pruned."""
    module, own = owner(net, name)
    if own in module._parameters:
        return module.get_parameter(own).detach()
    return module.get_parameter(f"{own}_orig").detach() * module.get_buffer(f"{own}_mask")


def by_torchs_names(net: nn.Module, given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a dict by names of parameters by torch's names, which may hold plain ones; say so where it has both."""
    torchs = {plain_name(net, name): name for name, _ in net.named_parameters()}
    found: dict[str, Any] = {}
    for name, value in given.items():
        own = torchs.get(name, name)
        if own in found:
            raise ValueError(f"{what} names the parameter {own!r} twice, with and without '_orig'.")
        found[own] = value
    return found
