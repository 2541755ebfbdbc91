"""Norms and products of gradients that are not formed are those of the formed ones."""

import re

import numpy as np
import pytest
import torch
from asserts import assert_close
from cases import BY_NAME

from sklearn_gradspace.gradients import FactoredGradients, _factored

NAMES = [
    "mlp of three layers", "linear on steps", "conv2d twice", "called twice", "transformer", "tied weights", "lstm",
    "unused layer", "embedding", "one logit", "frozen", "parameters without axes", "bottleneck",
]  # fmt: skip
PRECISIONS = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(params=[2**26, 300], ids=["at once", "in parts"])
def _parts(request, monkeypatch):
    monkeypatch.setattr(_factored, "_PART_BYTES", request.param)


@pytest.fixture(params=PRECISIONS, ids=str)
def dtype(request):
    return request.param


def make(name, labels, dtype, device):
    """Return factored gradients, those of other rows, and both formed, in double precision."""
    case = BY_NAME[name]
    engine = case.engine(device, net=case.net().to(dtype))
    labels = torch.arange(case.n) % engine.n_labels if labels else None
    mine = FactoredGradients(engine, case.X, labels)
    other = FactoredGradients(engine, case.X[1:4])
    formed = [engine(case.X, labels).double(), engine(case.X[1:4]).double()]
    return engine, mine, other, formed[0].reshape(mine.shape), formed[1]


each = pytest.mark.parametrize("name", NAMES)
one_or_all = pytest.mark.parametrize("labels", [True, False], ids=["one label", "all labels"])


@each
@one_or_all
@pytest.mark.usefixtures("_parts")
def test_equal_the_formed_gradients(name, labels, dtype, device):
    engine, mine, other, formed, formed_other = make(name, labels, dtype, device)
    assert mine.shape == (BY_NAME[name].n, 1 if labels else engine.n_labels, engine.n_params)
    norms, products = mine.squared_norms(), mine.inner(other)
    assert list(norms) == list(products) == [block.name for block in engine.blocks]
    # Relative to what all parameters add up to: some gradients are zero.
    size, size_other = formed.norm(dim=2).max(), formed_other.norm(dim=2).max()
    for block in engine.blocks:
        part, of_other = formed[..., block.slice], formed_other[..., block.slice]
        assert mine.dense(block.name).shape == (*mine.shape[:2], *block.shape)
        near(mine.dense(block.name).flatten(2) if block.shape else mine.dense(block.name)[..., None], part, size, dtype)
        near(norms[block.name], part.square().sum(2), size**2, dtype)
        near(products[block.name], torch.einsum("nkp,mlp->nkml", part, of_other), size * size_other, dtype)


def near(actual, expected, size, dtype):
    assert actual.shape == expected.shape and actual.dtype == dtype
    assert (actual - expected).abs().max() <= PRECISIONS[dtype] * size


@each
@one_or_all
def test_dot_is_the_sum_over_parameters(name, labels, dtype, device):
    engine, mine, _, formed, _ = make(name, labels, dtype, device)
    rng = np.random.default_rng(0)
    directions = {block.name: torch.tensor(rng.normal(size=(4, *block.shape))) for block in engine.blocks}
    flat = torch.cat([direction.reshape(4, -1) for direction in directions.values()], 1)
    assert_close(mine.dot(directions), formed @ flat.T.to(device), PRECISIONS[dtype])
    for block in engine.blocks[:2]:
        expected = formed[..., block.slice] @ directions[block.name].reshape(4, -1).T.to(device)
        size = max(expected.abs().max(), formed.abs().max())
        assert (mine.dot({block.name: directions[block.name]}) - expected).abs().max() <= PRECISIONS[dtype] * 10 * size


@each
def test_inner_is_symmetric_and_holds_the_norms(name, device):
    _, mine, _, _, _ = make(name, False, torch.float64, device)
    norms = mine.squared_norms()
    for parameter, product in mine.inner(mine).items():
        size = norms[parameter].max()
        assert (product - product.permute(2, 3, 0, 1)).abs().max() <= 1e-12 * size
        diagonal = torch.einsum("nknk->nk", product)
        assert (diagonal - norms[parameter]).abs().max() <= 1e-12 * size


def test_directions_that_do_not_fit_are_refused_by_name(device):
    _, mine, _, _, _ = make("mlp of three layers", True, torch.float64, device)
    for shape in ((2, 5, 4), (4, 5), (2, 20)):
        message = f"directions['2.weight'] has shape {shape}; the parameter needs (h, 4, 5)."
        with pytest.raises(ValueError, match=re.escape(message)):
            mine.dot({"2.weight": torch.ones(shape)})


def test_names_that_are_not_there_are_refused(device):
    _, mine, _, _, _ = make("mlp of three layers", True, torch.float64, device)
    for ask in (mine.dense, lambda name: mine.dot({name: torch.ones(1, 3)})):
        with pytest.raises(KeyError, match=r"'1.weight' is none of the parameters 0.weight, 0.bias, 2.weight"):
            ask("1.weight")


def test_results_do_not_change_one_another(device):
    engine, mine, other, _, _ = make("conv2d twice", False, torch.float64, device)
    first = [mine.dense(block.name) for block in engine.blocks]
    before = [part.clone() for part in first]
    other.squared_norms(), engine(BY_NAME["conv2d twice"].X + 1), mine.inner(other)
    assert all(torch.equal(a, b) for a, b in zip(first, before))


def test_later_training_does_not_show_in_what_is_held(device):
    case = BY_NAME["mlp of two layers"]
    net = case.net().to(device)
    engine = case.engine(net=net)
    expected = engine(case.X)
    held = FactoredGradients(engine, case.X)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    found = torch.cat([held.dense(block.name).flatten(2) for block in engine.blocks], 2)
    assert_close(found, expected)
