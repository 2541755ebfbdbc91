"""Moments that stream are those of all scores at once."""

import numpy as np
import pytest
import torch
from asserts import assert_close

from sklearn_gradspace.gradients import Block, ScoreMoments

BLOCKS = [Block("w", (3, 4), 0), Block("b", (), 12)]
GROUPS = torch.tensor([0, 1, 1, 0, 2, 1, 0, 0, 1])


def expected(scores, rows):
    of_rows = scores[rows]
    return of_rows.mean(0), of_rows.std(0, ddof=1) / np.sqrt(len(of_rows))


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [4, 5]])
@pytest.mark.parametrize("groups", [[0], [1], [0, 1], [0, 1, 2]])
def test_means_and_standard_errors(sizes, groups):
    scores = torch.rand(9, 12, dtype=torch.float64)
    moments = ScoreMoments(BLOCKS, 3, torch.device("cpu"))
    for part, of_part in zip(scores.split(sizes), GROUPS.split(sizes)):
        moments.add("w", part.clone() / 2, of_part, moments.n_rows, torch.tensor(2.0))
        moments.count(of_part)
    mean, error = expected(scores.numpy(), np.isin(GROUPS, groups))
    assert_close(moments.mean("w", groups), mean.reshape(3, 4))
    assert_close(moments.standard_error("w", groups), error.reshape(3, 4))


def test_products_are_those_of_formed_scores():
    left, right = torch.rand(9, 3, dtype=torch.float64), torch.rand(9, 4, dtype=torch.float64)
    scale = torch.rand(3, 4, dtype=torch.float64)
    formed, factored = (ScoreMoments(BLOCKS, 3, torch.device("cpu")) for _ in range(2))
    scores = torch.einsum("no,ni,oi->noi", left, right, scale).flatten(1)
    for moments in (formed, factored):
        moments.count(GROUPS)
    formed.add("w", scores, GROUPS, 0)
    factored.add_products("w", left, right, GROUPS, 0, scale)
    for groups in ([0], [1], [0, 1, 2]):
        assert_close(factored.mean("w", groups), formed.mean("w", groups))
        assert_close(factored.standard_error("w", groups), formed.standard_error("w", groups), 1e-7)


def test_a_row_has_no_standard_error_and_none_no_mean():
    moments = ScoreMoments(BLOCKS, 2, torch.device("cpu"))
    moments.count(torch.tensor([0]))
    moments.add("b", torch.tensor([[3.0]]), torch.tensor([0]), 0)
    assert moments.mean("b", [0]) == 3
    assert moments.standard_error("b", [0]).isnan()
    assert moments.mean("b", [1]).isnan()


@pytest.mark.parametrize("first", [(0, 4), (0, 9), (0, 2), (2, 6)])
def test_rows_that_come_again_are_counted_once(first):
    left, right = torch.rand(9, 3, dtype=torch.float64), torch.rand(9, 4, dtype=torch.float64)
    scores, scale = torch.einsum("no,ni->noi", left, right).flatten(1), torch.ones(3, 4, dtype=torch.float64)
    once, formed, factored = (ScoreMoments(BLOCKS, 3, torch.device("cpu")) for _ in range(3))
    once.add("w", scores.clone(), GROUPS, 0)
    for rows in (slice(first[0]), slice(*first), slice(0, 5), slice(5, 9)):
        formed.add("w", scores[rows].clone(), GROUPS[rows], rows.start or 0)
        factored.add_products("w", left[rows], right[rows], GROUPS[rows], rows.start or 0, scale)
    for moments in (once, formed, factored):
        moments.count(GROUPS)
        for groups in ([0], [1], [0, 1, 2]):
            assert_close(moments.mean("w", groups), once.mean("w", groups))
            assert_close(moments.standard_error("w", groups), once.standard_error("w", groups), 1e-7)
