"""Groups of columns from the blocks of layers."""

import pytest

from sklearn_gradspace._structure import blocks_of_sizes, group_columns
from sklearn_gradspace.gradients import Block

BLOCKS = (
    Block("conv.weight", (2, 3), 0),
    Block("conv.bias", (2,), 6),
    Block("mid.weight", (4,), 8),
    Block("head.weight", (5,), 12),
)
CONV, CONV_BIAS, MID, HEAD = slice(0, 6), slice(6, 8), slice(8, 12), slice(12, 17)


@pytest.mark.parametrize(
    ("structure", "groups"),
    [
        ("layer", [[CONV, CONV_BIAS], [MID], [HEAD]]),
        ("adjacent", [[CONV, CONV_BIAS, MID], [MID, HEAD]]),
        ("full", [[CONV, CONV_BIAS, MID, HEAD]]),
        ([["head"], ["conv.bias", "head"]], [[HEAD], [CONV_BIAS, HEAD]]),
    ],
)
def test_structures(structure, groups):
    assert group_columns(BLOCKS, structure) == groups


def test_one_layer_is_adjacent_to_none():
    assert group_columns(BLOCKS[3:], "adjacent") == [[HEAD]]


def test_blocks_of_plain_arrays():
    assert [block.slice for block in blocks_of_sizes(None, 7)] == [slice(0, 7)]
    assert [block.slice for block in blocks_of_sizes([2, 5], 7)] == [slice(0, 2), slice(2, 7)]
    assert [block.name for block in blocks_of_sizes(BLOCKS, 17)] == [block.name for block in BLOCKS]
    assert len({block.layer for block in blocks_of_sizes([2, 5], 7)}) == 2
