"""The gradient kernel is that of gradients from a loop, in tiles of any size, and its laws hold."""

import pickle

import numpy as np
import pytest
import reference
import torch
from asserts import as_array, assert_close, random_state_untouched, untouched
from cases import BY_NAME
from torch import nn

from sklearn_gradspace.gradients import GradientEngine, GradientGram, _gram, _ridge
from sklearn_gradspace.gradients._gram import GradientTile, _product

NETS = [
    "mlp of three layers",
    "linear on steps",
    "conv2d twice",
    "conv2d groups",
    "residual",
    "batch norm 2d",
    "layer norm",
    "called twice",
    "tied weights",
    "one layer, two names",
    "frozen",
    "unused layer",
    "attention",
    "lstm",
    "experts",
    "on demand",
    "embedding",
    "parameters without axes",
    "returns a tuple",
    "one logit",
    "one logit without an axis",
    "sum and product",
]
FEW = ["mlp of three layers", "conv2d twice", "called twice"]
TINY, SMALL = 1, 2**14  # bytes: tiles of one row, of a few


def make(name, device=None, precision=torch.float64, layers="all", scalar=None, **options):
    case = BY_NAME[name]
    engine = case.engine(device, layers, case.net().to(precision), scalar=scalar or case.scalar)
    return GradientGram(engine, **options)


def slow(name, X, Y, layers=None, scalar=None, **options):
    """Return the kernel by the loop in float64, of the parameters whose names `layers` accepts."""
    case, net = BY_NAME[name], BY_NAME[name].net()
    named = {parameter: n for n, parameter in net.named_parameters() if parameter.requires_grad}
    keep = np.concatenate([np.full(p.numel(), layers is None or layers(n)) for p, n in named.items()])
    sizes = [p.numel() for p, n in named.items() if layers is None or layers(n)]
    rows = [reference.gradients(net, x, scalar or case.scalar, case.output)[..., keep] for x in (X, Y)]
    return reference.kernel(*rows, sizes, **options)


def rows(name, n=7):
    """Return rows beyond those that decided on the rules."""
    case = BY_NAME[name]
    rng = np.random.default_rng(1)
    size = (n, *case.shape)
    return rng.integers(case.indices, size=size) if case.indices else rng.normal(size=size)


@pytest.mark.parametrize("name", NETS)
def test_equals_the_reference_on_every_kind_of_net(name, device):
    X, Y = BY_NAME[name].X, rows(name, 3)
    for options in ({"normalize": True}, {"normalize": False}, {"normalize": "layer", "degree": 3}):
        expected = slow(name, X, Y, **options)
        for working_memory in (2**30, TINY):
            gram = make(name, device, working_memory=working_memory, **options)
            assert_close(gram(X, Y), expected, 1e-9)


@pytest.mark.parametrize("name", NETS)
def test_single_precision(name, device):
    X, Y = BY_NAME[name].X, rows(name, 3)
    for normalize in (True, "layer"):
        found = make(name, device, torch.float32, normalize=normalize)(X, Y)
        assert found.dtype == torch.float32
        assert_close(found, slow(name, X, Y, normalize=normalize), 2e-4)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("normalize", [True, False, "layer"])
@pytest.mark.parametrize("scalar", ["logit", "cross_entropy", "log_probability", torch.sin])
def test_degrees_norms_and_scalars(degree, normalize, scalar, device):
    options = {"degree": degree, "normalize": normalize, "scalar": scalar}
    for name in ("mlp of three layers", "conv2d twice"):
        X, Y = BY_NAME[name].X, rows(name, 2)
        assert_close(make(name, device, **options)(X, Y), slow(name, X, Y, **options), 1e-9)


@pytest.mark.parametrize(
    ("layers", "accepts"),
    [
        ("weights", lambda n: n.endswith("weight")),
        ("*.bias", lambda n: n.endswith("bias")),
        (["0.*", "2.weight"], lambda n: n in ("0.weight", "0.bias", "2.weight")),
    ],
)
@pytest.mark.parametrize("normalize", [True, False, "layer"])
def test_layers(layers, accepts, normalize, device):
    for name in ("mlp of three layers", "conv2d twice"):
        X, Y = BY_NAME[name].X, rows(name, 2)
        expected = slow(name, X, Y, accepts, normalize=normalize)
        assert_close(make(name, device, layers=layers, normalize=normalize)(X, Y), expected, 1e-9)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("normalize", [True, False, "layer"])
def test_tiles_and_the_order_of_rows_make_no_difference(name, normalize, device):
    X, Y = rows(name, 6), BY_NAME[name].X[:3]
    whole = make(name, device, normalize=normalize)
    order = np.random.default_rng(2).permutation(6)
    for working_memory in (TINY, SMALL):
        gram = make(name, device, normalize=normalize, working_memory=working_memory)
        assert_close(gram(X, Y), whole(X, Y), 1e-12)
        assert_close(gram(X), whole(X, X), 1e-12)
        assert torch.equal(gram(X), gram(X).T)
    assert_close(gram(X[order], Y), whole(X, Y)[order], 1e-12)
    assert_close(gram(Y, X), whole(X, Y).T, 1e-12)


def test_a_small_working_memory_makes_many_tiles(device, monkeypatch):
    met = []
    monkeypatch.setattr(GradientGram, "_kernel", lambda self, tile, other, *norms: met.append(other) or 0)
    for working_memory, few in ((2**30, True), (SMALL, False)):
        met.clear()
        make("conv2d twice", device, working_memory=working_memory)(rows("conv2d twice", 11))
        assert (len(met) == 1) == few


def tiles_of(gram, X, Y):
    """Return rows and values of every tile."""
    found = []
    gram._use_tiles(X, Y, lambda rows, tiles: found.extend((rows, values) for _, values in tiles))
    return found


def test_tiles_are_small_beside_gradients_that_are_held(device):
    name = "mlp of three layers"
    X, Y = rows(name, 30), rows(name, 3)
    gram = make(name, device, working_memory=SMALL)
    held, (large, small) = gram.tile(Y), gram._steps(X[:1])
    assert len(Y) <= small < large < len(X)
    for others in (held, held[:1], Y[:1]):  # given, a part of what was given, rows that fit
        assert {rows.stop - rows.start for rows, _ in tiles_of(gram, X, others)} <= {small, len(X) % small}
    assert max(rows.stop - rows.start for rows, _ in tiles_of(gram, X, X)) == large  # computed anew for each tile
    assert_close(gram(X, held), make(name, device)(X, Y), 1e-12)


def test_little_of_the_upper_triangle_is_computed(device, monkeypatch):
    monkeypatch.setattr(_gram, "_ROWS", 1)
    X = rows("mlp of three layers", 64)
    gram = make("mlp of three layers", device)
    assert len(X) < gram._steps(X[:1])[1]  # all gradients are held
    assert sum(values.numel() for _, values in tiles_of(gram, gram.tile(X), None)) < 0.6 * len(X) ** 2


@pytest.mark.parametrize("name", FEW)
def test_dot_is_the_matrix_times_coefficients(name, device):
    X, Y = rows(name, 5), BY_NAME[name].X[:3]
    coefficients = torch.randn(len(Y), 4, dtype=torch.float64).to(device)
    for working_memory in (TINY, SMALL, 2**30):
        gram = make(name, device, working_memory=working_memory)
        assert_close(gram.dot(X, Y, coefficients), gram(X, Y) @ coefficients, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalize", [True, False, "layer"])
def test_factored_gradients_give_what_formed_ones_give(dtype, normalize, device):
    name = "mlp of three layers"
    X, Y = BY_NAME[name].X, rows(name, 3)
    factored = make(name, device, dtype, normalize=normalize)
    formed = make(name, device, dtype, normalize=normalize, views=lambda X: [X, X])
    weights = [n for n in factored.tile(X).gradients if n.endswith("weight")]
    assert len(weights) == 3 and all(len(factored.tile(X).gradients[n]) == 2 for n in weights)
    assert all(len(tensors) == 1 for tensors in formed.tile(X).gradients.values())
    assert_close(factored(X, Y), formed(X, Y), 1e-12 if dtype == torch.float64 else 1e-5)
    assert_close(factored.tile(X).squared_norms, formed.tile(X).squared_norms, 1e-5)


@pytest.mark.parametrize("name", NETS)
def test_is_one_with_itself_and_positive_semi_definite(name, device):
    X = np.concatenate([rows(name), rows(name)[:2]])
    for degree in (1, 2):
        for normalize in (True, False):
            matrix = as_array(make(name, device, degree=degree, normalize=normalize)(X))
            assert np.linalg.eigvalsh(matrix)[0] >= -1e-12 * matrix.trace()
            if normalize:
                np.testing.assert_allclose(matrix.diagonal(), 1, rtol=1e-12)
                np.testing.assert_allclose(matrix[range(2), range(7, 9)], 1, rtol=1e-12)
                assert np.abs(matrix).max() <= 1 + 1e-12


@pytest.mark.parametrize("normalize", [True, False, "layer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("views", [None, lambda X: [X, X]], ids=["factored", "formed"])
def test_gradients_of_zero_have_a_kernel_of_zero_with_all(normalize, dtype, views, device):
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).to(dtype)
    with torch.no_grad():
        net[0].weight.abs_()  # rows of negative numbers are dead
    X = np.random.default_rng(0).normal(size=(6, 4)) + 2
    X[1::2] = -np.abs(X[1::2])
    engine = GradientEngine(net, X, "all", device, scalar="logit")
    matrix = as_array(GradientGram(engine, normalize=normalize, views=views)(X))
    assert np.isfinite(matrix).all()
    assert (matrix[1::2] == 0).all() and (matrix[:, 1::2] == 0).all()
    assert (matrix[::2, ::2].diagonal() > 0).all()
    sizes = [p.numel() for p in net.parameters()]
    gradients = reference.gradients(net.double().cpu(), X, "logit")
    assert_close(matrix, reference.kernel(gradients, gradients, sizes, normalize=normalize), 1e-4)


def test_the_outputs(device):
    for name in ("mlp of three layers", "one logit without an axis", "returns a tuple"):
        gram = make(name, device, working_memory=TINY)
        X = rows(name)
        assert_close(gram.outputs(X), gram.engine.outputs(X), 1e-12)


def turned(X):
    return [X, X[..., ::-1].copy(), 2 * X]


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice", "attention"])
@pytest.mark.parametrize("normalize", [True, False, "layer"])
def test_views_average_gradients_and_outputs(name, normalize, device):
    X, Y = rows(name, 3), BY_NAME[name].X[:2]
    net = BY_NAME[name].net()
    sizes = [p.numel() for p in net.parameters()]
    means = [np.mean([reference.gradients(net, view) for view in turned(x)], 0) for x in (X, Y)]
    expected = reference.kernel(*means, sizes, normalize=normalize)
    for working_memory in (TINY, 2**30):
        gram = make(name, device, views=turned, normalize=normalize, working_memory=working_memory)
        assert_close(gram(X, Y), expected, 1e-9)
        outputs = [as_array(gram.engine.outputs(view)) for view in turned(X)]
        assert_close(gram.outputs(X), np.mean(outputs, 0), 1e-12)


def test_views_may_be_tensors_of_another_precision(device):
    X = BY_NAME["conv2d twice"].X
    gram = make("conv2d twice", device, views=lambda X: (torch.from_numpy(X).float(),))
    assert_close(gram(X), make("conv2d twice", device)(X.astype(np.float32)), 1e-12)


def test_views_of_whole_numbers_need_not_be_whole(device):
    X = np.arange(30).reshape(5, 6) % 7
    whole = make("mlp of three layers", device, views=lambda X: [X + 0.5])(X)
    assert_close(whole, make("mlp of three layers", device)(X + 0.5), 1e-12)


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        (lambda X: [X, X[:, :3]], r"returned \[\(\d, 3\)\]"),
        (lambda X: [X[:0]], r"returned \[\(0, 6\)\]"),
        (lambda X: [], r"returned \[\]"),
        (lambda X: X, r"\(6,\)"),
    ],
)
def test_views_of_another_shape_or_none_are_refused(views, shown, device):
    gram, X = make("mlp of three layers", device, views=views), BY_NAME["mlp of three layers"].X
    for function in (gram, gram.outputs):
        with pytest.raises(ValueError, match=r"views must return arrays of shape .*" + shown):
            function(X)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalize", [True, False, "layer"])
@pytest.mark.parametrize("views", [None, lambda X: [X, X]], ids=["factored", "formed"])
def test_products_of_gradients_in_half_precision(precision, normalize, views, device):
    net = nn.Sequential(nn.Conv1d(1, 6, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(240, 20), nn.ReLU())
    net = nn.Sequential(net, nn.Linear(20, 4)).to(precision)
    X = np.random.default_rng(0).normal(size=(30, 1, 40))
    engine = GradientEngine(net, X, "weights", device, scalar="logit")
    for degree in (1, 2):
        options = {"degree": degree, "normalize": normalize, "views": views}
        exact = as_array(GradientGram(engine, **options)(X)).astype(float)
        gram = GradientGram(engine, dtype=torch.bfloat16, **options)
        found = gram(X)
        assert found.dtype == precision and np.abs(as_array(found) - exact).max() > 0
        lengths = np.sqrt(exact.diagonal())
        errors = np.abs(as_array(found) - exact) / np.outer(lengths, lengths)
        assert errors.max() < 2**-7 * degree and np.median(np.abs(as_array(found) / exact - 1)) < 0.002 * degree
        coefficients = torch.eye(30, dtype=precision, device=device)
        assert_close(gram.dot(X, X, coefficients), gram(X, X), 1e-6)


def test_sums_in_half_precision_are_taken_in_single(device):
    rows = torch.ones(2, 2**16 + 3, dtype=torch.bfloat16, device=device)
    assert_close(_product(rows, rows), np.full((2, 2), 2**16 + 3), 2**-9)
    tile = GradientTile({"factored": (rows[:, None], rows), "formed": (rows,)})
    assert_close(tile.squared_norms, np.array([[(2.0**16 + 3) ** 2] * 2, [2.0**16 + 3] * 2]), 1e-6)


@pytest.mark.parametrize("size", [0, 1, 5, 6, 7])
@pytest.mark.parametrize("block", [1, 3, 6, 100])
def test_the_lower_triangle_is_mirrored(size, block, monkeypatch):
    monkeypatch.setattr(_ridge, "_BLOCK", block)
    matrix = torch.randn(size, size)
    expected = matrix.tril() + matrix.tril(-1).T
    matrix[np.triu_indices(size, 1)] = float("nan")
    assert _ridge.mirror_lower(matrix) is matrix
    assert torch.equal(matrix, expected)


def test_an_engine_pickles_with_its_kernel(device):
    gram, X = make("conv2d twice", device), BY_NAME["conv2d twice"].X
    with untouched(gram.engine.net), random_state_untouched():
        assert torch.equal(pickle.loads(pickle.dumps(gram))(X), gram(X))


@pytest.mark.parametrize("name", ["experts", "on demand"])
def test_rows_that_call_layers_otherwise(name, device):
    """Whether a layer is called is up to the batch, and so is whether its gradients are factored."""
    X = rows(name, 8)
    X[:4, 0], X[4:, 0] = -np.abs(X[:4, 0]), np.abs(X[4:, 0])
    expected = slow(name, X, X)
    for working_memory in (TINY, SMALL, 2**30):
        gram = make(name, device, working_memory=working_memory)
        assert_close(gram(X), expected, 1e-9)
        assert_close(gram(X[4:], X[:4]), expected[4:, :4], 1e-9)


@pytest.mark.parametrize("two_sided", [False, True])
def test_values_at_a_time_are_few_whatever_gradients_take(two_sided):
    X = rows("mlp of three layers", 64)
    gram = make("mlp of three layers", working_memory=2**16)
    sizes = [values.numel() for _, values in tiles_of(gram, X, X if two_sided else None)]
    assert max(sizes) * 8 <= 2**16 / 16 + 64 * 8  # a column at least


def test_views_may_write_over_what_they_get():
    X = rows("mlp of three layers")
    before = X.copy()

    def doubled(X):
        X *= 2
        return [X]

    gram = make("mlp of three layers", views=doubled)
    assert_close(gram(X), make("mlp of three layers")(2 * X), 1e-12)
    np.testing.assert_array_equal(X, before)
