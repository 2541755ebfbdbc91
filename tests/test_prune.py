"""Pruned nets are nets whose other entries are zero; the original stays as it is."""

import copy
import pickle

import numpy as np
import pytest
import torch
from asserts import as_array, assert_close, untouched
from cases import BY_NAME
from torch import nn
from torch.nn.utils import prune as torch_prune

from sklearn_gradspace import EdgeImportance, EdgeImportanceDisplay, GradientFeaturizer, finetune, prune
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
    assert not importance.importances_["0.weight"][np.tri(5, 6) == 0].any()
    assert GradientFeaturizer(once).fit(case.X).get_feature_names_out()[0] == "label0 0.weight[0,0]"
    second = np.arange(30).reshape(5, 6) % 3 > 0
    for name in ("0.weight", "0.weight_orig"):
        twice = prune(once, {name: second})
        expected = masked(masked(case.net(), first), {"0.weight": second})
        assert_close(twice.eval()(torch.from_numpy(case.X)), expected.eval()(torch.from_numpy(case.X)))
    assert_close(once[0].weight, as_array(net[0].weight) * np.tri(5, 6))


class ReadsWeights(nn.Module):
    """A net with an attention, and a layer whose forward is never called."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.linear = nn.Linear(6, 3)

    def forward(self, X):
        mixed = self.attention(X, X, X, need_weights=False)[0]
        return nn.functional.linear(mixed.mean(1), self.linear.weight)


def test_weights_that_are_read_without_their_modules_forward():
    torch.manual_seed(0)
    net, X, y = ReadsWeights().double(), np.random.default_rng(0).normal(size=(12, 4, 6)), np.arange(12) % 3
    mask = EdgeImportance(net).fit(X, y).mask(0.5)
    pruned, zeroed = prune(net, mask), masked(copy.deepcopy(net), mask)
    found, expected = (EdgeImportance(n).fit(X, y) for n in (pruned, zeroed))
    for name, values in expected.importances_.items():
        assert_close(found.importances_[name], values)
        assert values.any()
    tuned = finetune(pruned, X, y, mask, lr=0.01, random_state=0)
    again = finetune(zeroed, X, y, mask, lr=0.01, random_state=0)
    assert_close(tuned.eval()(torch.from_numpy(X)), again.eval()(torch.from_numpy(X)))
    assert not torch.equal(tuned.linear.weight_orig, pruned.linear.weight_orig)
    for _ in range(2):
        pruned(torch.from_numpy(X)).sum().backward()
    with torch.no_grad():
        pruned.linear.weight_orig.zero_()
    assert not pruned(torch.from_numpy(X)).any()


def test_a_pruned_nets_parameters_keep_their_names():
    case = BY_NAME["mlp of three layers"]
    net, y = case.net(), np.arange(5) % 3
    whole = EdgeImportance(net).fit(case.X, y)
    mask = whole.mask(0.4)
    pruned = prune(net, mask)
    found = EdgeImportance(pruned).fit(case.X, y)
    assert list(found.importances_) == list(whole.importances_)
    assert -1 <= whole.rank_correlation(found) <= 1
    by_torch = {f"{name}_orig": entries for name, entries in mask.items()}
    for of in (mask, by_torch):
        assert GradientFeaturizer(pruned, edges=of, output="dense").fit_transform(case.X).shape[1] == 3 * sum(
            int(m.sum()) for m in mask.values()
        )
        assert finetune(pruned, case.X, y, of, max_epochs=1) is not pruned
    again = prune(net, found.mask(0.2))
    assert int(sum((layer.weight != 0).sum() for layer in again if hasattr(layer, "weight"))) == round(0.2 * 62)
    with pytest.raises(ValueError, match="twice"):
        prune(pruned, {"0.weight": mask["0.weight"], "0.weight_orig": mask["0.weight"]})
    EdgeImportanceDisplay.from_estimator(found, kind="graph")


def test_what_is_pruned_has_no_magnitude():
    case = BY_NAME["mlp of three layers"]
    mask = EdgeImportance(case.net()).fit(case.X).mask(0.4)
    found = EdgeImportance(prune(case.net(), mask), criterion="magnitude").fit(case.X)
    for name, values in found.importances_.items():
        assert (values > 0).tolist() == mask[name].tolist()
    assert (found.to_frame().weight != 0).sum() == sum(int(m.sum()) for m in mask.values())


def test_pruned_and_tuned_nets_can_be_copied():
    case = BY_NAME["mlp of three layers"]
    mask, X = EdgeImportance(case.net()).fit(case.X).mask(0.4), torch.from_numpy(case.X)
    pruned = prune(case.net(), mask)
    for net in (pruned, prune(pruned, mask), finetune(pruned, case.X, np.arange(5) % 3, mask)):
        assert_close(copy.deepcopy(net)(X), net(X))


def test_a_skorch_net_and_a_pickle():
    X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    net = NetClassifier(MLP, max_epochs=1, random_state=0).fit(X, X[:, 0] > 0)
    pruned = prune(net, EdgeImportance(net).fit(X).mask(0.5))
    again = pickle.loads(pickle.dumps(pruned))
    assert_close(again(torch.from_numpy(X)), pruned(torch.from_numpy(X)))
