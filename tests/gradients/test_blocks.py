"""Which parameters are chosen, in which order, and where they stand."""

import pytest
from cases import BY_NAME, CASES

from sklearn_gradspace.gradients import Block, GradientEngine
from sklearn_gradspace.gradients._blocks import choose_parameters, make_blocks


def names(case, layers):
    return list(choose_parameters(BY_NAME[case].net(), layers))


@pytest.mark.parametrize("case, layers, expected", [
    ("mlp of two layers", "weights", ["0.weight", "2.weight"]),
    ("mlp of two layers", "all", ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ("mlp of two layers", "2.*", ["2.weight", "2.bias"]),
    ("mlp of two layers", "*.bias", ["0.bias", "2.bias"]),
    ("mlp of two layers", ["2.weight", "0.weight"], ["0.weight", "2.weight"]),
    ("mlp of two layers", ["*.weight", "0.*"], ["0.weight", "0.bias", "2.weight"]),
    ("mlp of two layers", "[0].weight", ["0.weight"]),
    ("frozen", "all", ["2.weight", "4.weight", "4.bias"]),
    ("frozen", "*", ["2.weight", "4.weight", "4.bias"]),
    ("class token", "weights", ["token", "head.weight"]),
    ("tied weights", "weights", ["encoder.weight", "head.weight"]),
    ("one layer, two names", "weights", ["0.weight", "4.weight"]),
    ("prelu", "weights", ["0.weight", "1.weight", "2.weight"]),
    ("gru", "weights", ["recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "head.weight"]),
    ("attention", "weights", ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]),
], ids=str)  # fmt: skip
def test_choice(case, layers, expected):
    assert names(case, layers) == expected


@pytest.mark.parametrize("case, layers, message", [
    ("mlp of two layers", "conv*", r"no trainable parameter matches 'conv\*'\. Trainable are 0\.weight, 0\.bias"),
    ("mlp of two layers", ["0.weight", "1.weight"], "matches '1.weight'"),
    ("frozen", "0.*", r"matches '0\.\*'"),
], ids=str)  # fmt: skip
def test_pattern_without_a_parameter(case, layers, message):
    with pytest.raises(ValueError, match=message):
        choose_parameters(BY_NAME[case].net(), layers)


def test_weights_where_only_biases_can_be_trained():
    net = BY_NAME["mlp of two layers"].net()
    for layer in (net[0], net[2]):
        layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"leaves nothing: net has only 0.bias, 2.bias. Use layers='all'"):
        choose_parameters(net)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_blocks_follow_one_another(case):
    net = case.net()
    blocks = make_blocks(choose_parameters(net, "all"))
    end = 0
    for block, (name, parameter) in zip(blocks, choose_parameters(net, "all").items(), strict=True):
        assert block == Block(name, tuple(parameter.shape), end)
        assert block.slice == slice(end, end + parameter.numel()) and block.size == parameter.numel()
        assert net.get_submodule(block.layer).get_parameter(name.rpartition(".")[2]) is parameter
        end = block.slice.stop


@pytest.mark.parametrize("name", ["conv2d twice", "layer norm", "tied weights", "lstm"])
@pytest.mark.parametrize("layers", ["weights", "*bias*"])
def test_a_choice_gives_the_columns_of_all(name, layers, device):
    case = BY_NAME[name]
    some, everything = (GradientEngine(case.net(), case.X, which, device) for which in (layers, "all"))
    part, whole = some(case.X), everything(case.X)
    columns = {block.name: block.slice for block in everything.blocks}
    assert 0 < len(some.blocks) < len(everything.blocks)
    for block in some.blocks:
        assert (part[..., block.slice] - whole[..., columns[block.name]]).abs().max() < 1e-14
