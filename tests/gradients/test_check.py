"""The check of a user's net finds right what is right, and wrong what is wrong."""

import numpy as np
import pytest
import torch
from asserts import random_state_untouched, untouched
from cases import BY_NAME, CASES
from torch import nn

from sklearn_gradspace import check_gradients
from sklearn_gradspace.gradients import GradientCheck, _check, _layer_rules, _rules


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_net_is_found_right(case, device):
    net = case.net().float()
    with untouched(net), random_state_untouched():
        report = check_gradients(net, case.X[:2], device=device, **case.options)
    assert isinstance(report, GradientCheck) and report.ok, str(report)
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert [parameter.name for parameter in report] == names
    assert all(0 <= parameter.rounding < 1e-3 for parameter in report)
    assert str(report).endswith("\nall right") and "wrong" not in str(report)


def wrong(rule):
    """Return a rule that is right for one scalar a row, with which it was chosen, and off by a thousandth for more."""

    def written(layer, name, inputs, deltas, out, scratch):
        rule(layer, name, inputs, deltas, out, scratch)
        if out.shape[1] > 1 and name == "weight":
            out.mul_(1.001)

    return written


@pytest.mark.parametrize("kind, name, parameters", [
    (nn.Linear, "mlp of two layers", ["0.weight", "2.weight"]), (nn.Conv2d, "conv2d", ["0.weight"]),
    (nn.LayerNorm, "layer norm", ["1.weight"]), (nn.Embedding, "embedding", ["0.weight"]),
], ids=lambda of: getattr(of, "__name__", ""))  # fmt: skip
def test_a_closed_form_that_is_wrong_is_found(kind, name, parameters, device, monkeypatch):
    monkeypatch.setitem(_layer_rules.EXACT_RULES, kind, wrong(_layer_rules.EXACT_RULES[kind]))
    report = check_gradients(BY_NAME[name].net(), BY_NAME[name].X, device=device)
    assert not report.ok
    assert [p.name for p in report if p.error > 1e-9] == parameters
    assert [line.split()[0] for line in str(report).splitlines() if line.endswith("<- wrong")] == parameters
    assert "NOT ALL RIGHT" in str(report)


@pytest.mark.parametrize("name, rule", [
    ("linear with its own forward", "layer_transform"), ("borrowed weight", "net_transform"),
    ("input shifted in place", "loop"), ("lstm", "step_products"), ("unused layer", "unused"),
])  # fmt: skip
def test_a_general_rule_that_is_wrong_is_found(name, rule, device, monkeypatch):
    original = _rules.RULES[rule]

    def written(forward, out):
        original(forward, out)
        for place in out.values():
            place.add_(0.001)

    case = BY_NAME[name]
    monkeypatch.setitem(_rules.RULES, rule, written)
    report = check_gradients(case.net(), case.X, device=device)
    assert [p.name for p in report if p.rule == rule] == [p.name for p in report if p.error > 1e-9] != []
    assert not report.ok


@pytest.mark.parametrize("dtype, least, most", [("float64", 0, 1e-12), (None, 1e-9, 1e-5), ("bfloat16", 1e-4, 0.2)])
def test_rounding_is_that_of_the_precision(dtype, least, most, device):
    case = BY_NAME["mlp of two layers"]
    report = check_gradients(case.net().float(), case.X, device=device, dtype=dtype)
    assert report.ok
    assert least <= max(parameter.rounding for parameter in report) <= most


def test_layers_are_chosen(device):
    case = BY_NAME["mlp of two layers"]
    assert [p.name for p in check_gradients(case.net(), case.X, layers="2.*", device=device)] == ["2.weight", "2.bias"]


def test_rows_may_be_a_list(device):
    net = BY_NAME["mlp of two layers"].net()
    assert check_gradients(net, [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]], device=device).ok


def test_what_is_not_a_number_is_not_right():
    bad = _check.CheckedParameter("0.weight", "closed_form", np.nan, np.nan)
    assert not GradientCheck([bad]).ok and "wrong" in str(GradientCheck([bad]))


def test_the_truth_is_independent_of_rules(device, monkeypatch):
    case = BY_NAME["mlp of two layers"]
    engine = case.engine(device)
    expected = engine(case.X)
    monkeypatch.setattr(_rules, "RULES", {})
    assert torch.allclose(_check._loop(engine, case.X), expected, rtol=1e-10)
