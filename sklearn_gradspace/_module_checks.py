"""What a module that is trained takes and gives, checked on the way.

A module, a batch and its outputs enter; an error that names the layer and the shapes leaves where they do not fit.
"""

import torch
from torch import Tensor, nn

from .gradients import is_out_of_memory


def input_error(module: nn.Module, batch: Tensor, error: Exception) -> ValueError | None:
    """Return an error that names the layer at which a module fails, or None where it is not one of the module's own."""
    if type(error) not in (RuntimeError, IndexError) or is_out_of_memory(error) or not isinstance(batch, Tensor):
        return None
    layers = {layer: name for name, layer in module.named_modules()}
    at: list[tuple] = [(module, tuple(batch.shape))]

    def enter(layer: nn.Module, inputs: tuple) -> None:
        at.append((layer, *(tuple(value.shape) for value in inputs[:1] if isinstance(value, Tensor))))

    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    try:
        with torch.no_grad():
            module(batch)
    except Exception:  # the same one
        layer, *shapes = at[-1]
    else:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    of = f"layer {layers[layer]!r}, {layer}," if layers[layer] else f"{type(layer).__name__}"
    return ValueError(
        f"module cannot compute samples of shape {tuple(batch.shape[1:])}: its {of} fails"
        f"{f' for an input of shape {shapes[0]}' if shapes else ''}: {' '.join(str(error).split())}"
    )


def check_probabilities(outputs: Tensor) -> None:
    """Raise ValueError where outputs for skorch's NLLLoss, which takes the logarithm, have negative entries."""
    if isinstance(outputs, Tensor) and outputs.min() < 0:
        raise ValueError(
            "module gives negative numbers, but of criterion=NLLLoss skorch takes the logarithm itself, so that it "
            "needs probabilities. For logits, and for the log_softmax of some, leave criterion=CrossEntropyLoss."
        )


def check_logits(module: nn.Module, outputs: Tensor, n_classes: int) -> None:
    """Raise ValueError where outputs are not one logit a class, such as probabilities."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"module must return a tensor of logits, not a {type(outputs).__name__}.")
    if outputs.ndim != 2 or outputs.shape[1] != n_classes:
        shape = ", ".join(["n", *map(str, outputs.shape[1:])])
        raise ValueError(
            f"module gives outputs of shape ({shape}), but there are {n_classes} classes: it must give logits of shape "
            f"(n, {n_classes}). Classes that y lacks are named by classes=[...]."
        )
    *_, last = module.modules()
    outputs = outputs.detach()
    rounding = 4 * n_classes * torch.finfo(outputs.dtype).eps
    # A sigmoid that comes last among the layers may be a hidden one.
    sigmoid = isinstance(last, nn.Sigmoid) and outputs.max() <= 1
    if outputs.min() >= 0 and (sigmoid or (outputs.sum(1) - 1).abs().max() <= rounding):
        raise ValueError(
            "module gives probabilities, but the loss is that of logits: leave the softmax or sigmoid at its end out. "
            "predict_proba gives probabilities all the same."
        )
