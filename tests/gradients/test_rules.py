"""Each parameter takes the cheapest rule that is right."""

import numpy as np
import pytest
import torch
from asserts import assert_close
from cases import BY_NAME, CASES
from torch import nn

from sklearn_gradspace.gradients import _rules
from sklearn_gradspace.gradients._forward import forward_pass
from sklearn_gradspace.gradients._rules import RULES, choose_rules, outer_factors
from sklearn_gradspace.gradients._trial import precise_forward

CLOSED = [
    "linear", "linear on steps", "linear on a grid", "called twice", "one layer, two names", "relu in place",
    "residual then relu in place", "branches", "frozen", "channels last", "conv1d", "conv2d", "conv2d same",
    "conv2d groups", "conv2d depthwise", "conv2d reflect", "conv2d circular", "conv3d", "avg pool ceil",
    "transposed conv", "transposed conv1d", "transposed conv2d every option", "transposed conv3d groups",
    "batch norm 1d", "batch norm 2d", "batch norm 3d", "batch norm of steps", "layer norm", "layer norm without bias",
    "layer norm of images", "rms norm", "rms norm of steps", "group norm", "instance norm", "tracked instance norm",
    "embedding", "embedding of rounded numbers", "embedding of a grid", "embedding of one index", "sparse embedding",
    "checkpointed", "mixer", "fourier", "densely connected", "squeeze and excite", "added in place",
    "viewed as vectors", "strided as vectors", "one logit", "one logit without an axis", "regression",
]  # fmt: skip

PROJECTIONS = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
ATTENTION = {f"attention.{name}": "step_products" for name in PROJECTIONS}
RECURRENT = {f"recurrent.{kind}_{of}_l0": "step_products" for kind in ("weight", "bias") for of in ("ih", "hh")}
EXPECTED = {
    **{name: {} for name in CLOSED},
    "class token": {"token": "step_products"},
    "parameters without axes": {"scale": "step_products", "body.scale": "step_products"},
    "linear with its own forward": {"0.weight": "layer_transform", "0.bias": "step_products"},
    "two inputs and a keyword": {"pair.weight": "layer_transform", "pair.bias": "step_products"},
    "u net": {"up.weight": "layer_transform", "up.bias": "layer_transform"},
    "embedding bag": {"0.weight": "layer_transform"},
    **{
        name: ATTENTION
        for name in (
            "attention", "attention with its weights", "attention under a mask", "mask as long as the batch"
        )
    },
    "mask as long as the rows that decide": ATTENTION,
    "transformer encoder": {
        f"0.layers.{i}.self_attn.{name}": "step_products" for i in range(2) for name in PROJECTIONS
    },
    "embedding of positions": {"position.weight": "net_transform"},
    "as many positions as rows": {"position.weight": "net_transform"},
    "as many positions as rows that decide": {"position.weight": "net_transform"},
    "as many steps first as rows that decide": {
        "step.weight": "step_products", "step.bias": "step_products",
        "norm.weight": "step_products", "norm.bias": "step_products"
    },
    "tied weights": {"encoder.weight": "step_products"},
    "borrowed weight": {"encoder.weight": "net_transform"},
    "hardly borrowed weight": {"encoder.weight": "net_transform"},
    "called in vain": {"layer.weight": "step_products", "layer.bias": "unused"},
    "output changed by a hook": {"layer.weight": "step_products", "layer.bias": "step_products"},
    "input overwritten": {"scale.bias": "step_products"},
    "gradient stopped": {
        "gate.weight": "unused", "gate.bias": "unused", "step.weight": "step_products", "step.bias": "step_products"
    },
    "unused layer": {"idle.weight": "unused", "idle.bias": "unused"},
    "returns a tuple": {"other.weight": "unused", "other.bias": "unused"},
    "lstm": RECURRENT,
    "gru": RECURRENT,
}  # fmt: skip

REASONS = {
    "linear": ("0.weight", "a Linear layer"),
    "layer norm": ("1.weight", "a LayerNorm layer"),
    "class token": ("token", "used by sums alone"),
    "parameters without axes": ("scale", "used by products alone"),
    "gru": ("recurrent.weight_hh_l0", "used by matrix products alone"),
    "two inputs and a keyword": ("pair.weight", "no closed form for Bilinear"),
    "borrowed weight": ("encoder.weight", "its layer's own gradient is not the whole of it"),
    "embedding of positions": ("position.weight", "its layer does not keep a row a sample"),
    "distances to a layer's weight": ("points.weight", "used outside of its module's forward"),
    "unused layer": ("idle.bias", "the output does not depend on it"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_rule_of_every_parameter(name, device):
    case = BY_NAME[name]
    rules = {rule.name: rule.rule for rule in case.engine(device).rules}
    assert rules == {parameter: EXPECTED[name].get(parameter, "closed_form") for parameter in rules}
    assert EXPECTED[name].keys() <= rules.keys()


@pytest.mark.parametrize("name", ["mask as long as the batch", "as many positions as rows", "attention under a mask"])
def test_rules_hold_for_as_many_rows_as_a_constant_is_long(name, device):
    case = BY_NAME[name]
    engine = case.engine(device)
    for n in range(1, case.n + 1):
        assert engine.rules_for(engine.forward(case.X[:n])) is engine.rules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["tied weights", "borrowed weight", "hardly borrowed weight", "called twice"])
def test_precision_does_not_change_the_rules(name, dtype, device):
    case = BY_NAME[name]
    assert case.engine(device, net=case.net().to(dtype)).rules == case.engine(device).rules


@pytest.mark.parametrize("name", REASONS)
def test_rules_say_why(name, device):
    case, (parameter, why) = BY_NAME[name], REASONS[name]
    assert {rule.name: rule.why for rule in case.engine(device).rules}[parameter] == why


def test_rules_print_as_a_table(device):
    rules = BY_NAME["tied weights"].engine(device).rules
    lines = str(rules).splitlines()
    assert len(lines) == len(rules) and len({line.index(rule.why) for line, rule in zip(lines, rules)}) == 1
    assert all(line.split()[:2] == [rule.name, rule.rule] for line, rule in zip(lines, rules))


def pass_through(engine, X, labels=None):
    layers = dict.fromkeys(block.layer for block in engine.blocks)
    inputs = engine.inputs(X)
    return forward_pass(engine.apply, engine.module, layers, inputs, engine.scalar, labels, keep_graph=True)


@pytest.mark.parametrize("rule", ["net_transform", "loop"])
@pytest.mark.parametrize("name", [
    "linear on steps", "conv2d groups", "batch norm 2d", "called twice", "tied weights", "parameters without axes",
    "one logit without an axis",
])  # fmt: skip
def test_general_rules_equal_the_chosen(name, rule, device):
    case = BY_NAME[name]
    engine = case.engine(device)
    found = engine.allocate(case.n, all_labels=True)
    with torch.no_grad():
        RULES[rule](pass_through(engine, case.X), engine.places(found))
    assert_close(found, engine(case.X))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_are_in_the_order_of_blocks_and_do_not_depend_on_the_labels(case, device):
    engine = case.engine(device)
    names = [block.name for block in engine.blocks]
    assert [rule.name for rule in engine.rules] == names
    decisive = case.X[np.linspace(0, case.n - 1, 4, dtype=int)]
    forward = precise_forward(engine, decisive, torch.zeros(4, dtype=torch.long, device=engine.device))
    assert choose_rules(forward, names) == (engine.rules, engine.ways)


@pytest.mark.parametrize("truth_bytes", [1, 200, 2**28])
@pytest.mark.parametrize("name", ["tied weights", "mlp of three layers", "unused layer"])
def test_parameters_may_be_compared_a_few_at_a_time(name, truth_bytes, device, monkeypatch):
    rules = BY_NAME[name].engine(device).rules
    monkeypatch.setattr(_rules, "_TRUTH_BYTES", truth_bytes)
    assert BY_NAME[name].engine(device).rules == rules


@pytest.mark.parametrize("name", ["linear", "mlp of three layers", "linear on steps", "conv2d", "called twice"])
def test_outer_factors_are_those_of_linear_layers_that_see_a_vector(name, device):
    case = BY_NAME[name]
    engine = case.engine(device, net=case.net().float())
    forward = engine.forward(case.X)
    factors = outer_factors(forward, engine.rules)
    gradients = engine.places(engine(case.X))
    seen = {layer for layer, calls in forward.calls.items() if [c.arguments[0].ndim for c in calls] == [2]}
    linear = {layer for layer in seen if isinstance(engine.module.get_submodule(layer), nn.Linear)}
    assert set(factors) == {f"{layer}.weight" for layer in linear}
    for parameter, (deltas, inputs) in factors.items():
        assert torch.equal(deltas.unsqueeze(3) * inputs[:, None, None], gradients[parameter])


def test_outer_factors_are_of_single_precision_unless_more_is_asked_for(device):
    engine = BY_NAME["linear"].engine(device)
    forward = engine.forward(BY_NAME["linear"].X)
    assert outer_factors(forward, engine.rules) == {}
    ((deltas, inputs),) = outer_factors(forward, engine.rules, torch.float64).values()
    assert deltas.dtype == inputs.dtype == torch.float64
