"""On MLPs without biases, path values as coordinates and skeleton weights 1: the rule that the authors published.

Skeleton weights are the diagonals, with indices modulo the narrower side. They are held at 1 but for those of the
widest layer, which move.
"""

import copy

import pytest
import torch
from asserts import assert_close
from optim.training import SGD, loss_of
from pathspace.nets import mlp

from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, equivalent, scale_graph
from sklearn_gradspace.pathspace._skeleton import find_skeleton


class AuthorsRule:
    """G-SGD, weight by weight.

    Parameters
    ----------
    net : Sequential
        Linear layers without biases, every second one of the modules.
    onward, back : dict
        From (l, j), unit j in front of layer l, to the unit behind that layer to which its skeleton leads, and back.
        Where a layer is not square there is a choice.
    """

    def __init__(self, net, onward, back):
        self.layers = net[::2]
        self.widest = max(range(len(self.layers)), key=lambda k: max(self.layers[k].weight.shape))
        self.onward, self.back = onward, back

    def moving_weight_of(self, layer, row, column):
        """Return (row, column) in the widest layer of the skeleton weight on the path through a weight."""
        if layer < self.widest:
            unit = row
            for k in range(layer + 1, self.widest):
                unit = self.onward[k, unit]
            return self.onward[self.widest, unit], unit
        unit = column
        for k in range(layer - 1, self.widest, -1):
            unit = self.back[k, unit]
        return unit, self.back[self.widest, unit]

    @torch.no_grad()
    def step(self, lr):
        moving = self.layers[self.widest].weight
        paths = {}  # of each weight outside the widest layer: its moving weight
        total = torch.zeros_like(moving)  # of all that move with a moving weight: w dL/dw
        for k, layer in enumerate(self.layers):
            for i, j in self.entries(k) if k != self.widest else ():
                paths[k, i, j] = s = self.moving_weight_of(k, i, j)
                total[s] += layer.weight[i, j] * layer.weight.grad[i, j]
        before = moving.clone()
        moving -= lr * (moving * moving.grad - total) / moving
        for (k, i, j), s in paths.items():
            weight = self.layers[k].weight
            value = weight[i, j] * before[s] - lr * weight.grad[i, j] / before[s]
            weight[i, j] = value / moving[s]

    def entries(self, k):
        """Yield the weights of layer k that are not on the diagonal, whose weights are held."""
        n_out, n_in = self.layers[k].weight.shape
        diagonal = {(i % n_out, i % n_in) for i in range(max(n_out, n_in))}
        return [(i, j) for i in range(n_out) for j in range(n_in) if (i, j) not in diagonal]


def skeleton_of(net):
    """Return the choices (onward, back) that the optimizer makes: the largest weights of the canonical twin."""
    net = balance(copy.deepcopy(net))
    graph = scale_graph(net)
    skeleton, layers = find_skeleton(graph, dict(net.named_parameters())), net[::2]
    first = [0, *torch.tensor([layer.weight.numel() for layer in layers]).cumsum(0).tolist()]
    onward, back = {}, {}
    for unit in range(1, graph.n_units + 1):
        k = int(graph.unit_names[unit - 1].split("[")[0]) // 2
        for entries, layer in ((skeleton.entry_in, k), (skeleton.entry_out, k + 1)):
            row, column = divmod(int(entries[unit]) - first[layer], layers[layer].in_features)
            assert (row - column) % min(layers[layer].weight.shape) == 0  # on the diagonal
            (back if layer == k else onward)[layer, row if layer == k else column] = column if layer == k else row
    return onward, back


WIDTHS = [(4, 4, 4, 4), (3, 4, 5, 6), (6, 5, 4, 3), (3, 5, 6, 4), (2, 4, 4, 4, 3)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_step_for_step(widths):
    net = mlp(*widths, bias=False).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight *= 0.4
    optimizer = ECOptimizer(net, SGD, method="path", units="raw", init="skeleton", lr=0.02)
    authors = copy.deepcopy(net)
    assert all((layer.weight == 1).sum() == max(layer.weight.shape) for layer in net[::2])
    rule = AuthorsRule(authors, *skeleton_of(net))
    X, y = torch.rand(20, widths[0], dtype=torch.float64), torch.arange(20) % widths[-1]
    start = net(X)
    for _ in range(30):
        for model in (net, authors):
            model.zero_grad()
            loss_of(model, X, y).backward()
        optimizer.step()
        rule.step(0.02)
        assert_close(net(X), authors(X), 1e-11)
    assert equivalent(net, authors, rtol=1e-11)
    assert (net(X) - start).abs().max() > 0.01


def test_weights_that_are_held_stay_one():
    """In the authors' rule; and with square layers all paths are as in the optimizer, whichever layer moves."""
    net = mlp(4, 4, 4, 4, bias=False).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(0.4).fill_diagonal_(1)
    start, X, y = copy.deepcopy(net), torch.rand(20, 4, dtype=torch.float64), torch.arange(20) % 4
    square = {(k, i): i for k in range(3) for i in range(4)}
    trained = []
    for widest in range(3):
        model = copy.deepcopy(start)
        rule = AuthorsRule(model, square, square)
        rule.widest = widest
        for _ in range(10):
            model.zero_grad()
            loss_of(model, X, y).backward()
            rule.step(0.05)
        trained.append(model)
        for k in range(3):
            assert (model[2 * k].weight.diagonal() == 1).all() == (k != widest)
    assert equivalent(trained[0], trained[1], rtol=1e-11) and equivalent(trained[0], trained[2], rtol=1e-11)
