"""What balancing is good for once nets are trained: pruning by magnitude, and averaging of aligned nets.

    python benchmarks/ecopt_trained.py --data-home DIR [--nets mnist:2x128 mnist:4x64] [--device cuda] [--csv FILE]

Nets are pruned as they were trained, as twins whose units are scaled by 10^U(-a, a), and balanced: all weights of the
least magnitude become zero, across layers. The control is a score that needs no balancing, a weight's share of the
squared path norm. Two nets of different seeds, or with --same-start of one start and different orders of the rows, are
averaged as they are, and after the second one's units were put in the order that makes weights most alike (Ainsworth et
al., "Git Re-Basin", ICLR 2023). Magnitudes, and so both results, are the same for all twins that are balanced.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _ecopt_contenders import PathSGD
from _ecopt_data import load
from _ecopt_nets import STARTS, make_net
from _ecopt_report import spread
from _ecopt_train import Run, accuracy, descend
from _measure import machine, table
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm.auto import tqdm

from sklearn_gradspace.pathspace import balance

_RATE = 0.032  # of SGD with momentum
_WAYS = {
    "as trained": lambda net, seed: net,
    "twin, a = 1": lambda net, seed: _twin(net, "unbalanced 1", seed),
    "twin, a = 2": lambda net, seed: _twin(net, "unbalanced 2", seed),
    "balanced": lambda net, seed: balance(deepcopy(net)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, prune, average, and print tables."""
    options = _options(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    print(machine(torch.device(options.device)))
    pruned, averaged = {}, {}
    for name in tqdm(options.nets, unit="net"):
        for seed in options.seeds:
            first, second, test, ones = _two_nets(name, seed, options)
            for way, change in _WAYS.items():
                for part in options.parts:
                    net = prune(change(first, seed), part, magnitudes)
                    pruned.setdefault((name, part, way), []).append(accuracy(net, test))
                pair = change(first, seed), change(second, 1000 + seed)
                averaged.setdefault((name, way, "averaged"), []).append(accuracy(average(*pair), test))
                averaged.setdefault((name, way, "aligned"), []).append(accuracy(average(*aligned(*pair)), test))
            for part in options.parts:
                net = prune(first, part, partial(path_shares, ones=ones))
                pruned.setdefault((name, part, "path norm"), []).append(accuracy(net, test))
            averaged.setdefault((name, "as trained", "one net"), []).append(accuracy(first, test))
    _print(pruned, options)
    lines = [
        [f"{name}, {way}", *(_cell(averaged.get((name, way, kind))) for kind in ("one net", "averaged", "aligned"))]
        for name in options.nets
        for way in _WAYS
    ]
    print(
        f"\n### Two nets averaged\n\n{table(['test accuracy in %', 'one net', 'averaged', 'aligned, averaged'], lines)}"
    )
    _write(pruned, averaged, options)
    if options.picture:
        _draw(pruned, options)


def prune(net: nn.Module, left: float, score: Callable[[nn.Module], list[Tensor]]) -> nn.Module:
    """Return a copy of which the part `left` of all weights stays, those of the largest score; biases stay."""
    net = deepcopy(net)
    scores = score(net)
    threshold = torch.cat([part.flatten() for part in scores]).quantile(1 - left)
    with torch.no_grad():
        for weight, part in zip(weights(net), scores):
            weight[part < threshold] = 0
    return net


def weights(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are no biases."""
    return [parameter for parameter in net.parameters() if parameter.ndim > 1]


def magnitudes(net: nn.Module) -> list[Tensor]:
    """Return the weights' magnitudes."""
    return [weight.detach().abs() for weight in weights(net)]


def path_shares(net: nn.Module, ones: Tensor) -> list[Tensor]:
    """Return for each weight the part of the squared path norm of the paths through it, which twins share."""
    diagonal = dict(zip(net.parameters(), PathSGD(net, ones, 1.0).diagonal()))
    return [weight.detach() ** 2 * diagonal[weight] for weight in weights(net)]


@torch.no_grad()
def aligned(first: nn.Module, second: nn.Module, sweeps: int = 20) -> tuple[nn.Module, nn.Module]:
    """Return two perceptrons, of the second a copy whose units are in the order that is most like the first's."""
    second = deepcopy(second)
    mine, other = ([layer for layer in net if isinstance(layer, nn.Linear)] for net in (first, second))
    for _ in range(sweeps):
        changed = False
        for i in range(len(mine) - 1):
            alike = mine[i].weight @ other[i].weight.T + mine[i + 1].weight.T @ other[i + 1].weight
            alike += torch.outer(mine[i].bias, other[i].bias)
            _, order = linear_sum_assignment(alike.cpu().numpy(), maximize=True)
            changed |= bool((order != np.arange(len(order))).any())
            order = torch.as_tensor(order, device=alike.device)
            other[i].weight.copy_(other[i].weight[order])
            other[i].bias.copy_(other[i].bias[order])
            other[i + 1].weight.copy_(other[i + 1].weight[:, order])
        if not changed:
            break
    return first, second


@torch.no_grad()
def average(first: nn.Module, second: nn.Module) -> nn.Module:
    """Return the net half way between two."""
    net = deepcopy(first)
    for mean, other in zip(net.parameters(), second.parameters()):
        mean.lerp_(other, 0.5)
    return net


def _twin(net: nn.Module, start: str, seed: int) -> nn.Module:
    net = deepcopy(net)
    STARTS[start](net, seed)
    return net


def _two_nets(name: str, seed: int, options: argparse.Namespace):
    data, net_name = name.split(":")
    parts = load(data, options.data_home, options.rows, 10000, 0, options.device)
    nets = []
    for own in (seed, 1000 + seed):
        run = Run(data, net_name, "", "", "", _RATE, 0.0, own, options.rows, 0, 64, options.steps)
        torch.manual_seed(seed if options.same_start else own)
        net = make_net(net_name, parts["train"].X.shape[1:]).to(options.device)
        descend(net, torch.optim.SGD(net.parameters(), lr=_RATE, momentum=0.9), parts["train"], run)
        nets.append(net)
    return *nets, parts["test"], torch.ones_like(parts["train"].X[:1])


def _cell(accuracies: Sequence[float] | None) -> str:
    return spread(100 * np.array(accuracies)) if accuracies else ""


def _print(pruned: dict, options: argparse.Namespace) -> None:
    ways = [*_WAYS, "path norm"]
    for name in options.nets:
        lines = [[way, *(_cell(pruned[name, part, way]) for part in options.parts)] for way in ways]
        header = ["test accuracy in %, weights left", *(f"{100 * part:g}%" for part in options.parts)]
        print(f"\n### {name}, pruned\n\n{table(header, lines)}")


def _write(pruned: dict, averaged: dict, options: argparse.Namespace) -> None:
    with open(options.csv, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["net", "seed", "way", "kind", "test"])
        kinds = [(net, way, f"{part:g} left", tests) for (net, part, way), tests in pruned.items()]
        for net, way, kind, tests in kinds + [(*case, tests) for case, tests in averaged.items()]:
            writer.writerows([net, seed, way, kind, test] for seed, test in zip(options.seeds, tests))


def _draw(pruned: dict, options: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(options.nets), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(options.nets), squeeze=False, sharey=True)[0], options.nets):
        for way in [*_WAYS, "path norm"]:
            values = np.array([pruned[name, part, way] for part in options.parts]) * 100
            axes.errorbar(options.parts, values.mean(1), values.std(1), marker="o", markersize=3, capsize=2, label=way)
        axes.set_xscale("log")
        axes.set_title(name)
        axes.set_xlabel("part of the weights that is left")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.supylabel("test accuracy in %")
    figure.savefig(Path(options.picture), dpi=110)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-home", required=True, help="folder with the data")
    add("--device", default="cpu", help="cpu or cuda")
    add("--nets", nargs="+", default=["mnist:2x128", "mnist:4x64"])
    add("--parts", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05, 0.02], help="of the weights, that are left")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", type=int, default=10000)
    add("--steps", type=int, default=936)
    add("--same-start", action="store_true", help="two nets differ in the order of the rows alone")
    add("--csv", default="ecopt_trained.csv", help="file of results")
    add("--picture", help="file to draw to")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
