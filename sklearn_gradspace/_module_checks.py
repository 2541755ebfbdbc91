"""What a module that is trained takes and gives, checked on the way.

A module, a batch and its outputs enter; an error that names the layer and the shapes leaves where they do not fit.
"""

from traceback import walk_tb

import torch
from torch import Tensor, nn

from .gradients import ends_with_sigmoid, is_out_of_memory


def input_error(module: nn.Module, batch: Tensor, error: Exception) -> ValueError | None:
    """Return an error that names the layer in which a module failed, or None where it is none of the module's own."""
    if type(error) not in (RuntimeError, IndexError) or is_out_of_memory(error) or not isinstance(batch, Tensor):
        return None
    names = {layer: name for name, layer in module.named_modules()}
    frames = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)]
    calls = [(f["self"], f["args"]) for f in frames if isinstance(f.get("self"), nn.Module) and "args" in f]
    failed = [(layer, args) for layer, args in calls if layer in names and isinstance(args, tuple)]
    if not failed:
        return None
    layer, args = failed[-1]
    of = f"layer {names[layer]!r}, {layer}," if names[layer] else type(layer).__name__
    shape = f" for an input of shape {tuple(args[0].shape)}" if args and isinstance(args[0], Tensor) else ""
    return ValueError(
        f"module cannot compute samples of shape {tuple(batch.shape[1:])}: its {of} fails{shape}: "
        f"{' '.join(str(error).split())}"
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
    outputs = outputs.detach()
    rounding = 4 * n_classes * torch.finfo(outputs.dtype).eps
    sum_to_one = outputs.min() >= 0 and (outputs.sum(1) - 1).abs().max() <= rounding
    if sum_to_one or ends_with_sigmoid(module, outputs):
        raise ValueError(
            "module gives probabilities, but the loss is that of logits: leave the softmax or sigmoid at its end out. "
            "predict_proba gives probabilities all the same."
        )
