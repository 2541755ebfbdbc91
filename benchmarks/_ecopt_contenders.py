"""The contenders: where steps are made, and by which optimizer.

A net, a rate and a penalty enter; an optimizer leaves.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance

INNER = {
    "SGD": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {}),
}
_FIRST_RATE = {"SGD": -4, "momentum": -6, "Adam": -8, "Path-SGD": -6}  # of the grid, in half powers of ten
_N_RATES = 5
_SWEEP_EVERY = 16  # often: rarely would be nearly the same as once


class PathSGD(torch.optim.Optimizer):
    """Gradient descent in which each entry is divided by the diagonal of the path norm.

    The squared path norm is a sum over paths of products of squared weights. An entry's number is the derivative of
    that sum in its square: what the paths through it have without it.

    Parameters
    ----------
    module : Module
        A ReLU net of linear layers and convolutions that begins with what takes `ones`.
    ones : Tensor
        An input of ones, a batch of 1.
    lr : float
        Learning rate.

    References
    ----------
    .. [1] B. Neyshabur, R. Salakhutdinov, N. Srebro. "Path-SGD: Path-normalized optimization in deep neural networks".
       NeurIPS 2015.
    """

    def __init__(self, module: nn.Module, ones: torch.Tensor, lr: float) -> None:
        super().__init__(module.parameters(), {"lr": lr})
        self._module, self._ones = module, ones

    def diagonal(self) -> list[torch.Tensor]:
        """Return what gradients are divided by, parameter by parameter."""
        squares = {n: (p.detach() ** 2).requires_grad_() for n, p in self._module.named_parameters()}
        with torch.enable_grad():
            total = functional_call(self._module, squares, (self._ones,)).sum()
        return list(torch.autograd.grad(total, list(squares.values())))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Make a step."""
        (group,) = self.param_groups
        for parameter, number in zip(group["params"], self.diagonal()):
            parameter.addcdiv_(parameter.grad, number.clamp(min=1e-12), value=-group["lr"])


def _in_weights(net: nn.Module, ones, inner: str, lr: float, penalty: float) -> torch.optim.Optimizer:
    kind, options = INNER[inner]
    return kind(net.parameters(), lr=lr, weight_decay=penalty, **options)


def _balanced_once(net: nn.Module, *options) -> torch.optim.Optimizer:
    return _in_weights(balance(net), *options)


def _balanced(net: nn.Module, ones, inner: str, lr: float, penalty: float) -> torch.optim.Optimizer:
    kind, options = INNER[inner]
    options = options | {"weight_decay": penalty, "balance_every": _SWEEP_EVERY}
    return ECOptimizer(net, kind, method="balanced", init="keep", lr=lr, **options)


def _on_paths(net: nn.Module, ones, inner: str, lr: float, penalty: float) -> torch.optim.Optimizer:
    kind, options = INNER[inner]
    return ECOptimizer(net, kind, method="path", init="keep", lr=lr, path_penalty=penalty, **options)


def _path_sgd(net: nn.Module, ones, inner: str, lr: float, penalty: float) -> torch.optim.Optimizer:
    return PathSGD(net, ones, lr)


# Where steps are made. Penalties are weight decay, and on paths that of the basis-path norm.
SPACES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "weights": _in_weights,
    "balanced once": _balanced_once,
    "balanced": _balanced,
    "path": _on_paths,
    "Path-SGD": _path_sgd,
}
OURS = ("balanced", "path")


def rates(space: str, inner: str, lower: int = 0) -> list[float]:
    """Return the grid of a contender's learning rates, with `lower` ones more; none if there is no such contender."""
    if space == "Path-SGD" and inner != "SGD":
        return []
    first = _FIRST_RATE[space if space in _FIRST_RATE else inner]
    return [float(f"{10 ** (i / 2):.2g}") for i in range(first - lower, first + _N_RATES)]
