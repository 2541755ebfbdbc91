"""Rules: per-sample gradients of one layer's parameters from what entered it and what comes back to it.

The input of shape (n, ...) and the cotangents of the output, of shape (n, k, ...) for k scalars a sample, enter; the
gradients, of shape (n, k, *parameter.shape), are written where they are wanted.
"""

import warnings
from collections.abc import Callable, Mapping
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ._convolution import padded, window_products
from ._forward import LayerCall, leaves
from ._passes import slices
from ._scratch import Scratch

# Some operations have no batched form. Being slow is no reason to warn, since nothing faster is known here; and filters
# that are set for a moment are set for all threads.
warnings.filterwarnings(
    "ignore", message="There is a performance drop because we have not yet implemented the batching"
)

LayerRule = Callable[[nn.Module, str, Tensor, Tensor, Tensor, Scratch], None]


def linear(layer: nn.Linear, name: str, inputs: Tensor, deltas: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Write ``delta a^T``, summed over the positions between the sample and the feature axis."""
    if name == "bias":
        _sum(deltas, range(2, deltas.ndim - 1), out)
    elif inputs.ndim == 2:
        torch.mul(deltas.unsqueeze(3), inputs[:, None, None, :], out=out)
    else:
        inputs, deltas = inputs.flatten(1, -2), deltas.flatten(2, -2)  # (n, positions, n_in), (n, k, positions, n_out)
        for j in range(out.shape[1]):
            torch.bmm(deltas[:, j].mT, inputs, out=out[:, j])


def convolution(layer: nn.Conv2d, name: str, inputs: Tensor, deltas: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Write ``sum over positions q of delta_q u_q^T``, u_q the window of the padded input at q; 1-, 2- and 3-d."""
    if name == "bias":
        _sum(deltas, range(3, deltas.ndim), out)
    else:
        window_products(layer, padded(layer, inputs), deltas, out, scratch)


def transposed_convolution(
    layer: nn.ConvTranspose2d, name: str, inputs: Tensor, deltas: Tensor, out: Tensor, scratch: Scratch
) -> None:
    """Write ``sum over positions q of a_q u_q^T``, u_q the window of cotangents that the input at q is spread to."""
    if name == "bias":
        _sum(deltas, range(3, deltas.ndim), out)
    else:
        widths = [width for padding in reversed(layer.padding) for width in (padding, padding)]
        for j in range(out.shape[1]):
            window_products(layer, F.pad(deltas[:, j], widths), inputs.unsqueeze(1), out[:, j : j + 1], scratch)


def normalisation(layer: nn.Module, name: str, inputs: Tensor, deltas: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Write ``sum over positions of delta x``, x the normalised input: the layer's output but for its parameters."""
    if name == "weight":
        deltas = deltas * _normalised(layer, inputs).unsqueeze(1)
    trailing = isinstance(layer, (nn.LayerNorm, nn.RMSNorm))
    summed = range(2, deltas.ndim - layer.weight.ndim) if trailing else range(3, deltas.ndim)
    _sum(deltas, summed, out)


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, eps=layer.eps)
    mean, variance = (None if s is None else s.to(x.dtype) for s in (layer.running_mean, layer.running_var))
    if isinstance(layer, _InstanceNorm):
        return F.instance_norm(x, mean, variance, use_input_stats=mean is None, eps=layer.eps)
    return F.batch_norm(x, mean, variance, eps=layer.eps)


def prelu(layer: nn.PReLU, name: str, inputs: Tensor, deltas: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Write ``sum over positions of delta min(a, 0)``, for each channel or for all of them."""
    products = deltas * inputs.clamp(max=0).unsqueeze(1)
    if layer.weight.numel() == 1:
        out.copy_(products.flatten(2).sum(2, keepdim=True))
    else:
        _sum(products, range(3, products.ndim), out)


def embedding(layer: nn.Embedding, name: str, inputs: Tensor, deltas: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Write the cotangents of each index's positions into its row."""
    n, k = deltas.shape[:2]
    inputs, deltas = inputs.reshape(n, 1, -1, 1), deltas.reshape(n, k, -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        deltas = deltas * (inputs != layer.padding_idx)
    out.zero_().scatter_add_(2, inputs.expand(deltas.shape), deltas)


def _sum(tensor: Tensor, axes: range, out: Tensor) -> None:
    torch.sum(tensor, tuple(axes), out=out) if axes else out.copy_(tensor)


EXACT_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
    _BatchNorm: normalisation,
    _InstanceNorm: normalisation,
    nn.LayerNorm: normalisation,
    nn.RMSNorm: normalisation,
    nn.GroupNorm: normalisation,
    nn.PReLU: prelu,
    nn.Embedding: embedding,
}


def exact_rule(layer: nn.Module) -> LayerRule | None:
    """Return the closed form of `layer`, or None; a subclass with a forward of its own has none."""
    kinds = [kind for kind in type(layer).__mro__ if kind in EXACT_RULES and type(layer).forward is kind.forward]
    return EXACT_RULES[kinds[0]] if kinds else None


def per_sample(
    function: Callable[..., tuple[Tensor, ...]],
    parameters: dict[str, Tensor],
    samples: tuple[Tensor, ...],
    deltas: tuple[Tensor, ...],
    out: Mapping[str, Tensor],
    at_once: int,
) -> None:
    """Write gradients by `torch.func` over samples and scalars.

    Parameters
    ----------
    function : callable
        From (parameters, *arguments of one sample, each a batch of one) to outputs, batches of one.
    parameters : dict of str to Tensor
    samples : tuple of Tensor of shape (n, ...)
    deltas : tuple of Tensor of shape (n, k, ...)
        Cotangents of the outputs.
    out : dict of str to Tensor of shape (n, k, ...)
        Where to write.
    at_once : int
        Number of pairs of a sample and a scalar that are worked on at a time.
    """
    n, k = deltas[0].shape[:2]
    n_scalars = min(k, at_once)

    def of_sample(sample: tuple[Tensor, ...], delta: tuple[Tensor, ...]) -> dict[str, Tensor]:
        batches = [value.unsqueeze(0) for value in sample]
        pullback = vjp(lambda p: tuple(o.squeeze(0) for o in function(p, *batches)), parameters)[1]
        return vmap(pullback)(delta)[0]

    for rows, scalars in product(slices(n, max(1, at_once // n_scalars)), slices(k, n_scalars)):
        some = tuple(sample[rows].clone() for sample in samples)  # some functions write over their input
        for name, gradients in vmap(of_sample)(some, tuple(delta[rows, scalars] for delta in deltas)).items():
            out[name][rows, scalars].copy_(gradients)


def transform(layer: nn.Module, call: LayerCall, out: Mapping[str, Tensor], at_once: int) -> None:
    """Write the gradients of the parameters of `out` in one call of any layer, by `torch.func`."""

    def outputs(parameters: dict[str, Tensor], *samples: Tensor) -> tuple[Tensor, ...]:
        rows = iter(samples)
        values = [next(rows) if by_row else a for a, by_row in zip(call.arguments, call.by_row)]
        n_args = len(values) - len(call.keywords)
        returned = functional_call(layer, parameters, tuple(values[:n_args]), dict(zip(call.keywords, values[n_args:])))
        tensors = leaves(returned)
        return tuple(tensors[i] for i in call.outputs)

    parameters = {name: layer.get_parameter(name).detach() for name in out}
    samples = tuple(a for a, by_row in zip(call.arguments, call.by_row) if by_row)
    per_sample(outputs, parameters, samples, call.deltas, out, at_once)
