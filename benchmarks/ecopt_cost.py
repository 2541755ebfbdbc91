"""What an iteration in equivalent-class space costs, forward and backward pass and step, over a plain optimizer's.

    python benchmarks/ecopt_cost.py [--device cuda] [--nets 2x256 conv6x32] [--inner SGD momentum Adam]

Contenders take turns in one run, each of some sweeps' worth of iterations on one batch; a ratio is the median over
rounds, with its quartiles. On a CPU there is one thread, and its own time counts, not what others do on the cores.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _ecopt_contenders import INNER, OURS, SPACES
from _ecopt_nets import make_net
from _measure import Rounds, alternate, machine, table
from torch.nn import functional as F

_ITERATIONS = 16  # in a run: so often does the balanced method sweep
_SHAPES = {"": (1, 28, 28)}  # others take coloured images
_RATE = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    options = _options(arguments)
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    print(machine(device))
    lines = []
    for net in options.nets:
        for inner in options.inner:
            runs = {space: iterations(net, space, inner, options.batch, device) for space in ("weights", *OURS)}
            rounds = Rounds(options.seconds, least=options.rounds, most=101, turn=0.2)
            found = alternate(runs, rounds, device, f"{net}, {inner}", clock)
            plain = np.array(found["weights"])
            ratios = [_ratio(np.array(found[space]) / plain) for space in OURS]
            lines.append([f"{net}, {inner}", f"{1000 * np.median(plain) / _ITERATIONS:.2f}", *ratios])
    print(table([f"an iteration, batch {options.batch}", "plain, ms", *(f"{space} / plain" for space in OURS)], lines))


def iterations(net: str, space: str, inner: str, batch: int, device: torch.device) -> Callable[[], None]:
    """Return a function that makes some iterations of training."""
    torch.manual_seed(0)
    shape = _SHAPES.get(net.rstrip("0123456789x"), (3, 32, 32))
    module, X, y = make_net(net, shape).to(device), torch.randn(batch, *shape, device=device), torch.arange(batch) % 10
    y, optimizer = y.to(device), SPACES[space](module, None, inner, _RATE, 0.0)

    def run() -> None:
        for _ in range(_ITERATIONS):
            optimizer.zero_grad()
            F.cross_entropy(module(X), y).backward()
            optimizer.step()

    return run


def _ratio(ratios: np.ndarray) -> str:
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda")
    add("--nets", nargs="+", default=["2x256", "conv6x32"], help="layers x width")
    add("--inner", nargs="+", choices=INNER, default=list(INNER))
    add("--batch", type=int, default=64)
    add("--rounds", type=int, default=9, help="at least")
    add("--seconds", type=float, default=20.0, help="for each net and optimizer, if that is more")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
