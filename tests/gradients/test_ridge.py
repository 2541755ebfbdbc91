"""Kernel ridge regression in place: its solutions and leave-one-out residuals are those of NumPy."""

import numpy as np
import pytest
import torch
from asserts import assert_close

from sklearn_gradspace.gradients import KernelRidge, NotPositiveDefiniteError, _ridge

N = 23
PENALTIES = (0.5, 0.01, 3.0)


@pytest.fixture(params=[1, 4, 22, 23, 24], ids="blocks of {}".format, autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(_ridge, "_BLOCK", request.param)


def make(dtype=torch.float64, device=None, rank=N):
    rng = np.random.default_rng(0)
    factor = torch.tensor(rng.normal(size=(N, rank)), dtype=dtype, device=device)
    return factor @ factor.T / rank, torch.tensor(rng.normal(size=(N, 3)), dtype=dtype, device=device)


def explicit(kernel, penalty, targets):
    """Return coefficients and leave-one-out residuals, each of these from a system without its row."""
    kernel, targets = kernel.double().cpu().numpy(), targets.double().cpu().numpy()
    residuals = np.empty_like(targets)
    for i in range(N):
        rest = np.delete(np.arange(N), i)
        of_rest = np.linalg.solve(kernel[np.ix_(rest, rest)] + penalty * np.eye(N - 1), targets[rest])
        residuals[i] = targets[i] - kernel[i, rest] @ of_rest
    return np.linalg.solve(kernel + penalty * np.eye(N), targets), residuals


@pytest.mark.parametrize("rank", [N, 5])
def test_solutions_for_several_penalties_in_turn(rank, device):
    kernel, targets = make(device=device, rank=rank)
    ridge, given = KernelRidge(kernel.clone()), targets.clone()
    for penalty in (*PENALTIES, PENALTIES[0]):
        coefficients, residuals = ridge.solve(penalty, targets)
        expected, left_out = explicit(kernel, penalty, targets)
        assert_close(coefficients, expected)
        assert_close(residuals, left_out)
    assert torch.equal(targets, given)


def test_a_share_of_a_row_is_left_out(device):
    kernel, targets = make(device=device)
    share, penalty = torch.linspace(0.1, 1, N, dtype=kernel.dtype, device=device), 0.5
    _, residuals = KernelRidge(kernel.clone()).solve(penalty, targets, share)
    for i in range(N):
        weight = torch.ones_like(share)
        weight[i] -= share[i]
        weighted = weight[:, None] * kernel + penalty * torch.eye(N, dtype=kernel.dtype, device=device)
        prediction = kernel[i] @ torch.linalg.solve(weighted, weight[:, None] * targets)
        assert_close(residuals[i], targets[i] - prediction)


def test_single_precision(device):
    kernel, targets = make(torch.float32, device)
    for found, expected in zip(KernelRidge(kernel.clone()).solve(0.5, targets), explicit(kernel, 0.5, targets)):
        assert found.dtype == torch.float32
        assert_close(found, expected, 1e-5)


def test_the_upper_triangle_stays_and_no_other_matrix_is_made(device):
    kernel, targets = make(device=device)
    matrix = kernel.clone()
    KernelRidge(matrix).solve(0.5, targets)
    assert torch.equal(matrix.triu(1), kernel.triu(1))
    assert_close(matrix.tril() @ matrix.tril().T, kernel + 0.5 * torch.eye(N, dtype=kernel.dtype, device=device))


@pytest.mark.parametrize("wrong", [0, 13, N - 1])
def test_a_matrix_that_is_not_positive_definite_is_refused_and_left_as_it_was(wrong, device):
    kernel, targets = make(device=device)
    kernel[wrong, wrong] -= 10
    matrix = kernel.clone()
    ridge = KernelRidge(matrix)
    with pytest.raises(NotPositiveDefiniteError):
        ridge.solve(0.5, targets)
    assert torch.equal(matrix.triu(1), kernel.triu(1))
    for found, expected in zip(ridge.solve(20.0, targets), explicit(kernel, 20.0, targets)):
        assert_close(found, expected)


def test_a_matrix_that_is_not_finite_is_refused(device):
    kernel, targets = make(device=device)
    kernel[5, 5] = float("nan")
    with pytest.raises(NotPositiveDefiniteError):
        KernelRidge(kernel).solve(0.5, targets)
