"""Benchmarks, run on a few made images: tables, pictures, and that what was computed is not computed again."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import ParameterGrid

from sklearn_gradspace.modules import MLP

_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not _BENCHMARKS.is_dir(), reason="the source distribution has no benchmarks")


@pytest.fixture
def table1(monkeypatch, tmp_path):
    """Return the benchmark, in an empty folder that holds 60 images of each kind and a net."""
    monkeypatch.syspath_prepend(_BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    for name, shape in (("cifar10", (32, 32, 3)), ("mnist", (28, 28))):
        rng = np.random.default_rng(0)
        y = np.arange(120) % 10
        X = rng.integers(0, 100, (120, *shape)) + y.reshape(-1, *[1] * len(shape))
        X = X.astype(np.uint8)
        np.savez(f"{name}.npz", X_train=X, y_train=y, X_test=X[:30], y_test=y[:30])
    shapes = {"c0": (64, 3, 5, 5), "c1": (64, 64, 5, 5), "l1": (10, 2304)}
    weights = {f"{name}_weight": rng.normal(size=shape) / 30 for name, shape in shapes.items()}
    np.savez("gradnet_base_cifar10.npz", **weights, **{f"{name}_bias": np.zeros(s[0]) for name, s in shapes.items()})
    import table1

    return table1


def run(table1, *arguments):
    table1.main(["--data-home", ".", "--rows", "60", "--test-rows", "3", "--budget", "60", "--seeds", "0", *arguments])


def test_contenders_and_resuming(table1, capsys, monkeypatch):
    arguments = ["--contenders", "base", "authors", "last layer retrained", "kernel on penultimate activations"]
    run(table1, *arguments, "--picture", "t.png")
    table = capsys.readouterr().out
    assert all(f"| {name}" in table for name in arguments[1:])
    assert "the authors: 0.72 → 0.7936" in table
    with open("table1.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8  # each contender, seen in two ways
    assert all(0 <= float(line["test"]) <= 1 for line in lines)
    assert Path("t.png").stat().st_size > 1000

    def nothing(*arguments):
        raise AssertionError("it was there")

    monkeypatch.setattr(table1, "fit_and_test", nothing)
    run(table1, *arguments)
    assert capsys.readouterr().out == table
    with pytest.raises(AssertionError, match="it was there"):
        run(table1, *arguments, "--budget", "80")


def test_ablations(table1, capsys, monkeypatch):
    import ablations

    arguments = ["--data", "mnist", "--data-home", ".", "--rows", "20", "--seeds", "0", "1", "--samples", "60"]
    arguments += ["--panels", "structure", "controls"]
    monkeypatch.setattr(
        ablations, "PANELS", {panel: dict(list(ablations.PANELS[panel].items())[:2]) for panel in arguments[-2:]}
    )
    ablations.main([*arguments, "--picture", "a.png"])
    table = capsys.readouterr().out
    assert "adjacent" in table and "base net" in table
    with open("ablations.csv") as file:
        assert len(list(csv.DictReader(file))) == 6  # defaults are one for all panels
    assert Path("a.png").stat().st_size > 1000
    monkeypatch.setattr(ablations, "fit_and_test", None)
    ablations.main(arguments)
    assert capsys.readouterr().out.splitlines()[1:] == table.splitlines()[1:]  # the first has the load


def test_other_data(table1, capsys, monkeypatch):
    """A table, a picture, and that what was computed is not computed again; settings are those of the estimators."""
    import _other_data_contenders as contenders
    import other_data

    for name in (*contenders.WITH_BASE[1:], *contenders.WITHOUT):
        for large in (False, True):
            estimator, grid = contenders.estimator_and_grid(name, MLP(4, 3), large, 1, 0)
            for setting in ParameterGrid(grid):
                estimator.set_params(**setting)
    monkeypatch.setattr(other_data, "WITH_BASE", contenders.WITH_BASE[:2])
    monkeypatch.setattr(other_data, "WITHOUT", contenders.WITHOUT[::2])
    arguments = ["--data-home", ".", "--data", "wine", "MNIST, MLP", "--seeds", "0", "1"]
    arguments += ["--base-rows", "60", "--rows", "40", "--test-rows", "20"]
    other_data.main([*arguments, "--picture", "o.png"])
    shown = capsys.readouterr().out.partition("test accuracy")[2]
    assert shown.count("**") == 3  # of which the first explains the mark
    with open("other_data.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (4 + 3)
    assert all(0 <= float(line["accuracy"]) <= 1 for line in lines)
    assert Path("o.png").stat().st_size > 1000
    monkeypatch.setattr(other_data.Case, "prepare", None)
    other_data.main(arguments)
    assert capsys.readouterr().out.partition("test accuracy")[2] == shown


def test_edges(table1, capsys, monkeypatch):
    """Tables of every way to use masks, a picture, and that what was measured is not measured again."""
    import edges

    sizes = ["--rows", "60", "--score-rows", "20", "--test-rows", "20", "--seeds", "0", "--kept", "0.5"]
    arguments = ["--data-home", ".", "--nets", "mlp", *sizes]
    edges.main([*arguments, "--picture", "edges.png"])
    shown = capsys.readouterr().out.partition("mlp, pruned")[2]
    assert shown.count("| survival, shuffled") == shown.count("| random ") == 3
    with open("edges.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 + 11 * 3
    assert all(0 <= float(line["accuracy"]) <= 1 for line in lines)
    assert Path("edges.png").stat().st_size > 1000
    monkeypatch.setitem(edges.JOBS, "mlp", None)
    edges.main(arguments)
    assert capsys.readouterr().out.partition("mlp, pruned")[2] == shown


def test_base_nets_of_given_accuracies(table1, capsys):
    run(table1, "--data", "mnist", "--bases", "0.05", "0.06", "--contenders", "base", "--base-epochs", "40")
    assert "mnist, base net 0.05" in capsys.readouterr().out
    assert {file.name for file in Path().glob("*.pt")} == {"mnist_base_0.05.pt", "mnist_base_0.06.pt"}
    with pytest.raises(SystemExit, match="no base net of accuracy"):
        run(table1, "--data", "mnist", "--bases", "1.5", "--contenders", "base", "--base-epochs", "1")


def test_images(table1):
    """The base net sees the crops of the package's own CIFAR-10; an augmentation is one of the shifts or its mirror."""
    from _table1_images import CentreCropAndStandardise, augment, load_images, ten_views

    from sklearn_gradspace._main_job._data import load

    images = load_images("cifar10", ".")
    crops = CentreCropAndStandardise(24)(torch.from_numpy(images.X))
    np.testing.assert_allclose(crops.numpy(), load("cifar10", ".").X, atol=1e-5)
    X = images.X[:20]
    views = ten_views(X)
    assert len(views) == 10
    np.testing.assert_array_equal(views[0], X)
    np.testing.assert_array_equal(views[1], X[..., ::-1])
    np.testing.assert_array_equal(views[4][:, :, 4:28, 4:28], X[:, :, 2:26, 6:30])
    drawn = augment(X, np.random.default_rng(0), shift=1, mirror=True)
    found = set()
    for before, after in zip(X, drawn):
        shifted = {(dy, dx): np.roll(before, (-dy, -dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
        shown = {(*by, side): view[..., ::side] for by, view in shifted.items() for side in (1, -1)}
        equal = [key for key, view in shown.items() if np.array_equal(view, after)]
        assert len(equal) == 1
        found.add(equal[0])
    assert len(found) > 5


def test_small_data(capsys, monkeypatch):
    monkeypatch.syspath_prepend(_BENCHMARKS)
    import small_data

    small_data.main(["--seeds", "1", "--data", "iris", "Friedman"])
    table = capsys.readouterr().out
    assert all(f"| {name} " in table for name in ("MLP of scikit-learn", "EC-Opt, defaults", "SGD with these settings"))
