"""Gradients of every scalar are the chain rule's, from the Jacobian of the outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asserts import assert_close
from cases import BY_NAME
from nets import sum_and_product
from torch import nn

from sklearn_gradspace.gradients import GradientEngine

NAMES = [
    "mlp of two layers", "conv2d twice", "layer norm", "transformer", "tied weights", "lstm", "embedding", "one logit",
    "one logit without an axis", "returns a tuple", "parameters without axes",
]  # fmt: skip
each = pytest.mark.parametrize("name", NAMES)


def losses(logits):
    """Return the cross-entropies of every label, as a user would write them."""
    return -two_or_more(logits).log_softmax(1)


def two_or_more(logits):
    return logits if logits.shape[1] > 1 else F.pad(logits, (1, 0))


@each
def test_cross_entropy_is_the_jacobian_weighted_by_probability_minus_label(name, device):
    case = BY_NAME[name]
    jacobian = case.engine(device, scalar="logit")(case.X)
    engine = case.engine(device)
    outputs = engine.outputs(case.X)
    probabilities = two_or_more(outputs).softmax(1)
    weights = probabilities.unsqueeze(1) - torch.eye(engine.n_labels, dtype=torch.float64, device=device)
    assert_close(engine(case.X), weights[..., -outputs.shape[1] :] @ jacobian)


@each
def test_log_probability_is_minus_cross_entropy(name, device):
    case = BY_NAME[name]
    negative = case.engine(device, scalar="log_probability")(case.X)
    assert_close(-negative, case.engine(device)(case.X), 1e-14)


@each
@pytest.mark.parametrize("scalar, function", [
    ("cross_entropy", losses), ("log_probability", lambda z: -losses(z)), ("logit", lambda z: z)
], ids=["cross_entropy", "log_probability", "logit"])  # fmt: skip
def test_a_function_gives_the_same_as_the_scalar_that_it_is(name, scalar, function, device):
    case = BY_NAME[name]
    known, own = case.engine(device, scalar=scalar), case.engine(device, scalar=function)
    assert own.n_labels == known.n_labels and own.rules == known.rules
    assert_close(own(case.X), known(case.X))
    labels = torch.arange(case.n) % known.n_labels
    assert_close(own(case.X, labels), known(case.X, labels))


@each
def test_functions_are_differentiated_by_the_chain_rule(name, device):
    case = BY_NAME[name]
    jacobian = case.engine(device, scalar="logit")(case.X)
    engine = case.engine(device, scalar=sum_and_product)
    z = engine.outputs(case.X)
    others = [z[:, [i for i in range(z.shape[1]) if i != j]].prod(1) for j in range(z.shape[1])]
    assert_close(engine(case.X), torch.stack([torch.ones_like(z), torch.stack(others, 1)], 1) @ jacobian)


@pytest.mark.parametrize("scalar", ["cross_entropy", "log_probability"])
def test_one_logit_is_that_of_the_second_of_two_labels(scalar, device):
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = BY_NAME["one logit"].net()

        def forward(self, x):
            return F.pad(self.net(x), (1, 0))

    case = BY_NAME["one logit"]
    one, two = case.engine(device, scalar=scalar), case.engine(device, net=Doubled(), scalar=scalar)
    assert one.n_labels == two.n_labels == 2
    assert_close(one(case.X), two(case.X))
    assert_close(one(case.X, torch.ones(case.n, dtype=torch.long)), two(case.X)[:, 1])


@pytest.mark.parametrize("name", ["one logit", "regression", "conv2d", "embedding"])
def test_an_axis_of_one_logit_does_not_show(name, device):
    case = BY_NAME[name]
    column = case.engine(device, scalar="cross_entropy", output=lambda z: z[:, :1])
    vector = case.engine(device, scalar="cross_entropy", output=lambda z: z[:, 0])
    assert torch.equal(column(case.X), vector(case.X)) and vector.outputs(case.X).shape == (case.n, 1)


class Nested(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return {"scores": [None, (self.body(x), x)]}


def test_outputs_may_be_of_a_row_that_is_nested_deep(device):
    case = BY_NAME["mlp of two layers"]
    returned = case.engine(device, net=Nested(case.net()), output=lambda of: of["scores"][1][0])
    assert_close(returned(case.X), case.engine(device)(case.X), 0)


@pytest.mark.parametrize("scalar", ["cross_entropy", "log_probability", "logit", sum_and_product, losses])
def test_far_outputs_keep_their_gradients_finite(scalar, device):
    net = BY_NAME["mlp of two layers"].net()
    with torch.no_grad():
        net[-1].weight.mul_(1e4)
    X = np.random.default_rng(0).normal(size=(4, 6))
    assert GradientEngine(net, X, "all", device, scalar=scalar)(X).isfinite().all()


def test_a_scalar_may_write_over_what_it_gets(device):
    case = BY_NAME["mlp of two layers"]
    found, expected = (
        GradientEngine(case.net(), case.X, "all", device, scalar=scalar)(case.X)
        for scalar in (lambda outputs: outputs.mul_(2).exp_(), lambda outputs: (2 * outputs).exp())
    )
    assert_close(found, expected)
