"""The net's output, and the scalars of it that are differentiated.

Whatever a net returns enters; it leaves as a checked table of outputs, or as the derivatives of k scalars in them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ._sharing import to_device
from ._user import called

Scalar = str | Callable[[Tensor], Tensor]
# One label a row, "predicted" for the net's own, a function that finds them by the outputs, or all.
Labels = Tensor | str | Callable[[Tensor], Tensor] | None


def as_table(returned: object, n: int) -> Tensor:
    """Return the net's output as real numbers of shape (n, n_outputs); say what is wrong where it is nothing such."""
    shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
    if isinstance(returned, Tensor) and returned.shape == (n,):
        returned = returned.unsqueeze(1)
    if not isinstance(returned, Tensor) or returned.ndim != 2 or len(returned) != n or returned.shape[1] < 1:
        raise ValueError(
            f"net must return logits of shape (n_samples, n_classes), or (n_samples, 1) for one logit; for {n} samples "
            f"it returned {shape}. Pass a function that takes them from what it returns as `output` (`net_output` of "
            "GradientFeaturizer), such as `lambda returned: returned[0]`."
        )
    if not returned.is_floating_point():
        raise ValueError(f"net must return real logits; it returned {returned.dtype}.")
    return returned


class NotFiniteError(ValueError):
    """Outputs are not finite.

    Parameters
    ----------
    rows : list of int
        Numbers of the rows whose outputs are not.
    """

    def __init__(self, rows: list[int]) -> None:
        super().__init__(rows)
        self.rows = rows

    def __str__(self) -> str:
        return f"net returns NaN or infinity for rows {self.rows[:10]}: its gradients mean nothing."


@contextmanager
def counted_from(start: int) -> Iterator[None]:
    """Count the rows of errors from the beginning of an array of which row `start` was the first that was looked at."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError([start + row for row in error.rows]) from None


def check_finite(outputs: Tensor) -> Tensor:
    """Return `outputs`, or name the rows that are not finite."""
    if math.isfinite(outputs.sum().item()):  # which may overflow, but is quick
        return outputs
    finite = torch.isfinite(outputs)
    if not finite.all():
        raise NotFiniteError((~finite.all(1)).nonzero().flatten().tolist())
    return outputs


def two_logits(outputs: Tensor) -> Tensor:
    """Return logits, one for each label: a single logit z stands for (0, z)."""
    return outputs if outputs.shape[1] > 1 else nn.functional.pad(outputs, (1, 0))


def cotangents(scalar: Scalar, outputs: Tensor, labels: Labels = None) -> Tensor:
    """Return the derivatives of scalars in the outputs.

    Parameters
    ----------
    scalar : {"cross_entropy", "log_probability", "logit"} or callable
        Which scalars a row has: see `GradientEngine`.
    outputs : Tensor of shape (n, n_outputs)
    labels : Tensor of shape (n,), "predicted" or callable, optional
        The number of one scalar for each row, or that of the label that the net predicts, or a function from outputs to
        these numbers; by default all.

    Returns
    -------
    Tensor of shape (n, 1, n_outputs) or (n, n_scalars, n_outputs)
    """
    outputs = outputs.detach()
    if isinstance(labels, str):
        labels = predicted_labels(scalar, outputs)
    elif callable(labels):
        labels = labels(outputs)
    labels = None if labels is None else to_device(labels, outputs.device)
    if callable(scalar):
        return _of_function(scalar, outputs, labels)
    return _SCALARS[scalar](outputs, labels)


def label_probabilities(outputs: Tensor) -> Tensor:
    """Return the net's probabilities of shape (n, n_labels); one logit z stands for the two logits (0, z)."""
    return two_logits(outputs).softmax(1)


def predicted_labels(scalar: Scalar, outputs: Tensor) -> Tensor:
    """Return the number of each row's largest logit; a single logit stands for the two logits (0, z)."""
    if callable(scalar):
        raise ValueError(f"labels='predicted' needs one of the scalars {', '.join(map(repr, SCALARS))}, no function.")
    if outputs.shape[1] == 1 and scalar != "logit":
        return (outputs[:, 0] > 0).long()
    return outputs.argmax(1)


def _cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return d CE / d logits = p - e_c; one logit z stands for the two logits (0, z)."""
    n_labels = logits.shape[1]
    if n_labels == 1:
        both = torch.stack([logits.sigmoid(), -(-logits).sigmoid()], 1)  # (n, 2, 1)
        return both if labels is None else both.gather(1, labels.view(-1, 1, 1))
    # 1 - p_c as the sum of the others: where the net is sure of c, the difference would be rounding error.
    probabilities = logits.softmax(1)
    if labels is None:
        others = probabilities @ (1 - torch.eye(n_labels, dtype=logits.dtype, device=logits.device))
        all_labels = probabilities.unsqueeze(1).repeat(1, n_labels, 1)
        all_labels.diagonal(dim1=1, dim2=2).copy_(-others)
        return all_labels
    labels = labels.unsqueeze(1)
    others = probabilities.scatter_(1, labels, 0).sum(1, keepdim=True)
    return probabilities.scatter_(1, labels, -others).unsqueeze(1)


def _log_probability(logits: Tensor, labels: Tensor | None) -> Tensor:
    return -_cross_entropy(logits, labels)


def _logit(logits: Tensor, labels: Tensor | None) -> Tensor:
    unit = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return unit.repeat(len(logits), 1, 1) if labels is None else unit[labels].unsqueeze(1)


_SCALARS = {"cross_entropy": _cross_entropy, "log_probability": _log_probability, "logit": _logit}
SCALARS = tuple(_SCALARS)


def _of_function(scalar: Callable[[Tensor], Tensor], outputs: Tensor, labels: Tensor | None) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        outputs = outputs.clone().requires_grad_()
        values = called("scalar", scalar, outputs.clone())  # it may write over what it gets
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if isinstance(values, Tensor) and values.shape == (len(outputs),):
            values = values.unsqueeze(1)
        if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(outputs) or not values.shape[1]:
            raise ValueError(
                f"scalar must map outputs of shape (n_samples, n_outputs) to scalars of shape (n_samples, n_scalars); "
                f"for outputs of shape {tuple(outputs.shape)} it returned {shape}."
            )
        if not values.requires_grad:
            raise ValueError("scalar returns what cannot be differentiated in the outputs: it detaches them.")
        columns = values.unbind(1) if labels is None else [values.gather(1, labels.unsqueeze(1))]
        found = [torch.autograd.grad(column.sum(), outputs, retain_graph=True)[0] for column in columns]
    return torch.stack(found, 1)
