"""Which parameters have gradients, and where each stands in a feature vector.

A net and the choice `layers` enter; the chosen parameters and one `Block` for each leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Block:
    """The place of one parameter tensor in the gradient of one candidate label.

    Parameters
    ----------
    name : str
        Name of the parameter in the net, such as ``"conv1.weight"``.
    shape : tuple of int
        Its shape; the block holds its entries in C order.
    start : int
        The first of its columns.

    Examples
    --------
    >>> from sklearn_gradspace.gradients import Block
    >>> block = Block("conv1.weight", (2, 3), start=10)
    >>> block.size, block.slice, block.layer
    (6, slice(10, 16, None), 'conv1')
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def slice(self) -> slice:
        """The columns of the block."""
        return slice(self.start, self.start + self.size)

    def shaped(self, gradients: Tensor) -> Tensor:
        """Return a view with the parameter's shape in the place of the last axis.

        Parameters
        ----------
        gradients : Tensor of shape (..., size)
            Gradients of the parameter.

        Returns
        -------
        view : Tensor of shape (..., ``*shape``)
            The same numbers.
        """
        return gradients if len(self.shape) == 1 else gradients.view((*gradients.shape[:-1], *self.shape))

    def shaped_by_tap(self, gradients: Tensor) -> Tensor:
        """Return what `shaped` does, for memory in which a kernel's taps stand before its channels.

        Products of windows come so.

        Parameters
        ----------
        gradients : Tensor of shape (..., size)
            Gradients of the parameter, the axes of the kernel before that of the channels.

        Returns
        -------
        view : Tensor of shape (..., ``*shape``)
            The same numbers.
        """
        if len(self.shape) < 3:
            return self.shaped(gradients)
        n_out, c, *kernel = self.shape
        return gradients.unflatten(-1, (n_out, *kernel, c)).movedim(-1, gradients.ndim)

    def numbered_names(self, n: int) -> list[str]:
        """Return names such as ``"conv1.weight<0>"`` for n columns that are no entries of the parameter.

        Parameters
        ----------
        n : int
            Number of columns.

        Returns
        -------
        names : list of str
            One a column.
        """
        return [f"{self.name}<{i}>" for i in range(n)]

    @property
    def layer(self) -> str:
        """Name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]


def choose_parameters(net: nn.Module, layers: str | Sequence[str] = "weights") -> dict[str, nn.Parameter]:
    """Return the trainable parameters of `net` that `layers` names, in the net's order.

    Parameters
    ----------
    net : Module
        Shared parameters are listed once, under their first name.
    layers : {"weights", "all"}, pattern or sequence of patterns
        "weights" leaves the biases out. A pattern such as ``"conv*.weight"`` is matched with the parameter names as the
        shell matches file names.

    Raises
    ------
    ValueError
        Where the net has no parameters, all of them are frozen, or a pattern matches none.
    """
    if not isinstance(net, nn.Module):
        if isinstance(net, type):
            raise TypeError(f"net is the class {net.__name__}: pass a trained instance of it.")
        raise TypeError(f"net must be a torch Module, not {type(net).__name__}.")
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            whose = f"layer {name!r} of net" if name else "net"
            raise TypeError(
                f"{whose} is a ScriptModule, whose layers cannot be looked into: pass the module it was made from."
            )
    named = dict(net.named_parameters())
    if not named:
        raise ValueError(f"net has no parameters: {type(net).__name__} has no gradient space.")
    empty = [name for name, p in named.items() if is_lazy(p)]
    if empty:
        raise ValueError(
            f"net has parameters without values, {', '.join(empty)}: pass it a batch, and train it, first."
        )
    if meta := [name for name, p in named.items() if p.is_meta]:
        raise ValueError(f"{', '.join(meta)} of net are on the meta device and have no values: load its weights first.")
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "all parameters of net are frozen (requires_grad=False): unfreeze those whose gradients are wanted with "
            "parameter.requires_grad_()."
        )
    if isinstance(layers, str) and layers == "all":
        return _real(trainable)
    if isinstance(layers, str) and layers == "weights":
        weights = {name: p for name, p in trainable.items() if not _is_bias(name)}
        if not weights:
            raise ValueError(f"layers='weights' leaves nothing: net has only {', '.join(trainable)}. Use layers='all'.")
        return _real(weights)
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(name, str) for name in patterns):
        raise ValueError(f"layers={layers!r} is neither 'weights', 'all', a pattern nor a list of patterns.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise ValueError(
                f"layers: no trainable parameter matches {pattern!r}. Trainable are {', '.join(trainable)}."
            )
    return _real({name: p for name, p in trainable.items() if any(fnmatchcase(name, pattern) for pattern in patterns)})


def _real(chosen: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the parameters, or name those of which there are no real gradients."""
    if unreal := [name for name, p in chosen.items() if not p.is_floating_point()]:
        raise ValueError(
            f"{', '.join(unreal)}: gradients are real, and these parameters are of {chosen[unreal[0]].dtype}. Choose "
            "others by `layers`, or keep their real and imaginary parts as the parameter (torch.view_as_real)."
        )
    if not sum(p.numel() for p in chosen.values()):
        raise ValueError(f"layers={[*chosen]} have no entries.")
    return chosen


def _is_bias(name: str) -> bool:
    # torch keeps the parts of a parametrized bias as "parametrizations.bias.original0" and so on.
    _, parametrized, parts = name.rpartition("parametrizations.")
    return "bias" in (parts.partition(".")[0] if parametrized else name.rpartition(".")[2])


def make_blocks(parameters: dict[str, nn.Parameter]) -> tuple[Block, ...]:
    """Return the blocks of `parameters`, one after the other in a vector."""
    blocks, start = [], 0
    for name, parameter in parameters.items():
        blocks.append(Block(name, tuple(parameter.shape), start))
        start += parameter.numel()
    return tuple(blocks)
