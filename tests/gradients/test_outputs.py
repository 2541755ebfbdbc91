"""The scalars of a table of outputs: their derivatives are autograd's, and what has none is refused by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asserts import assert_close
from cases import BY_NAME
from nets import sum_and_product

from sklearn_gradspace.gradients import SCALARS
from sklearn_gradspace.gradients._outputs import as_table, check_finite, cotangents, label_probabilities


def outputs_of(n_outputs, n=5):
    return 2 * torch.tensor(np.random.default_rng(0).normal(size=(n, n_outputs)))


def of_all_labels(logits, sign=1):
    """Return the cross-entropies of every label, as a user would write them."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    labels = torch.arange(logits.shape[1])
    return sign * torch.stack(
        [F.cross_entropy(row.expand(len(labels), -1), labels, reduction="none") for row in logits]
    )


FUNCTIONS = {
    "cross_entropy": of_all_labels,
    "log_probability": lambda logits: of_all_labels(logits, -1),
    "logit": lambda logits: logits,
}


def jacobians(scalar, outputs):
    """Return d scalar_k / d outputs of shape (n, k, n_outputs), a row and a scalar at a time."""

    def of_row(row):
        return torch.autograd.functional.jacobian(lambda o: scalar(o.unsqueeze(0))[0], row)

    return torch.stack([of_row(row) for row in outputs])


def test_every_scalar_has_its_definition():
    assert set(FUNCTIONS) == set(SCALARS)


@pytest.mark.parametrize("n_outputs", [1, 2, 5])
@pytest.mark.parametrize("scalar", SCALARS)
def test_derivatives_are_those_of_the_definition(scalar, n_outputs):
    outputs = outputs_of(n_outputs)
    expected = jacobians(FUNCTIONS[scalar], outputs)
    assert_close(cotangents(scalar, outputs), expected)
    assert_close(cotangents(FUNCTIONS[scalar], outputs), expected)


@pytest.mark.parametrize("n_outputs", [1, 2, 5])
def test_probabilities_are_of_labels_and_those_of_one_logit_of_two(n_outputs):
    for outputs in (outputs_of(n_outputs), 300 * outputs_of(n_outputs)):
        found = label_probabilities(outputs)
        assert found.shape == (5, max(2, n_outputs))
        assert_close(found, of_all_labels(outputs, -1).exp())


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("scalar", [*SCALARS, sum_and_product], ids=[*SCALARS, "function"])
def test_one_scalar_a_row_is_a_part_of_all(scalar, n_outputs):
    outputs = outputs_of(n_outputs)
    everything = cotangents(scalar, outputs)
    labels = torch.arange(5) % everything.shape[1]
    one = cotangents(scalar, outputs, labels)
    assert one.shape == (5, 1, n_outputs)
    assert_close(one[:, 0], everything[torch.arange(5), labels])


@pytest.mark.parametrize("scalar", SCALARS)
def test_one_logit_stands_for_two(scalar):
    z = outputs_of(1)
    both = cotangents(scalar, torch.cat([torch.zeros_like(z), z], 1))
    assert_close(cotangents(scalar, z), both[..., 1:] if scalar != "logit" else both[:, 1:, 1:])


def test_a_scalar_a_row_may_come_without_an_axis():
    outputs = outputs_of(3)
    assert torch.equal(cotangents(lambda o: o.square().sum(1), outputs), 2 * outputs.unsqueeze(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes_of_the_caller_do_not_show(mode):
    with mode():
        found = cotangents(sum_and_product, outputs_of(3))
    assert_close(found, cotangents(sum_and_product, outputs_of(3)))


WRONG = {
    "one number": (lambda o: o.sum(), r"it returned \(\)"),
    "rows lost": (lambda o: o[:-1], r"for outputs of shape \(5, 3\) it returned \(4, 3\)"),
    "three axes": (lambda o: o[:, None], r"it returned \(5, 1, 3\)"),
    "no scalars": (lambda o: o[:, :0], r"it returned \(5, 0\)"),
    "a tuple": (lambda o: (o, o), "it returned tuple"),
    "nothing": (lambda o: None, "it returned NoneType"),
    "detached": (lambda o: o.detach(), "scalar returns what cannot be differentiated"),
    "without gradients": (lambda o: torch.zeros(5, 2), "scalar returns what cannot be differentiated"),
}


@pytest.mark.parametrize("scalar, message", WRONG.values(), ids=WRONG)
def test_functions_that_are_no_scalars_are_refused(scalar, message):
    with pytest.raises(ValueError, match=message):
        cotangents(scalar, outputs_of(3))


@pytest.mark.parametrize("shape, expected", [((4, 3), (4, 3)), ((4, 1), (4, 1)), ((4,), (4, 1))], ids=str)
def test_tables_are_taken(shape, expected):
    assert as_table(torch.ones(shape), 4).shape == expected


NO_TABLES = [
    (torch.ones(3, 4), r"for 4 samples it returned \(3, 4\)"),
    (torch.ones(4, 0), r"returned \(4, 0\)"),
    (torch.ones(4, 2, 2), r"returned \(4, 2, 2\)"),
    (torch.ones(()), r"returned \(\)"),
    ([1.0], "returned list"),
    (torch.ones(4, 2, dtype=torch.long), "real logits; it returned torch.int64"),
    (torch.ones(4, 2, dtype=torch.complex64), "real logits; it returned torch.complex64"),
]


@pytest.mark.parametrize("returned, message", NO_TABLES, ids=lambda of: str(getattr(of, "shape", "")))
def test_what_is_no_table_is_refused(returned, message):
    with pytest.raises(ValueError, match=message):
        as_table(returned, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(value):
    outputs = outputs_of(3)
    assert check_finite(outputs) is outputs
    outputs[[1, 4], [0, 2]] = value
    with pytest.raises(ValueError, match=r"NaN or infinity for rows \[1, 4\]: its gradients"):
        check_finite(outputs)


def test_labels_that_are_neither_numbers_nor_predicted_are_refused():
    case = BY_NAME["mlp of two layers"]
    with pytest.raises(ValueError, match="labels='true' is neither 'predicted' nor"):
        case.engine()(case.X, "true")
    with pytest.raises(ValueError, match="labels='predicted' needs one of the scalars 'cross_entropy'"):
        case.engine(scalar=sum_and_product)(case.X, "predicted")


@pytest.mark.parametrize("n_outputs", [1, 2, 5])
@pytest.mark.parametrize("scalar", SCALARS)
def test_the_predicted_label_is_the_likeliest(scalar, n_outputs):
    outputs = outputs_of(n_outputs, 20)
    likeliest = of_all_labels(outputs, -1).argmax(1) if scalar != "logit" else outputs.argmax(1)
    assert torch.equal(cotangents(scalar, outputs, "predicted"), cotangents(scalar, outputs, likeliest))
