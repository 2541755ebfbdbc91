"""Masks become one mask of all columns, and the blocks of what they keep."""

import numpy as np
import pytest
import torch

from sklearn_gradspace.gradients import Block, as_mask
from sklearn_gradspace.gradients._mask import entry_names, kept_blocks

BLOCKS = (Block("a.weight", (2, 3), 0), Block("a.bias", (), 6), Block("b.weight", (2,), 7))


@pytest.mark.parametrize("mask", [None, {}, np.ones(9, bool), {"a.bias": np.True_, "b.weight": torch.ones(2) > 0}])
def test_no_mask_is_made_of_what_keeps_all(mask):
    assert as_mask(mask, BLOCKS) is None


def test_tensors_of_any_device_are_taken(device):
    columns = torch.arange(9) % 3 > 0
    np.testing.assert_array_equal(as_mask(columns.to(device), BLOCKS), columns.numpy())
    by_name = {block.name: columns[block.slice].reshape(block.shape).to(device) for block in BLOCKS}
    np.testing.assert_array_equal(as_mask(by_name, BLOCKS), columns.numpy())


def test_blocks_and_names_of_what_is_kept():
    weight = np.array([[True, False, True], [False, False, True]])
    mask = as_mask({"a.weight": weight, "b.weight": [False, False]}, BLOCKS)
    np.testing.assert_array_equal(mask, [*weight.ravel(), True, False, False])
    assert kept_blocks(mask, BLOCKS) == (Block("a.weight", (3,), 0), Block("a.bias", (), 3))
    names = [name for block in BLOCKS for name in entry_names(mask, block)]
    assert names == ["a.weight[0,0]", "a.weight[0,2]", "a.weight[1,2]", "a.bias[]"]
