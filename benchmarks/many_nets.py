"""Per-sample gradients of many small nets side by side: this package, torch.func, Opacus, BackPACK and a loop.

    python benchmarks/many_nets.py [--threads 1] [--nets NAME ...] [--quick]

Nets and data are random. Contenders take turns in one process, and their gradients are compared first; cells are times
in times that of ours, medians of the ratios of the rounds. Peers that refuse a net, or differ from ours, have none.
"""

import argparse
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from statistics import median

import torch
from _contenders import AGREEMENT, ALL, FRESH, ONE, OURS, Case, drained
from _measure import Rounds, alternate, machine, ratio, table
from torch import Tensor, nn

from sklearn_gradspace.gradients import GradientEngine

OPACUS = "Opacus"
HEADER = ("", "rows", "ours, ms", "torch.func", OPACUS, "BackPACK", "loop")
LINES = ((ONE, 25), (ONE, 100), (ALL, 25))


class Residual(nn.Module):
    """Two convolutions with batch norm, beside one of a single tap where sizes change."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
        self.body = nn.Sequential(*first, nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out))
        self.beside = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.beside(x))


class Transformer(nn.Module):
    """Two layers of attention over 32 tokens, with learned positions."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=batch_first)
        self.tokens, self.positions = nn.Embedding(500, 64), nn.Parameter(0.02 * torch.randn(32, 64))
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 10)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions
        x = self.body(x) if self.batch_first else self.body(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """A recurrent layer over 20 steps."""

    def __init__(self, make: type[nn.Module]) -> None:
        super().__init__()
        self.body, self.head = make(16, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


def _separable(n_in: int, n_out: int, stride: int) -> list[nn.Module]:
    by_channel = nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False), nn.BatchNorm2d(n_in), nn.ReLU()
    return [*by_channel, nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]


def _first(n_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(3, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]


def _mlp(*sizes: int) -> list[nn.Module]:
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return layers[:-1]


def _pooled(rank: int, n_in: int) -> list[nn.Module]:
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
    return [pool(1), nn.Flatten(), nn.Linear(n_in, 10)]


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return nets in evaluation mode with the shape of a row; rows of the transformers are indices."""
    conv, relu, pool, flat = nn.Conv2d, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    grey, colour = (1, 28, 28), (3, 32, 32)
    wave = [nn.Conv1d(1, 16, 9, padding=4), relu, nn.MaxPool1d(4), nn.Conv1d(16, 32, 9, padding=4), relu]
    volume = [nn.Conv3d(1, 8, 3), relu, nn.MaxPool3d(2), nn.Conv3d(8, 16, 3), relu]
    normed = [part for i in (30, 64) for part in (nn.Linear(i, 64), nn.LayerNorm(64), relu)]
    small = [conv(1, 32, 3), relu, pool, conv(32, 64, 3), relu, pool, flat, nn.Linear(1600, 10)]
    lenet = [conv(1, 6, 5, padding=2), relu, pool, conv(6, 16, 5), relu, pool, flat, *_mlp(400, 120, 84, 10)]
    pooled = [conv(3, 32, 3, padding=1), relu, pool, conv(32, 64, 3, padding=1), relu, pool]
    deeper = [*pooled, conv(64, 64, 3, padding=1), relu, flat, *_mlp(4096, 64, 10)]
    residual = [*_first(16), Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2), *_pooled(2, 64)]
    separable = [
        *_first(16, 2),
        *_separable(16, 32, 1),
        *_separable(32, 64, 2),
        *_separable(64, 64, 1),
        *_pooled(2, 64),
    ]
    made = {
        "small MLP": (_mlp(20, 32, 10), (20,)),
        "layer norm": ([*normed, nn.Linear(64, 10)], (30,)),
        "wide MLP": (_mlp(784, 512, 512, 10), (784,)),
        "LeNet": (lenet, grey),
        "CNN of grey images": (small, grey),
        "CNN of colour images": (deeper, colour),
        "ResNet-8": (residual, colour),
        "depthwise": (separable, colour),
        "waves": ([*wave, *_pooled(1, 32)], (1, 512)),
        "volumes": ([*volume, *_pooled(3, 16)], (1, 16, 16, 16)),
        "transformer": ([Transformer(True)], (32,)),
        "transformer, steps first": ([Transformer(False)], (32,)),
        "LSTM": ([Recurrent(nn.LSTM)], (20, 16)),
        "GRU": ([Recurrent(nn.GRU)], (20, 16)),
    }
    return {name: (nn.Sequential(*layers).eval(), shape) for name, (layers, shape) in made.items()}


def row(name: str, net: nn.Module, shape: tuple[int, ...], line: str, n: int, rounds: Rounds) -> list[str]:
    """Measure a line of the table."""
    X = torch.randint(500, (n, *shape)) if "transformer" in name else torch.randn(n, *shape)
    case = Case(GradientEngine(net, X.numpy(), "all"), name, line, X.numpy())
    truth, runs = case.ours().all(), {OURS: drained(case.ours())}
    for contender in case.makers().keys() - {OURS, FRESH}:
        try:
            passes = case.makers()[contender]()
            if case.error(case.gradients(passes), truth) < AGREEMENT:
                runs[contender] = drained(passes)
        except Exception:  # whatever a library raises for a net that it does not take
            continue
    found = alternate(runs, rounds, torch.device("cpu"), f"{name}, {line}, n = {n}")
    ratios = {contender: ratio(of_rounds, found[OURS]) for contender, of_rounds in found.items()}
    best = min((r for contender, r in ratios.items() if contender.startswith(OPACUS)), default=float("nan"))
    cells = [ratios.get(contender, float("nan")) for contender in ("torch.func", "BackPACK", "loop")]
    numbers = [cells[0], best, *cells[1:]]
    ms = 1e3 * median(found[OURS]) / case.n_gradients
    rows = f"{n}" if line == ONE else f"{n}, all labels"
    return [name, rows, f"{ms:.4f}", *(f"{number:.2f}" if number == number else "" for number in numbers)]


def main() -> None:
    """Measure in a process whose libraries take the number of threads from the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nets", nargs="+", help="names of nets; by default all")
    parser.add_argument("--quick", action="store_true", help="one round of few rows, to see that everything runs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child:
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], env=environment, check=True)
        return
    warnings.simplefilter("ignore")  # of the peers
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lines = [(ONE, 4), (ALL, 2)] if options.quick else LINES
    rounds = Rounds(0, least=1, turn=0) if options.quick else Rounds(3)
    chosen = {name: made for name, made in nets().items() if not options.nets or name in options.nets}
    rows = [row(name, *made, *line, rounds) for name, made in chosen.items() for line in lines]
    print(f"{machine(torch.device('cpu'))}\n\n{table(HEADER, rows)}")


if __name__ == "__main__":
    main()
