"""Benchmarks of training in equivalent-class space, on a few made images: each runs, and its parts are right."""

import copy
import csv
from pathlib import Path

import numpy as np
import pytest
import torch

_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not _BENCHMARKS.is_dir(), reason="the source distribution has no benchmarks")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Go to a folder that holds some images of each kind, with the benchmarks on the path."""
    monkeypatch.syspath_prepend(_BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    rng, y = np.random.default_rng(0), np.arange(120) % 10
    for name, shape in (("cifar10", (32, 32, 3)), ("mnist", (28, 28))):
        X = (rng.integers(0, 100, (120, *shape)) + y.reshape(-1, *[1] * len(shape))).astype(np.uint8)
        np.savez(f"{name}.npz", X_train=X, y_train=y, X_test=X[:30], y_test=y[:30])


@pytest.fixture
def ecopt(folder):
    """Return the benchmark of training in equivalent-class space, in the same folder."""
    import ecopt

    return ecopt


def train_tiny(ecopt, *arguments):
    tiny = {"data-home": ".", "rows": 60, "test-rows": 30, "batch": 20, "steps": 4, "rates": 0.1, "seeds": 0, "jobs": 1}
    ecopt.main([arguments[0], *(f"--{name}={value}" for name, value in tiny.items()), *arguments[1:]])


@pytest.mark.parametrize(
    ("experiment", "arguments", "shown"),
    [
        ("widths", ["--nets", "mnist:2x3", "cifar10:1x2"], "cifar10, 1x2"),
        ("deep", ["--nets", "mnist:8x3"], "skeleton, momentum"),
        ("convolutions", ["--nets", "mnist:conv4x3"], "identity, momentum"),
        ("unbalanced", ["--nets", "mnist:2x3"], "unbalanced 2, Adam"),
        ("finetuning", ["--nets", "mnist:2x3"], "trained, unbalanced 2, momentum"),
        ("penalties", ["--nets", "mnist:1x3"], "mnist, 1x3"),
        ("residual", ["--nets", "cifar10:resnet10x2", "--inner", "SGD", "--augment"], "(0.1)"),
    ],
)
def test_ecopt(ecopt, capsys, monkeypatch, experiment, arguments, shown):
    arguments = [experiment, *arguments, "--picture", "p.png"]
    train_tiny(ecopt, *arguments)
    report = capsys.readouterr().out
    assert shown in report
    assert "Mean over the grid" in report
    assert "Best against best" in report
    assert Path("p.png").stat().st_size > 1000
    with open(f"ecopt_{experiment}.csv") as file:
        lines = list(csv.DictReader(file))
    assert all(0 <= float(line["validation"]) <= 1 for line in lines)

    monkeypatch.setattr(ecopt, "train", None)  # what is there is not computed again
    train_tiny(ecopt, *arguments)
    assert capsys.readouterr().out == report


def test_ecopt_cost(folder, capsys):
    import ecopt_cost

    ecopt_cost.main(["--nets=1x3", "--inner=SGD", "--batch=4", "--rounds=1", "--seconds=0"])
    assert "| 1x3, SGD" in capsys.readouterr().out


def test_ecopt_trained(folder, capsys):
    import ecopt_trained

    arguments = ["--nets", "mnist:2x4", "--rows", "60", "--steps", "4", "--seeds", "0", "1", "--picture", "t.png"]
    ecopt_trained.main(["--data-home", ".", *arguments])
    report = capsys.readouterr().out
    assert "mnist:2x4, pruned" in report
    assert "mnist:2x4, balanced" in report
    with open("ecopt_trained.csv") as file:
        assert len(list(csv.DictReader(file))) == 2 * (5 * 5 + 2 * 4 + 1)


def test_alignment_and_pruning(folder):
    """A permuted twin is aligned once both are balanced; the largest weights are left; twins share path norms."""
    from ecopt_trained import aligned, magnitudes, path_shares, prune
    from torch import nn

    from sklearn_gradspace.pathspace import balance, rescale

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    twin = copy.deepcopy(net)
    order = torch.randperm(8)
    for parameter in (twin[0].weight, twin[0].bias):
        parameter.data = parameter.data[order]
    twin[2].weight.data = twin[2].weight.data[:, order]
    rescale(twin, 10 ** torch.linspace(-2, 2, 13, dtype=torch.float64))
    _, found = aligned(balance(net), balance(twin))
    for mine, other in zip(net.parameters(), found.parameters()):
        torch.testing.assert_close(mine, other)

    ones = torch.ones(1, 6, dtype=torch.float64)
    for mine, other in zip(path_shares(net, ones), path_shares(rescale(copy.deepcopy(net), [3.0] * 13), ones)):
        torch.testing.assert_close(mine, other)
    for before, after in zip(magnitudes(net), magnitudes(prune(net, 0.25, magnitudes))):
        assert ((after == before) | (after == 0)).all()
        assert before[after == 0].max() < torch.cat([part.flatten() for part in magnitudes(net)]).quantile(0.76)


def test_path_sgd(folder):
    """Gradients are divided by the sum, over the paths through an entry, of the other entries' squared product."""
    from _ecopt_contenders import PathSGD
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    weights = [layer.weight.detach().numpy() ** 2 for layer in net if isinstance(layer, nn.Linear)]
    biases = [layer.bias.detach().numpy() ** 2 for layer in net if isinstance(layer, nn.Linear)]
    sums = [np.zeros_like(array) for pair in zip(weights, biases) for array in pair]

    def follow(layer, unit, product, passed):
        """Go on from a unit; each entry that was passed gets the product of the others."""
        if layer == len(weights):
            for number, place in passed:
                entry = [*zip(weights, biases)][number // 2][number % 2][place]
                sums[number][place] += product / entry
            return
        for after in range(len(biases[layer])):
            weight = weights[layer][after, unit]
            follow(layer + 1, after, product * weight, [*passed, (2 * layer, (after, unit))])

    for layer in range(len(weights)):
        for unit in range(len(biases[layer])):
            follow(layer + 1, unit, biases[layer][unit], [(2 * layer + 1, (unit,))])
    for pixel in range(2):
        follow(0, pixel, 1.0, [])
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = PathSGD(net, torch.ones(1, 2, dtype=torch.float64), lr=0.1)
    net(torch.randn(5, 2, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    for old, new, number in zip(before, net.parameters(), sums):
        expected = old - 0.1 * new.grad / torch.from_numpy(number)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore:factors below")  # unbalanced in front of batch norms
def test_ecopt_nets_and_starts(folder):
    """Starts that are rescaled keep the function, and augmented images are shifts or mirrored shifts."""
    from _ecopt_data import _augmented
    from _ecopt_nets import STARTS, make_net

    for name, n_layers in (("3x4", 4), ("conv8x3", 8), ("plain34x2", 34), ("resnet18x2", 18)):
        net = make_net(name, (3, 12, 12)).double().eval()
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        layers = [layer for layer in net.modules() if isinstance(layer, kinds) and layer.weight.shape[2:] != (1, 1)]
        assert len(layers) == n_layers
        X = torch.randn(4, 3, 12, 12, dtype=torch.float64)
        before = net(X)
        STARTS["unbalanced 2"](net, 0)
        if name != "resnet18x2":  # a batch norm's eps makes filters in front of it invariant only nearly
            torch.testing.assert_close(net(X), before, rtol=1e-3 if "plain" in name else 1e-9, atol=1e-9)
    X = torch.arange(2 * 3 * 25.0).reshape(2, 3, 5, 5) + 1
    shown = _augmented(X.expand(2, 3, 5, 5).repeat(30, 1, 1, 1), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(X, (4,) * 4)
    for i, image in enumerate(shown):
        places = [(y, x) for y in range(9) for x in range(9)]
        crops = [padded[i % 2, :, y : y + 5, x : x + 5] for y, x in places]
        assert any(torch.equal(image, crop) or torch.equal(image, crop.flip(2)) for crop in crops)
