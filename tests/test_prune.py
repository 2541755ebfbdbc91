"""Pruned nets are nets whose other entries are zero; the original stays as it is."""

import pickle

import numpy as np
import pytest
import torch
from asserts import as_array, assert_close, untouched
from cases import BY_NAME
from torch import nn
from torch.nn.utils import prune as torch_prune

from sklearn_gradspace import EdgeImportance, prune
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.modules import MLP

CASES = [
    "mlp of three layers",
    "conv2d groups",
    "batch norm 2d",
    "tied weights",
    "one layer, two names",
    "called twice",
]


def masked(net, mask):
    """Return the net with zeros written into its weights."""
    with torch.no_grad():
        for name, entries in mask.items():
            net.get_parameter(name).mul_(torch.as_tensor(entries))
    return net


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_nets_are_nets_with_zeros(name, scope):
    case = BY_NAME[name]
    net = case.net()
    mask = EdgeImportance(net).fit(case.X).mask(0.3, scope)
    with untouched(net):
        pruned = prune(net, mask)
    assert torch_prune.is_pruned(pruned)
    X = torch.from_numpy(case.X)
    assert_close(pruned.eval()(X), masked(case.net(), mask).eval()(X))
    assert pruned.training == net.training or not pruned.training


def test_masked_entries_stay_zero_in_training():
    case = BY_NAME["mlp of three layers"]
    pruned = prune(case.net(), {"0.weight": np.tri(5, 6) > 0})
    optimizer = torch.optim.Adam(pruned.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        pruned(torch.from_numpy(case.X)).square().sum().backward()
        optimizer.step()
    pruned(torch.from_numpy(case.X))
    assert not pruned[0].weight.detach().numpy()[np.tri(5, 6) == 0].any()
    torch_prune.remove(pruned[0], "weight")
    assert [name for name, _ in pruned[0].named_parameters()] == ["bias", "weight"]


def test_pruning_a_pruned_net_prunes_further():
    case = BY_NAME["mlp of three layers"]
    net, first = case.net(), {"0.weight": np.tri(5, 6) > 0}
    once = prune(net, first)
    importance = EdgeImportance(once).fit(case.X)
    assert "0.weight_orig" in importance.importances_
    assert not importance.importances_["0.weight_orig"][np.tri(5, 6) == 0].any()
    second = np.arange(30).reshape(5, 6) % 3 > 0
    for name in ("0.weight", "0.weight_orig"):
        twice = prune(once, {name: second})
        expected = masked(masked(case.net(), first), {"0.weight": second})
        assert_close(twice.eval()(torch.from_numpy(case.X)), expected.eval()(torch.from_numpy(case.X)))
    assert_close(once[0].weight, as_array(net[0].weight) * np.tri(5, 6))


def test_a_skorch_net_and_a_pickle():
    X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    net = NetClassifier(MLP, max_epochs=1, random_state=0).fit(X, X[:, 0] > 0)
    pruned = prune(net, EdgeImportance(net).fit(X).mask(0.5))
    again = pickle.loads(pickle.dumps(pruned))
    assert_close(again(torch.from_numpy(X)), pruned(torch.from_numpy(X)))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"9.weight": np.ones((5, 6), bool)}, ValueError, "mask names '9.weight', but the parameters of net are"),
        ({"0.weight": np.ones((6, 5), bool)}, ValueError, r"must be True and False of shape \(5, 6\)"),
        ({"0.weight": np.ones((5, 6))}, ValueError, "dtype torch.float64"),
        ({}, TypeError, "mask must be a dict"),
        (np.ones(30, bool), TypeError, "mask must be a dict"),
    ],
)
def test_masks_that_do_not_match(mask, error, message):
    with pytest.raises(error, match=message):
        prune(BY_NAME["mlp of three layers"].net(), mask)


def test_what_is_no_net():
    with pytest.raises(TypeError, match="net must be a torch Module or a fitted skorch net"):
        prune(None, {"weight": np.ones(1, bool)})
    with pytest.raises(TypeError, match="not NetClassifier"):
        prune(NetClassifier(nn.Linear), {"weight": np.ones(1, bool)})
