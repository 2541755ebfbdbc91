"""Group norms of images whose channels come last in memory, of which torch's backward pass may end the process.

A net enters; hooks on its group norms are left behind, which reorder what these take.
"""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def guard_group_norms(module: nn.Module) -> list[RemovableHandle]:
    """Give the group norms of a module their images in the usual order of memory, and return the handles of the hooks.

    With channels last torch writes the gradient of images also where nobody asked for it and there is no place for it,
    of which the process dies (2.13, on the CPU).
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    return [layer.register_forward_pre_hook(_in_usual_order) for layer in norms]


def _in_usual_order(layer: nn.GroupNorm, args: tuple) -> tuple:
    images, *more = args
    if images.ndim < 4 or images.stride(1) != 1:
        return args
    return images.clone(memory_format=torch.contiguous_format), *more
