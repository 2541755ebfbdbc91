"""Other ways to per-sample gradients: a loop of backward passes, torch.func, Opacus and BackPACK.

A task enters: a net, rows, and a label for each of them or all labels. A pass leaves: a function that, called, yields
gradients by parameter as they come, which nobody keeps. A library that cannot do it raises, and says why.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import floor

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

Gradients = dict[str, Tensor]
Piece = tuple[slice, slice, Gradients]  # rows, labels, and {name: tensor that reshapes to (rows, labels, -1)}
Pass = Callable[[], Iterator[Piece]]

EVERYTHING = slice(None)


@dataclass(frozen=True)
class Task:
    """What is to be differentiated: the cross-entropy of one label a row, or of each label.

    Parameters
    ----------
    net : Module
        In evaluation mode.
    X : Tensor of shape (n, ...)
        On the net's device.
    labels : Tensor of shape (n,) or None
        None stands for all labels.
    n_labels : int
    """

    net: nn.Module
    X: Tensor
    labels: Tensor | None
    n_labels: int

    @property
    def columns(self) -> list[tuple[slice, Tensor]]:
        """The labels, one for each row at a time: where their gradients belong, and which they are."""
        if self.labels is not None:
            return [(EVERYTHING, self.labels)]
        labels = torch.arange(self.n_labels, device=self.X.device)
        return [(slice(j, j + 1), labels[j].expand(len(self.X))) for j in range(self.n_labels)]


def loop(task: Task) -> Pass:
    """A backward pass for each row and label; the labels of a row share the forward pass."""
    names, parameters = zip(*task.net.named_parameters())
    columns = task.columns

    def passes() -> Iterator[Piece]:
        for i in range(len(task.X)):
            row = slice(i, i + 1)
            outputs = task.net(task.X[row])
            for j, (column, labels) in enumerate(columns, 1):
                loss = F.cross_entropy(outputs, labels[row])
                gradients = torch.autograd.grad(loss, parameters, retain_graph=j < len(columns))
                yield row, column, {name: g.unsqueeze(0) for name, g in zip(names, gradients)}

    return passes


def torch_func(task: Task) -> Pass:
    """vmap of grad; for all labels vmap of jacrev."""
    parameters = {name: p.detach() for name, p in task.net.named_parameters()}

    def loss(parameters: Gradients, row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(task.net, parameters, (row.unsqueeze(0),)), label.unsqueeze(0))

    def losses(parameters: Gradients, row: Tensor) -> Tensor:
        return -functional_call(task.net, parameters, (row.unsqueeze(0),)).log_softmax(1).squeeze(0)

    def passes() -> Iterator[Piece]:
        if task.labels is None:
            gradients = vmap(jacrev(losses), in_dims=(None, 0))(parameters, task.X)
        else:
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, task.X, task.labels)
        yield EVERYTHING, EVERYTHING, gradients

    return passes


def opacus(mode: str) -> Callable[[Task], Pass]:
    """Opacus in one of its modes: "hooks", "functorch" or "ew", expanded weights; a pass for each label."""

    def make(task: Task) -> Pass:
        from opacus.grad_sample.utils import wrap_model

        # Its hooks pass over layers in evaluation mode.
        net = wrap_model(deepcopy(task.net).train(), mode, loss_reduction="sum").train()
        parameters = dict(net._module.named_parameters())

        def passes() -> Iterator[Piece]:
            for column, labels in task.columns:
                F.cross_entropy(net(task.X), labels, reduction="sum").backward()
                yield EVERYTHING, column, {name: p.grad_sample for name, p in parameters.items()}
                for p in parameters.values():
                    p.grad = p.grad_sample = None

        return passes

    return make


def backpack(task: Task) -> Pass:
    """BackPACK's BatchGrad; a pass for each label."""
    import backpack
    from backpack.extensions import BatchGrad

    net = deepcopy(task.net)
    parameters = dict(net.named_parameters())
    net = backpack.extend(net, use_converter=True)  # which keeps the parameters
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))

    def passes() -> Iterator[Piece]:
        for column, labels in task.columns:
            value = loss(net(task.X), labels)
            with backpack.backpack(BatchGrad()):
                value.backward()
            yield EVERYTHING, column, {name: p.grad_batch for name, p in parameters.items()}
            for p in parameters.values():
                p.grad = None
                del p.grad_batch

    return passes


PEERS: dict[str, Callable[[Task], Pass]] = {
    "torch.func": torch_func,
    "Opacus, hooks": opacus("hooks"),
    "Opacus, functorch": opacus("functorch"),
    "Opacus, expanded weights": opacus("ew"),
    "BackPACK": backpack,
    "loop": loop,
}


def selected(make: Callable[[Task], Pass], threshold: Callable[[Tensor, int], Tensor]) -> Callable[[Task], Pass]:
    """Return the maker of a pass whose gradients keep, per row and parameter, only what is above its percentile.

    Parameters
    ----------
    make : callable
        From a task of one label a row to a pass.
    threshold : callable
        From magnitudes of shape (n, size) and a rank to the order statistic of each row, of shape (n, 1).
    """

    def make_selected(task: Task) -> Pass:
        passes = make(task)

        def selecting() -> Iterator[Piece]:
            for rows, columns, gradients in passes():
                with torch.no_grad():
                    yield rows, columns, {name: _select(g.flatten(1), threshold) for name, g in gradients.items()}

        return selecting

    return make_selected


PERCENTILE = 15


def _select(gradients: Tensor, threshold: Callable[[Tensor, int], Tensor]) -> Tensor:
    magnitudes = gradients.abs()
    rank = floor(round((gradients.shape[1] - 1) * (100 - PERCENTILE) / 100, 9))
    return gradients.masked_fill_(magnitudes <= threshold(magnitudes, rank), 0)


def by_topk(magnitudes: Tensor, rank: int) -> Tensor:
    """The least of the largest."""
    return magnitudes.topk(magnitudes.shape[1] - rank, 1, sorted=False).values.amin(1, keepdim=True)


def by_kthvalue(magnitudes: Tensor, rank: int) -> Tensor:
    """The order statistic as such."""
    return magnitudes.kthvalue(rank + 1, 1, keepdim=True).values


def by_quantile(magnitudes: Tensor, rank: int) -> Tensor:
    """The lower neighbour of the percentile; of at most 16 million entries at a time, as torch.quantile takes."""
    share = 1 - PERCENTILE / 100
    rows = max(1, 2**24 // magnitudes.shape[1])
    parts = magnitudes.split(rows)
    return torch.cat([part.quantile(share, 1, keepdim=True, interpolation="lower") for part in parts])
