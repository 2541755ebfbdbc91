"""Where memory runs out every pass over rows goes on with fewer of them, to the same results."""

import itertools

import numpy as np
import pytest
import torch
from asserts import assert_close
from cases import BY_NAME
from sklearn.base import clone

from sklearn_gradspace import EdgeImportance, GradientFeaturizer, GradNetClassifier
from sklearn_gradspace.gradients import (
    FactoredGradients,
    GradientArray,
    GradientEngine,
    GradientFeatures,
    GradientGram,
    ScoreMoments,
    _gram,
    _memory,
)

RAN_OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
pytestmark = pytest.mark.filterwarnings("ignore:memory ran out")


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    monkeypatch.setattr(_memory.gc, "collect", lambda: 0)  # which takes a while


def fails_above(monkeypatch, owner, name, most, size=len):
    """Let a function fail where `size` of its first argument is above `most`; return the sizes that are tried."""
    tried, original = [], getattr(owner, name)

    def limited(*args, **kwargs):
        n = size(args[1])
        tried.append(n)
        if n > most:
            raise RAN_OUT
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, limited)
    return tried


def rows_of(name, repeats=4):
    case = BY_NAME[name]
    return np.concatenate([case.X + 0.1 * i for i in range(repeats)])


def test_passes_are_halved_from_there_on():
    limit, tried = _memory.RowLimit(torch.device("cpu")), []

    def compute(rows):
        tried.append(rows.stop - rows.start)
        if tried[-1] > 3:
            raise RAN_OUT
        yield rows.stop - rows.start, list(range(rows.start, rows.stop))

    with pytest.warns(RuntimeWarning, match="memory ran out on cpu with 12 rows at a time: 6 are taken from here on"):
        found = list(limit.passes(17, compute, 12))
    assert [rows.start for rows, _ in found] == [0, 3, 6, 9, 12, 15]
    assert list(itertools.chain(*(result for _, result in found))) == list(range(17))
    assert tried == [12, 6, 3, 3, 3, 3, 3, 2]
    tried.clear()
    assert len(list(limit.passes(4, compute))) == 2 and tried == [3, 1]


def test_other_errors_pass():
    def compute(rows):
        raise RuntimeError("shapes cannot be multiplied")
        yield

    with pytest.raises(RuntimeError, match="shapes"):
        list(_memory.RowLimit(torch.device("cpu")).passes(3, compute))


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice"])
def test_outputs(name, device, monkeypatch):
    engine, X = BY_NAME[name].engine(device), rows_of(name)
    expected = engine.outputs(X)
    tried = fails_above(monkeypatch, GradientEngine, "inputs", 6)
    assert_close(engine.outputs(X), expected)
    assert tried[0] == len(X) and max(tried[-3:]) <= 6


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice"])
@pytest.mark.parametrize("step, most", [("forward", 3), ("linear", 12)])
def test_factored_batches_and_their_derivatives(name, step, most, device, monkeypatch):
    engine, X = BY_NAME[name].engine(device), rows_of(name)
    array, block = GradientArray(GradientFeatures(engine, batch_size=8), X), engine.blocks[0]
    weight = torch.ones(2, block.size, dtype=torch.float64, device=engine.device)

    def products(weight):
        def apply(part):
            found = part.linear([block.slice], weight, weight.new_zeros(2))
            if step == "linear" and len(found) > most:
                raise RAN_OUT
            return found

        return torch.cat(list(array.factored(apply)))

    results = []
    for limited in (False, True):
        if limited and step == "forward":
            fails_above(monkeypatch, GradientEngine, "forward", most)
        most = most if limited else 10**9
        of_weight = weight.clone().requires_grad_()
        found = products(of_weight)
        found.square().sum().backward()
        results.append((found, of_weight.grad))
        most = 12
    for expected, found in zip(*results):
        assert_close(found, expected)


def test_training_on_factored_features(device, monkeypatch):
    case = BY_NAME["mlp of three layers"]
    X, net = rows_of("mlp of three layers", 12).astype(np.float32), case.net().float()
    y = np.arange(len(X)) % 3
    lazy = GradientFeaturizer(net, percentile=100, power=None, scale="layer", device=device).fit_transform(X)
    fits, options = [], {"views": "all", "batch_size": 16, "max_epochs": 2, "random_state": 0, "base_logits": True}
    fits.append(GradNetClassifier(**options).fit(lazy, y).predict_proba(lazy))
    tried = fails_above(monkeypatch, GradientEngine, "forward", 5)
    fits.append(GradNetClassifier(**options).fit(lazy, y).predict_proba(lazy))
    assert max(tried) > 5
    assert_close(fits[1], fits[0], 1e-4)


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice", "transformer"])
@pytest.mark.parametrize("options", [
    {}, {"criterion": "fisher", "labels": "expected"}, {"criterion": "survival", "labels": "all"},
    {"labels": "sampled", "per_class": True},
], ids=["sensitivity", "fisher", "survival", "classes"])  # fmt: skip
@pytest.mark.parametrize("step", ["forward", "add"])
def test_importances(name, options, step, device, monkeypatch):
    """Also where it runs out when some parameters have their rows already."""
    net, X = BY_NAME[name].net(), rows_of(name)
    y = np.arange(len(X)) % 3
    estimator = EdgeImportance(net, layers="all", device=device, random_state=0, batch_size=9, **options)
    expected = estimator.fit(X, y)
    means, errors = expected.importances_, expected.standard_errors_
    calls = []
    if step == "forward":
        fails_above(monkeypatch, GradientEngine, step, 4)
    else:
        original = ScoreMoments.add

        def fails_now_and_then(self, block, *args):
            calls.append(block)
            if len(calls) % 5 == 0 and len(args[0]) > 1:
                raise RAN_OUT
            original(self, block, *args)

        monkeypatch.setattr(ScoreMoments, "add", fails_now_and_then)
    found = clone(estimator).fit(X, y)
    for block in means:
        assert_close(found.importances_[block], means[block])
        np.testing.assert_allclose(found.standard_errors_[block], errors[block], 1e-7, 1e-8)


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice"])
@pytest.mark.parametrize("working_memory", [2**30, 20_000])
@pytest.mark.parametrize("step, most", [("forward", 3), ("_pass", 3), ("_kernel", 4)])
def test_kernels(name, working_memory, step, most, device, monkeypatch):
    engine, X = BY_NAME[name].engine(device), rows_of(name)
    gram = GradientGram(engine, working_memory=working_memory)
    Y, coefficients = X[:7] + 0.3, torch.rand(7, 2, dtype=torch.float64, device=engine.device)
    expected = gram(X), gram(X, Y), gram.dot(X, Y, coefficients), gram.outputs(X)
    owner = GradientEngine if step == "forward" else GradientGram
    tried = fails_above(monkeypatch, owner, step, most)
    for result, truth in zip((gram(X), gram(X, Y), gram.dot(X, Y, coefficients), gram.outputs(X)), expected):
        assert_close(result, truth)
    assert working_memory < 2**30 or max(tried) > most


def test_gradients_that_cannot_be_held_are_computed_anew(device, monkeypatch):
    gram, X = GradientGram(BY_NAME["mlp of three layers"].engine(device)), rows_of("mlp of three layers")
    assert isinstance(gram.held(X), _gram.GradientTile)
    fails_above(monkeypatch, GradientGram, "tile", 5)
    assert gram.held(X) is X


def test_a_row_that_does_not_fit_is_refused(device, monkeypatch):
    case = BY_NAME["mlp of three layers"]
    engine = case.engine(device)
    fails_above(monkeypatch, GradientEngine, "forward", 0)
    for run in (
        lambda: list(GradientArray(GradientFeatures(engine), case.X).factored(id)),
        lambda: GradientGram(engine).tile(case.X),
        lambda: FactoredGradients(engine, case.X),
    ):
        with pytest.raises((MemoryError, torch.OutOfMemoryError), match=r"a pass of a single row takes|CUDA out"):
            run()
