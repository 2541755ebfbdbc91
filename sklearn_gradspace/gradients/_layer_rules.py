"""Rules: per-sample gradients of one layer's parameters from what entered it and what comes back to it.

The input of shape (n, ...) and the cotangents of the output, of shape (n, k, ...) for k scalars a sample, enter; the
gradients, of shape (n, k, *parameter.shape), leave.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

LayerRule = Callable[[nn.Module, str, Tensor, Tensor], Tensor]

_WINDOW_BYTES = 2**20  # window copies of this size stay in the cache of a CPU core


def linear(layer: nn.Linear, name: str, inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``delta a^T``, summed over the positions between the sample and the feature axis."""
    if name == "bias":
        return cotangents.flatten(2, -2).sum(2) if cotangents.ndim > 3 else cotangents
    if inputs.ndim == 2:
        return cotangents.unsqueeze(3) * inputs[:, None, None, :]
    n, k, *_, n_out = cotangents.shape
    inputs = inputs.flatten(1, -2)  # (n, positions, n_in)
    cotangents = cotangents.flatten(2, -2).transpose(2, 3)  # (n, k, n_out, positions)
    return torch.bmm(cotangents.reshape(n, k * n_out, -1), inputs).view(n, k, n_out, -1)


def convolution(layer: nn.Conv2d, name: str, inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``sum over positions q of delta_q u_q^T``, u_q the window of the padded input at q; 1-, 2- and 3-d."""
    if name == "bias":
        return cotangents.flatten(3).sum(3)
    n, k = cotangents.shape[:2]
    windows = _windows(layer, inputs)  # (n, *positions, *kernel, c_in), a view
    positions, window = windows.shape[1 : 1 + inputs.ndim - 2], windows.shape[1 + inputs.ndim - 2 :]
    groups, c_out, c_in = layer.groups, layer.out_channels // layer.groups, layer.in_channels // layer.groups
    n_positions, n_taps = positions.numel(), window[:-1].numel()
    cotangents = cotangents.reshape(n, k, groups, c_out, n_positions)
    gradients = inputs.new_empty(n, k, groups, c_out, c_in, n_taps)
    rows = max(1, _WINDOW_BYTES // (n_positions * window.numel() * inputs.element_size()))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        u = windows[part].reshape(-1, n_positions, n_taps, groups, c_in)
        u = u.permute(0, 3, 1, 2, 4).reshape(-1, n_positions, n_taps * c_in)  # (rows · groups, positions, taps · c_in)
        delta = cotangents[part].transpose(1, 2).reshape(-1, k * c_out, n_positions)
        product = torch.bmm(delta, u).view(-1, groups, k, c_out, n_taps, c_in)
        gradients[part] = product.permute(0, 2, 1, 3, 5, 4)
    return gradients.view(n, k, *layer.weight.shape)


def _windows(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Return the view of shape (n, *positions, *kernel, channels) on the padded input, channels last."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    padded = padded.movedim(1, -1).contiguous()
    sizes, strides = padded.shape[1:-1], padded.stride()[1:-1]
    positions = [
        (size - dilation * (tap - 1) - 1) // step + 1
        for size, tap, step, dilation in zip(sizes, layer.kernel_size, layer.stride, layer.dilation)
    ]
    return padded.as_strided(
        (len(inputs), *positions, *layer.kernel_size, inputs.shape[1]),
        (
            padded.stride(0),
            *(stride * step for stride, step in zip(strides, layer.stride)),
            *(stride * dilation for stride, dilation in zip(strides, layer.dilation)),
            1,
        ),
    )


EXACT_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
}


def exact_rule(layer: nn.Module) -> LayerRule | None:
    """Return the closed form of `layer`, or None; a subclass with a forward of its own has none."""
    for kind, rule in EXACT_RULES.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return rule
    return None


def transform(module: nn.Module, names: Sequence[str], inputs: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
    """Return the gradients of `module`'s parameters `names`, any module, by `torch.func` over samples and scalars."""
    parameters = {name: module.get_parameter(name).detach() for name in names}
    inputs = inputs.clone()  # for modules that write over their input

    def of_sample(sample: Tensor, delta: Tensor) -> dict[str, Tensor]:
        pullback = vjp(lambda p: functional_call(module, p, (sample.unsqueeze(0),)).squeeze(0), parameters)[1]
        return vmap(pullback)(delta)[0]

    with warnings.catch_warnings():
        # Some operations have no batched form; being slow is no reason to warn, since nothing faster is known here.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return vmap(of_sample)(inputs, cotangents)
