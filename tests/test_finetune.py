"""Fine-tuning trains the chosen entries alone, by the steps that training the whole net would make of them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from asserts import as_array, assert_close, random_state_untouched, untouched
from cases import BY_NAME
from torch import nn

from sklearn_gradspace import EdgeImportance, finetune, prune
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace.modules import MLP

CASES = [
    "mlp of three layers",
    "conv2d groups",
    "tied weights",
    "called twice",
    "embedding",
    "one logit",
    "batch norm 2d",
]


def data(case, n=5):
    return case.X, np.arange(n) % (2 if case.name == "one logit" else 3)


def by_hand(net, X, y, mask, lr, epochs):
    """Return the net after steps of gradient descent on all rows, of whose gradients only the chosen entries count."""
    net.eval()
    parameters = {name: net.get_parameter(name) for name in mask}
    X = torch.from_numpy(X)
    for _ in range(epochs):
        logits = net(X)
        logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients):
                parameter -= lr * gradient.to_dense() * mask[name]
    return net


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_masked_gradient(name):
    case = BY_NAME[name]
    net, (X, y) = case.net(), data(case)
    mask = EdgeImportance(net, layers="all").fit(X, y).mask(0.4)
    options = {"optimizer": torch.optim.SGD, "lr": 0.1, "max_epochs": 4, "batch_size": 5, "random_state": 0}
    with untouched(net), random_state_untouched():
        tuned = finetune(net, X, y, mask, **options)
    expected = by_hand(case.net(), X, y, mask, 0.1, 4)
    for parameter, values in expected.state_dict().items():
        assert_close(tuned.state_dict()[parameter], values, 1e-9) if values.any() else None
    for parameter, values in tuned.named_parameters():
        same = as_array(values) == as_array(net.get_parameter(parameter))
        assert same[~mask[parameter].numpy()].all()
        assert parameter not in mask or not same[mask[parameter].numpy()].all() or not mask[parameter].any()
        assert values.requires_grad
    assert tuned.training == net.training


def test_the_optimizer_sees_the_chosen_entries_alone(monkeypatch):
    seen = []

    class Adam(torch.optim.Adam):
        def step(self, *args, **kwargs):
            done = super().step(*args, **kwargs)
            seen.append([v.numel() for s in self.state.values() for v in s.values() if v.ndim])
            return done

    case = BY_NAME["mlp of three layers"]
    mask = {"0.weight": np.tri(5, 6) > 0, "2.weight": np.zeros((4, 5), bool)}
    finetune(case.net(), *data(case), mask, optimizer=Adam, max_epochs=1, random_state=0)
    assert seen == [[int(np.tri(5, 6).sum())] * 2]


def test_statistics_of_normalisation_stay_unless_asked():
    case = BY_NAME["batch norm 2d"]
    mask = {"0.weight": np.ones((4, 2, 3, 3), bool)}
    before = case.net().state_dict()
    for update in (False, True):
        tuned = finetune(case.net(), *data(case), mask, update_statistics=update, random_state=0).state_dict()
        same = [torch.equal(before[name], tuned[name]) for name in before if "running" in name]
        assert all(same) != update


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d groups"])
def test_a_pruned_net_is_tuned_where_it_is_not_pruned(name):
    case = BY_NAME[name]
    net, (X, y) = case.net(), data(case)
    mask = EdgeImportance(net).fit(X, y).mask(0.4)
    pruned = prune(net, mask)
    with untouched(pruned):
        tuned = finetune(pruned, X, y, mask, lr=0.05, random_state=0)
    for parameter, entries in mask.items():
        layer = tuned.get_submodule(parameter.rpartition(".")[0])
        assert not as_array(layer.weight)[~entries.numpy()].any()
        assert_close(layer.weight, layer.weight_orig * entries)
    tuned.eval()(torch.from_numpy(X)).sum().backward()
    tuned.eval()(torch.from_numpy(X)).sum().backward()  # twice: nothing holds on to the graph


def test_random_state_decides_and_training_helps():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6)).astype(np.float32)
    y = np.array(["lo", "hi", "mid"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0)]
    net = NetClassifier(MLP, max_epochs=1, random_state=0).fit(X, y)
    mask = EdgeImportance(net).fit(X, y).mask(0.3)
    one, again, other = (finetune(net, X, y, mask, lr=0.01, max_epochs=20, random_state=s) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))

    def accuracy(module):
        return (net.classes_[module(torch.from_numpy(X)).argmax(1).numpy()] == y).mean()

    assert accuracy(one) > accuracy(net.module_) + 0.05


def test_dropout_is_on_and_its_seed_our_own():
    net = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 3))
    X, y = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32), np.arange(30) % 3
    mask = {"0.weight": np.ones((20, 6), bool)}
    with random_state_untouched():
        one, again = (finetune(net, X, y, mask, batch_size=30, random_state=3)[0].weight for _ in range(2))
        other = finetune(net.eval(), X, y, mask, batch_size=30, random_state=4)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other[0].weight)
    assert not other.training


def test_what_picks_the_logits():
    case = BY_NAME["returns a tuple"]
    mask = {"body.weight": np.ones((5, 6), bool)}
    tuned = finetune(case.net(), *data(case), mask, net_output=case.output, random_state=0)
    assert not torch.equal(tuned.body.weight, case.net().body.weight)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_rows_of_numbers_are_cast_as_the_engine_casts_them(dtype):
    net = MLP(6, 3)
    X, y = np.random.default_rng(0).integers(0, 2, (12, 6)), np.arange(12) % 3
    mask = EdgeImportance(net).fit(X.astype(dtype), y).mask(0.5)
    one, other = (finetune(net, X.astype(kind), y, mask, random_state=0) for kind in (dtype, np.float32))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_indices_of_any_kind():
    case = BY_NAME["embedding"]
    X, y = data(case)
    mask = EdgeImportance(case.net()).fit(X, y).mask(0.5)
    one, other = (finetune(case.net(), X.astype(kind), y, mask, random_state=0) for kind in (np.int32, np.int64))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_rows_that_are_read_only():
    case = BY_NAME["mlp of three layers"]
    X, y = data(case)
    X = X.copy()
    X.setflags(write=False)
    finetune(case.net(), X, y, EdgeImportance(case.net()).fit(X, y).mask(), max_epochs=1)


def test_batches_of_one_row_have_no_statistics():
    case = BY_NAME["mlp of three layers"]
    (X, y), mask = data(case), {"0.weight": np.ones((5, 6), bool)}
    normalised = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="iterator_train__drop_last=True"):
        finetune(normalised, X, y, mask, update_statistics=True, batch_size=4)
    finetune(normalised, X, y, mask, update_statistics=True, batch_size=4, iterator_train__drop_last=True)


def test_group_norms_behind_frozen_layers_with_channels_last():
    """torch ends the process there, at once or soon; so it is one of its own."""
    script = """if True:
        import numpy as np, torch
        from torch import nn
        from sklearn_gradspace import finetune
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 4))
        X, y = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype("f4"), np.arange(20) % 4
        mask = {"1.weight": torch.ones(8, dtype=torch.bool)}
        tuned = [finetune(n, X, y, mask, random_state=0) for n in (net, net.to(memory_format=torch.channels_last))]
        one, other = (n[1].weight for n in tuned)
        assert torch.allclose(one, other, rtol=1e-5) and (one != 1).all()
        assert not tuned[1][1]._forward_pre_hooks
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_the_order_of_a_modules_labels():
    net, X, y = MLP(6, 3), np.random.default_rng(0).normal(size=(12, 6)), np.arange(12) % 3
    names, mask = np.array(["zero", "one", "two"]), {"layers.1.weight": np.ones((32, 6), bool)}
    expected = finetune(net, X, y, mask, random_state=0)
    named = finetune(net, X, names[y], mask, classes=names, random_state=0)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), expected.parameters()))
    with pytest.warns(UserWarning, match="taken in sorted order"):
        guessed = finetune(net, X, names[y], mask, random_state=0)
    assert not torch.equal(guessed.layers[1].weight, expected.layers[1].weight)
