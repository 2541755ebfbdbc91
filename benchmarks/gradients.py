"""Per-sample gradients side by side: this package, torch.func, Opacus, BackPACK and a loop of backward passes.

    python benchmarks/gradients.py [--quick] [--data-home DIR] [--threads 1 2] [--device cuda] [--csv FILE]

DIR may hold ``cifar10.npz``, ``mnist.npz`` and the authors' net, ``gradnet_base_cifar10.npz``; what it does not hold
is random. Tables in Markdown leave. Contenders take turns in one process; times are medians over the rounds, and ratios
are medians of the ratios within a round. What a pass makes is dropped, or written over by the next. Peers that are not
installed are left out, as are those that refuse a net, with their reason. Opacus stands for the fastest of its modes.
"""

import argparse
import csv
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _contenders import ALL, ONE, OURS, SELECTED, Case, Floor, Measured, measure
from _gradient_nets import NETS, net_and_rows
from _measure import Rounds, machine, table
from _pipeline_features import Rate, rates

from sklearn_gradspace.gradients import GradientEngine


@dataclass(frozen=True)
class Sizes:
    """Batch sizes of each line; ResNet-18 has lines and sizes of its own."""

    one: tuple[int, ...]
    all_labels: int
    pipeline: tuple[int, ...]
    resnet: tuple[tuple[str, int], ...]

    def lines(self, net: str) -> Sequence[tuple[str, int]]:
        """Return the lines of the tables of a net, with their batch sizes."""
        if net == "ResNet-18":
            return self.resnet
        return [(line, n) for line in (ONE, SELECTED) for n in self.one] + [(ALL, self.all_labels)]


SIZES = {
    "cpu": Sizes((25, 100), 25, (25,), ((ONE, 4), (SELECTED, 2), (ALL, 1))),
    "cuda": Sizes((256, 1024), 256, (256, 1024), ((ONE, 32), (SELECTED, 32), (ALL, 4))),
}
QUICK = Sizes((4,), 2, (4,), ((ONE, 2),))


def main() -> None:
    """Measure with each number of threads, in a process whose libraries take it from the environment."""
    options = _options()
    if options.child:
        warnings.simplefilter("ignore")  # of the peers
        torch.set_num_threads(options.threads[0])
        for switch in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
            switch.fp32_precision = "ieee"
        report(options)
        return
    if options.csv:
        Path(options.csv).write_text("")
    for threads in options.threads:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        own = ["--child", "--threads", str(threads)]
        subprocess.run([sys.executable, __file__, *sys.argv[1:], *own], env=environment, check=True)


_WAYS = (
    "Ours writes over the same memory part by part; with fresh memory it returns all gradients. Peers select by topk "
    "where not said otherwise. For all labels torch.func is vmap of jacrev; Opacus and BackPACK make a pass a label."
)


def report(options: argparse.Namespace) -> None:
    """Measure and print."""
    device = torch.device(options.device)
    sizes = QUICK if options.quick else SIZES[device.type]
    rounds = Rounds(0, least=1, turn=0) if options.quick else Rounds(options.seconds)
    print(f"\n## {options.threads[0]} thread(s)\n\n{machine(device)}\n\n{_WAYS}\n", flush=True)
    for name in options.nets:
        lines = sizes.lines(name)
        net, X, what = net_and_rows(name, max(n for _, n in lines), options.data_home)
        net = net.to(device)
        engine = GradientEngine(net, X, layers="all")
        results = [measure(Case(engine, name, line, X[:n]), rounds, options.threads[0]) for line, n in lines]
        _print_net(what, results)
        _save(options.csv, results)
    if "CNN" in options.nets:
        net, X, what = net_and_rows("CNN", max(sizes.pipeline), options.data_home)
        _print_rates(what, [rate for n in sizes.pipeline for rate in rates(net.to(device), X[:n], rounds, device)])


def _print_net(what: str, results: list[tuple[list[Measured], Floor]]) -> None:
    header = [f"{of_case[0].line}, n = {of_case[0].n}" for of_case, _ in results]
    counts = ["rounds", *(str(of_case[0].rounds) for of_case, _ in results)]
    cases = [_best_of_opacus(of_case) for of_case, _ in results]
    names = list(dict.fromkeys(name for case in cases for name in case))

    def rows(cell: Callable[[Measured], str], but: Sequence[str] = ()) -> list[list[str]]:
        return [
            [name, *(cell(case[name]) if name in case else "" for case in cases)] for name in names if name not in but
        ]

    ours = ["ours, ms per gradient", *(f"{case[OURS].ms:.3f}" for case in cases)]
    times = rows(lambda m: _number(m.time_over_ours, 2) + _mode(m), but=(OURS,))
    print(f"### {what}\n\nTime, in times that of ours\n\n{table(['', *header], [counts, ours, *times])}\n")
    print(f"Peak extra memory, MB\n\n{table(['', *header], rows(lambda m: _number(m.peak_mb, 0)))}\n")
    print("Floor: operations at the rate of a large float32 matrix product, bytes at that of writing to warm memory\n")
    print(table(_FLOOR_HEADER, [_floor_row(of_case[0], floor) for of_case, floor in results]), "\n")
    for note in dict.fromkeys(f"- {m.contender}: {m.note}" for of_case, _ in results for m in of_case if m.note):
        print(note)
    print(flush=True)


def _best_of_opacus(measured: list[Measured]) -> dict[str, Measured]:
    """Return results by contender, of Opacus' modes only the fastest, or any where it refuses."""
    modes = [m for m in measured if m.contender.startswith("Opacus")]
    best = min(modes, key=lambda m: m.ms if m.ms == m.ms else float("inf"))
    return {m.contender.split(",")[0] if m is best else m.contender: m for m in measured if m is best or m not in modes}


def _mode(measured: Measured) -> str:
    library, _, mode = measured.contender.partition(", ")
    return f" ({mode})" if library == "Opacus" and measured.ms == measured.ms else ""


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value == value else "–"


_FLOOR_HEADER = ("", "MFLOP", "GFLOP/s", "MB", "GB/s", "larger, ms", "ours reaches", "sum, ms", "ours reaches")


def _floor_row(ours: Measured, floor: Floor) -> list[str]:
    numbers = (f"{floor.mflop:.1f}", f"{floor.gflop_s:.0f}", f"{floor.mb:.2f}", f"{floor.gb_s:.1f}")
    larger = (f"{floor.larger_ms:.3f}", f"{floor.reached_of_larger:.2f}")
    return [f"{ours.line}, n = {ours.n}", *numbers, *larger, f"{floor.sum_ms:.3f}", f"{floor.reached_of_sum:.2f}"]


def _print_rates(what: str, found: list[Rate]) -> None:
    header = ("", "n", "gradients/s", "speed", "peak extra MB", "rounding error")
    rows = [
        [r.dtype, str(r.n), f"{r.gradients_s:.0f}", f"{r.speed:.2f}", f"{r.peak_mb:.0f}",
         "" if r.rounding_error is None else f"{r.rounding_error:.1e}"]
        for r in found
    ]  # fmt: skip
    print(f"### {what}: all labels, weights alone, with selection and scaling\n\n{table(header, rows)}", flush=True)


def _save(path: str | None, results: list[tuple[list[Measured], Floor]]) -> None:
    """Append rows, those of ours with the floor, to the file that the first process emptied."""
    if not path:
        return
    rows = [asdict(m) | (asdict(floor) if m.contender == OURS else {}) for of_case, floor in results for m in of_case]
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, [*Measured.__dataclass_fields__, *Floor.__dataclass_fields__])
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", help="folder with data; random data by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads, a process for each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--seconds", type=float, default=5, help="for the rounds of a case, which are 5 to 25")
    parser.add_argument("--quick", action="store_true", help="one round of small batches, to see that everything runs")
    parser.add_argument("--csv", help="file to write")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
