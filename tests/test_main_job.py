"""The main job, run as a user runs it, on little data: its table, its files, its options and its errors."""

import csv
import sys

import joblib
import numpy as np
import pytest
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from sklearn_gradspace.__main__ import main
from sklearn_gradspace._main_job import _data
from sklearn_gradspace._main_job._comparison import Result
from sklearn_gradspace._main_job._contenders import BASE, CONTENDERS, GRADNET
from sklearn_gradspace._main_job._report import rows, table
from sklearn_gradspace.modules import MLP, GradNetCNN


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKLEARN_GRADSPACE_DATA", raising=False)


def quick(*arguments):
    return main(["--quiet", "--seeds", "1", "--jobs", "1", "--samples", "120", *arguments])


def test_digits(capsys, tmp_path):
    assert main(["--seeds", "2", "--jobs", "1", "--samples", "120", "--out", "results"]) == 0
    out, err = capsys.readouterr()
    assert "fitting contenders: 100%" in err
    for name in (BASE, *CONTENDERS):
        assert f"| {name} |" in out
    assert {file.name for file in (tmp_path / "results").iterdir()} == {"table.csv", "table.png", "pipeline.joblib"}
    with open("results/table.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (1 + len(CONTENDERS))
    X, y = load_digits(return_X_y=True)
    accuracy = (joblib.load("results/pipeline.joblib").predict((X / 16).astype(np.float32)) == y).mean()
    assert accuracy > 0.5


def digits_file(path="digits.npz", **changes):
    X, y = load_digits(return_X_y=True)
    arrays = {"X_train": X[:200] / 16, "y_train": y[:200], "X_test": X[200:300] / 16, "y_test": y[200:300]}
    np.savez(path, **(arrays | changes))
    return path


def make_net():
    return MLP(64, 10, (8,))


@pytest.mark.filterwarnings("ignore:nothing was learnt")  # a grid of rates, for 60 rows
def test_ones_own_net_trained_here_or_before(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mynets", sys.modules[__name__])
    save_file(make_net().state_dict(), "net.safetensors")
    assert quick("--data", digits_file(), "--net", "mynets:make_net") == 0
    assert "base net 4 epochs on 60 rows; all else fitted to 60 other rows; 100 test rows" in capsys.readouterr().out
    assert quick("--data", digits_file(), "--net", "mynets:make_net", "--weights", "net.safetensors") == 0
    assert "base net trained before; all else fitted to 120 other rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "fashion"], "--data fashion: it must be digits"),
        (["--data", "missing.npz"], "missing.npz: there is no such file"),
        (["--data", "text.npz"], "cannot be read"),
        (["--data", "nolabels.npz"], "no array y_test"),
        (["--data", "lengths.npz"], "y_train has shape (7,)"),
        (["--data", "nan.npz"], "X_train must hold one row at least, of real numbers without NaN"),
        (["--data", "empty.npz"], "X_test must hold one row at least"),
        (["--data", "width.npz"], "X_train has samples of shape (64,), and X_test of shape (63,)"),
        (["--data", "labels.npz"], "y_test holds labels that y_train does not: [77]"),
        (["--data", "float.npz"], "y_train must hold integers or strings"),
        (["--data", "one.npz"], "y_train holds one class only"),
        (["--net", "../mynets.py:make_net"], "--net ../mynets.py:make_net"),
        (["--net", "mynets:no_pickle"], "the net cannot be pickled"),
        (["--net", "nowhere:make"], "--net nowhere:make: No module named 'nowhere'"),
        (["--net", "make_net"], "it must be MODULE:FACTORY"),
        (["--net", "mynets:missing"], "has no attribute 'missing'"),
        (["--net", "mynets:wrong_width"], "cannot compute samples of shape (64,)"),
        (["--net", "mynets:three_classes"], "3 outputs, but digits has 10 classes"),
        (["--net", "builtins:list"], "it returned list, not a torch Module"),
        (["--net", "mynets:raises"], "no memory for this net"),
        (["--weights", "missing.safetensors"], "missing.safetensors: there is no such file"),
        (["--weights", "other.safetensors"], "they do not fit the net"),
        (["--weights", "text.npz"], "they do not fit the net"),
        (["--device", "nowhere"], "device='nowhere' cannot be used"),
        (["--samples", "7"], "too few rows to split by class"),
        (["--out", "text.npz"], "text.npz"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "mynets", sys.modules[__name__])
    with open("text.npz", "w") as file:
        file.write("nothing")
    np.savez("nolabels.npz", X_train=np.zeros((9, 2)), y_train=np.arange(9) % 2, X_test=np.zeros((9, 2)))
    digits_file("lengths.npz", y_train=np.arange(7))
    digits_file("nan.npz", X_train=np.full((200, 64), np.nan))
    digits_file("empty.npz", X_test=np.zeros((0, 64)), y_test=np.zeros(0, int))
    digits_file("width.npz", X_test=np.zeros((100, 63)))
    digits_file("labels.npz", y_test=np.full(100, 77))
    digits_file("float.npz", y_train=np.linspace(0, 1, 200))
    digits_file("one.npz", y_train=np.zeros(200, int))
    save_file(MLP(3, 2).state_dict(), "other.safetensors")
    assert quick(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def wrong_width():
    return MLP(63, 10)


def three_classes():
    return MLP(64, 3)


def no_pickle():
    class Local(MLP):
        pass

    return Local(64, 10)


def raises():
    raise RuntimeError("no memory for this net")


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--unknown"], ["--samples", "many"]])
def test_options_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for option in (
        "--data",
        "--data-home",
        "--net",
        "--weights",
        "--device",
        "--seeds",
        "--out",
        "--samples",
        "--jobs",
    ):
        assert option in text


def test_images_come_from_a_folder_or_from_openml(monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8), np.arange(30) % 10
    np.savez("cifar10.npz", X_train=images[:20], y_train=labels[:20], X_test=images[20:], y_test=labels[20:])
    data = _data.load("cifar10", ".")
    assert data.X.shape == (20, 3, 24, 24) and data.X_test.shape == (10, 3, 24, 24)
    np.testing.assert_allclose(data.X.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(data.X.std((1, 2, 3)), 1, rtol=1e-5)
    crop = images[0, 4:28, 4:28].transpose(2, 0, 1)
    np.testing.assert_allclose(data.X[0], (crop - crop.mean()) / crop.std(), rtol=1e-4, atol=1e-5)
    GradNetCNN((3, 24, 24), 10)

    def fetch(name, **options):
        pixels = {"mnist_784": 784, "CIFAR_10": 3072}[name]
        return rng.integers(0, 256, (10020, pixels)).astype(float), np.array([str(i % 10) for i in range(10020)])

    monkeypatch.setattr(_data, "fetch_openml", fetch)
    mnist = _data.load("mnist")
    assert mnist.X.shape == (20, 28, 28) and mnist.X.max() <= 1 and mnist.y.dtype == np.int64
    assert _data.load("cifar10").X_test.shape == (10000, 3, 24, 24)


def test_without_a_network_the_way_out_is_named(monkeypatch, capsys):
    def fetch(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(_data, "fetch_openml", fetch)
    assert quick("--data", "mnist") == 2
    assert "Point --data-home at a folder that holds mnist.npz" in capsys.readouterr().err


def test_the_table_is_mean_and_deviation_over_seeds():
    accuracies = {name: np.array([0.5, 0.7]) + 0.1 * i for i, name in enumerate((BASE, *CONTENDERS))}
    results = [Result(name, seed, a[seed], {}) for name, a in accuracies.items() for seed in (1, 0)]
    assert [row.contender for row in rows(results)] == [BASE, *reversed(CONTENDERS)]
    assert f"| {BASE} | 60.00 ± 14.14 | – |" in table(results)
    gain = 10 * (1 + CONTENDERS.index(GRADNET))
    assert f"| {GRADNET} | {60 + gain}.00 ± 14.14 | +{gain}.00 ± 0.00 |" in table(results)
