"""Large nets: the rules that the engine chooses, and its peak memory beside the formula of the user guide.

    python benchmarks/large_nets.py [--report]

A ResNet-18 and a transformer encoder of 10^7 parameters and a perceptron of 10^8, with random weights and data. Each
line runs in a process of its own; the formula is `GradientEngine.memory`. `--report` prints the rules of the ResNet-18.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from _measure import machine, peak_memory
from torch import nn

from sklearn_gradspace.gradients import FactoredGradients, GradientEngine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from resnet import ResNet18


def encoder() -> nn.Module:
    """Return a transformer encoder of six layers on 32 tokens of 384 numbers, with ten classes."""
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True)
    body = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return nn.Sequential(body, nn.Flatten(), nn.Linear(32 * 384, 10))


def perceptron() -> nn.Module:
    """Return a perceptron of 10^8 weights on 4,096 numbers, with ten classes."""
    sizes = (4096, 8192, 8192)
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


NETS = {
    "ResNet-18, 64 x 64": (partial(ResNet18, 10), (3, 64, 64)),
    "ResNet-18, 224 x 224": (partial(ResNet18, 10), (3, 224, 224)),
    "transformer encoder": (encoder, (32, 384)),
    "perceptron": (perceptron, (4096,)),
}
LAST = {"ResNet-18": "layer4.1.conv2.weight", "transformer": "0.layers.5.*weight", "perceptron": "4.weight"}


def one_label(engine: GradientEngine, X: np.ndarray) -> int:
    """Compute all gradients of one label a row, part by part."""
    labels = torch.zeros(len(X), dtype=torch.long)
    rows = max(len(gradients) for _, gradients in engine.parts(X, labels))
    return engine.memory(len(X), all_labels=False, features=rows)


def all_labels(engine: GradientEngine, X: np.ndarray) -> int:
    """Compute all gradients of all labels, part by part."""
    rows = max(len(gradients) for _, gradients in engine.parts(X))
    return engine.memory(len(X), features=rows)


def norms(engine: GradientEngine, X: np.ndarray) -> int:
    """Compute the norms of the gradients of all labels, which are not formed at once."""
    FactoredGradients(engine, X).squared_norms()
    largest = max(block.size for block in engine.blocks)
    return engine.memory(len(X), features=0) + engine.n_labels * largest * engine.feature_dtype.itemsize


PASSES: dict[str, tuple[Callable[[GradientEngine, np.ndarray], int], bool, int]] = {
    "one label, all weights": (one_label, False, 8),
    "ten labels, one layer": (all_labels, True, 8),
    "norms for ten labels, all weights": (norms, False, 2),
}


def measure(net_name: str, what: str) -> str:
    """Return a line of the table: parameters, seconds a gradient, peak memory and formula."""
    build, shape = NETS[net_name]
    run, only_last, rows = PASSES[what]
    torch.manual_seed(0)
    net = build().eval()
    X = np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float32)
    layers = LAST[net_name.split()[0].rstrip(",")] if only_last else "weights"
    engine = GradientEngine(net, X[:2], layers)
    predicted, seconds = [], []

    def timed() -> None:
        start = time.perf_counter()
        predicted.append(run(engine, X))
        seconds.append(time.perf_counter() - start)

    peak = peak_memory(timed, engine.device)
    gradients = rows * (1 if what.startswith("one") else engine.n_labels)
    weights = sum(p.numel() for p in net.parameters())
    mib = 2.0**20
    return (
        f"| {net_name}, {weights / 1e6:.1f}M | {what}, {engine.n_params / 1e6:.1f}M | {rows} | "
        f"{1e3 * seconds[0] / gradients:.1f} | {peak / mib:.0f} | {predicted[0] / mib:.0f} |"
    )


def main() -> None:
    """Print the table, or the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="print how the gradients of a ResNet-18 are computed")
    parser.add_argument("--line", nargs=2, metavar=("NET", "PASS"), help="measure one line, in this process")
    options = parser.parse_args()
    if options.report:
        print(GradientEngine(ResNet18(10).eval(), np.zeros((2, 3, 64, 64)), "all").rules)
        return
    if options.line:
        print(measure(*options.line))
        return
    print(machine(torch.device("cpu")), "\n")
    print("| net, parameters | pass, gradient entries | rows | ms a gradient | peak, MiB | formula, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for net in NETS:
        for what in PASSES:
            subprocess.run([sys.executable, __file__, "--line", net, what], check=True)


if __name__ == "__main__":
    main()
