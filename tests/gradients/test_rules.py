"""Each parameter takes the cheapest rule that is right."""

import pytest
import torch
from asserts import assert_close
from cases import BY_NAME, CASES

from sklearn_gradspace.gradients import GradientEngine
from sklearn_gradspace.gradients._forward import forward_pass
from sklearn_gradspace.gradients._rules import RULES, choose_rules

CLOSED = [
    "linear", "linear on steps", "linear on a grid", "called twice", "one layer, two names", "relu in place",
    "residual then relu in place", "branches", "frozen", "channels last", "conv1d", "conv2d",
    "conv2d same", "conv2d groups", "conv2d depthwise", "conv2d reflect", "conv2d circular", "conv3d",
    "avg pool ceil",
]  # fmt: skip

EXPECTED = {
    **{name: {} for name in CLOSED},
    "batch norm 1d": {"1.weight": "layer_transform", "1.bias": "layer_transform"},
    "batch norm 2d": {"1.weight": "layer_transform", "1.bias": "layer_transform"},
    "layer norm": {"1.weight": "layer_transform", "1.bias": "layer_transform"},
    "group norm": {"1.weight": "layer_transform", "1.bias": "layer_transform"},
    "transposed conv": {"0.weight": "layer_transform", "0.bias": "layer_transform"},
    "class token": {"token": "layer_transform"},
    "linear with its own forward": {"0.weight": "layer_transform", "0.bias": "layer_transform"},
    "tied weights": {"encoder.weight": "net_transform"},
    "borrowed weight": {"encoder.weight": "net_transform"},
    "hardly borrowed weight": {"encoder.weight": "net_transform"},
    "called in vain": {"layer.weight": "net_transform", "layer.bias": "unused"},
    "output changed by a hook": {"layer.weight": "net_transform", "layer.bias": "net_transform"},
    "input overwritten": {"scale.bias": "net_transform"},
    "unused layer": {"idle.weight": "unused", "idle.bias": "unused"},
    "lstm": {f"recurrent.{kind}_{of}_l0": "loop" for kind in ("weight", "bias") for of in ("ih", "hh")},
    "gru": {f"recurrent.{kind}_{of}_l0": "loop" for kind in ("weight", "bias") for of in ("ih", "hh")},
}

REASONS = {
    "linear": ("0.weight", "a Linear layer"),
    "layer norm": ("1.weight", "no closed form for LayerNorm"),
    "borrowed weight": ("encoder.weight", "its layer's own gradient is not the whole of it"),
    "input overwritten": ("scale.bias", "something writes over its layer's input"),
    "two inputs and a keyword": ("pair.weight", "its layer does more than map one tensor to one"),
    "unused layer": ("idle.bias", "the output does not depend on it"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_rule_of_every_parameter(name, device):
    case = BY_NAME[name]
    rules = {rule.name: rule.rule for rule in GradientEngine(case.net(), case.X, "all", device).rules}
    assert rules == {parameter: EXPECTED[name].get(parameter, "closed_form") for parameter in rules}
    assert EXPECTED[name].keys() <= rules.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["tied weights", "borrowed weight", "hardly borrowed weight", "called twice"])
def test_precision_does_not_change_the_rules(name, dtype, device):
    case = BY_NAME[name]
    double, other = case.net(), case.net().to(dtype)
    expected = GradientEngine(double, case.X, "all", device).rules
    assert GradientEngine(other, case.X, "all", device).rules == expected


@pytest.mark.parametrize("name", REASONS)
def test_rules_say_why(name, device):
    case, (parameter, why) = BY_NAME[name], REASONS[name]
    assert {r.name: r.why for r in GradientEngine(case.net(), case.X, "all", device).rules}[parameter] == why


def pass_through(engine, X, labels=None):
    layers = {block.layer for block in engine.blocks}
    return forward_pass(engine.module, layers, torch.tensor(X, device=engine.device), labels)


@pytest.mark.parametrize("rule", ["net_transform", "loop"])
@pytest.mark.parametrize("name", ["linear on steps", "conv2d groups", "batch norm 2d", "called twice", "tied weights"])
def test_general_rules_equal_the_chosen(name, rule, device):
    case = BY_NAME[name]
    engine = GradientEngine(case.net(), case.X, "all", device)
    found = RULES[rule](pass_through(engine, case.X), [block.name for block in engine.blocks])
    assert_close(torch.cat([found[block.name].flatten(2) for block in engine.blocks], 2), engine(case.X))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_are_in_the_order_of_blocks_and_do_not_depend_on_the_labels(case, device):
    engine = GradientEngine(case.net(), case.X, "all", device)
    names = [block.name for block in engine.blocks]
    assert [rule.name for rule in engine.rules] == names
    labels = torch.zeros(case.n, dtype=torch.long)
    assert choose_rules(pass_through(engine, case.X, labels), names) == engine.rules
