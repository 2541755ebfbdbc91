"""The net's output, and the scalar of it that is differentiated.

Logits enter; they leave checked, or as the derivative of the cross-entropy in them.
"""

import torch
from torch import Tensor


def cross_entropy_cotangents(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return d CE / d logits = p - e_c, of shape (n, 1, n_labels), or (n, n_labels, n_labels) for all labels c."""
    n_labels = logits.shape[1]
    probabilities = logits.softmax(1)
    # 1 - p_c as the sum of the others: where the net is sure of c, the difference would be rounding error.
    others = probabilities @ (1 - torch.eye(n_labels, dtype=logits.dtype, device=logits.device))
    if labels is None:
        cotangents = probabilities.unsqueeze(1).repeat(1, n_labels, 1)
        cotangents.diagonal(dim1=1, dim2=2).copy_(-others)
        return cotangents
    labels = labels.to(logits.device).unsqueeze(1)
    return probabilities.scatter(1, labels, -others.gather(1, labels)).unsqueeze(1)


def checked_logits(logits: object, n: int) -> Tensor:
    """Return the net's output if it is a table of finite logits; say what is wrong otherwise."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(
            f"net must return logits of shape (n_samples, n_classes), at least two classes; for {n} samples it "
            f"returned {shape}. Wrap it in a module whose forward returns logits, two columns for two classes."
        )
    if not logits.is_floating_point():
        raise ValueError(f"net must return real logits; it returned {logits.dtype}.")
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"net returns NaN or infinity for rows {rows[:10]} of the batch: its gradients mean nothing.")
    return logits
