"""Pruned, tuned, saved and rescaled: what is done with any net leaves the net alone, and does what it says."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from asserts import as_array, assert_close, random_state_untouched, untouched
from hypothesis import given
from hypothesis import strategies as st
from pathspace.random_nets import random_net
from pathspace.twins import random_factors
from properties.calls import fails_well, nothing_changes, small_net
from properties.nets import nets
from properties.test_parameters import VALUES

from sklearn_gradspace import EdgeImportanceDisplay, GradientFeaturizer, finetune, load, prune, save, to_onnx
from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, equivalent, path_values, rescale, scale_graph

seeds = st.integers(0, 999)
IMAGES = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_mask(net, seed):
    """Return a mask of some of the trainable parameters."""
    generator = np.random.default_rng(seed)
    trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    chosen = [trainable[i] for i in generator.permutation(len(trainable))[: generator.integers(1, 4)]]
    return {name: generator.random(p.shape) > 0.4 for name, p in chosen}


@given(nets(), seeds)
def test_prune(drawn, seed):
    mask, X = random_mask(drawn.net, seed), torch.from_numpy(drawn.rows(3, seed))
    with untouched(drawn.net), random_state_untouched():
        pruned = prune(drawn.net, mask)
    expected = copy.deepcopy(drawn.net).eval()
    with torch.no_grad():
        for name, entries in mask.items():
            expected.get_parameter(name).mul_(torch.from_numpy(entries))
        output = drawn.output or (lambda returned: returned)
        assert_close(output(pruned.eval()(X)), output(expected(X)))


@given(nets(), seeds, st.sampled_from([torch.optim.SGD, torch.optim.Adam]), st.integers(1, 4))
def test_finetune(drawn, seed, optimizer, batch_size):
    mask, X = random_mask(drawn.net, seed), drawn.rows(4, seed)
    y = np.arange(4) % 2
    options = {"net_output": drawn.output, "optimizer": optimizer, "batch_size": batch_size, "random_state": seed}
    with untouched(drawn.net), random_state_untouched(), fails_well():
        tuned = finetune(drawn.net, X, y, mask, max_epochs=2, **options)
        for (name, before), (same, after) in zip(drawn.net.named_parameters(), tuned.named_parameters()):
            outside = ~mask[name] if name in mask else np.ones(before.shape, bool)
            assert name == same
            np.testing.assert_array_equal(as_array(after)[outside], as_array(before)[outside])


@given(nets(), seeds)
def test_files(drawn, seed):
    X = drawn.rows(3, seed)
    if drawn.output is not None:
        return  # functions are refused
    featurizer = GradientFeaturizer(drawn.net, layers="all").fit(X)
    with TemporaryDirectory() as folder, untouched(drawn.net), random_state_untouched():
        save(featurizer, Path(folder) / "file")
        twin = load(Path(folder) / "file", net=copy.deepcopy(drawn.net))
    np.testing.assert_array_equal(twin.transform(X).toarray(), featurizer.transform(X).toarray())


@given(seeds, seeds)
def test_twins(of_net, of_factors):
    net = random_net(of_net).eval()
    graph = scale_graph(net)
    twin = copy.deepcopy(net)
    with random_state_untouched():
        rescale(twin, random_factors(graph), graph)
    assert_close(twin(IMAGES), net(IMAGES), 1e-9)
    assert equivalent(net, twin)


CALLS = {
    "rescale": lambda value: rescale(small_net(), value),
    "balance": balance,
    "scale_graph": scale_graph,
    "path_values": lambda value: path_values(small_net(), value),
    "equivalent": lambda value: equivalent(small_net(), value),
    **{
        f"ECOptimizer, {name}": lambda value, name=name: ECOptimizer(small_net(), **{"lr": 0.1, name: value})
        for name in ("params", "method", "init", "units", "path_penalty", "balance_every", "chart_every")
    },
    "prune": lambda value: prune(small_net(), value),
    "a pruned entry": lambda value: prune(small_net(), {"layers.1.weight": value}),
    "EdgeImportanceDisplay": EdgeImportanceDisplay.from_estimator,
    "save": lambda value: save(value, "nowhere"),
    "to_onnx": lambda value: to_onnx(value, "nowhere"),
}


@pytest.mark.parametrize("name", CALLS)
@given(value=VALUES | st.text(max_size=4) | st.floats())
def test_any_argument(name, value):
    net = small_net()
    with nothing_changes(net), fails_well():
        CALLS[name](value)
