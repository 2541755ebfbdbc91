"""What the engine refuses, and that it says what is wrong."""

import numpy as np
import pytest
import torch
from nets import Apply
from torch import nn

from sklearn_gradspace.gradients import GradientEngine

X = np.random.default_rng(0).normal(size=(5, 6))


def net_of(*layers):
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3)).double()


OUTPUTS = {
    "one column": (lambda x: x[:, :1], r"two classes.*for 4 samples it returned \(4, 1\)"),
    "three axes": (lambda x: x[:, None], r"shape \(n_samples, n_classes\).*\(4, 1, 3\)"),
    "one axis": (lambda x: x[:, 0], r"returned \(4,\)"),
    "rows lost": (lambda x: x[:-1], r"for 4 samples it returned \(3, 3\)"),
    "tuple": (lambda x: (x, x), "returned tuple.*Wrap it in a module"),
    "dict": (lambda x: {"logits": x}, "returned dict.*Wrap it in a module"),
}


@pytest.mark.parametrize("change, message", OUTPUTS.values(), ids=OUTPUTS)
def test_output_that_is_no_table_of_logits(change, message):
    with pytest.raises(ValueError, match=message):
        GradientEngine(nn.Sequential(net_of(), Apply(change)), X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_logits_name_the_rows(value):
    engine = GradientEngine(net_of(), X)
    bad = X.copy()
    bad[[1, 3], 2] = value
    for compute in (engine, engine.outputs):
        with pytest.raises(ValueError, match=r"rows \[1, 3\]"):
            compute(bad)


def test_not_finite_logits_in_the_sample():
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        GradientEngine(net_of(), np.where(np.arange(5)[:, None] == 0, np.nan, X))


def test_net_that_mixes_rows():
    with pytest.raises(ValueError, match=r"mixes the rows of a batch.*: the logits of a row differ"):
        GradientEngine(net_of(Apply(lambda x: x - x.mean(0))), X)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norm_without_running_statistics(kind):
    net = net_of(nn.Sequential(nn.ReLU(), kind(6, track_running_stats=False)))
    with pytest.raises(ValueError, match=rf"layer '1\.1' mixes.*{kind.__name__} without running statistics"):
        GradientEngine(net, X)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_net_that_is_random_in_evaluation_mode(p):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match=r"random in evaluation mode|differ by"):
            GradientEngine(net_of(Apply(lambda x: nn.functional.dropout(x, p, training=True))), X)


def test_net_without_parameters():
    with pytest.raises(ValueError, match="no parameters: Softmax has no gradient space"):
        GradientEngine(nn.Softmax(1), X)


def test_net_that_is_frozen():
    with pytest.raises(ValueError, match=r"all parameters of net are frozen.*requires_grad_\(\)"):
        GradientEngine(net_of().requires_grad_(False), X)


def test_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"no trainable parameter matches 'conv\*'.*0\.weight, 0\.bias"):
        GradientEngine(net_of(), X, layers="conv*")


@pytest.mark.parametrize("layers", ["weights", "all", "0.*"])
def test_refusal_leaves_the_net_as_it_was(layers):
    net = net_of(Apply(lambda x: x - x.mean(0)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="mixes"):
        GradientEngine(net, X, layers=layers)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(not module._forward_hooks and module.training for module in net.modules())
