"""Measuring contenders side by side: times by turns, peak memory apart, and what the machine can do.

Functions without arguments enter; seconds of each round, bytes, and lines and tables in Markdown leave.
"""

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

_GEMM_SIZE = {"cpu": 1536, "cuda": 8192}
_PEERS = {"Opacus": "opacus", "BackPACK": "backpack-for-pytorch"}


@dataclass(frozen=True)
class Rounds:
    """How many rounds: as many as fit into some seconds, but at least `least` and at most `most`.

    A contender's turn in a round is as many runs as take `turn` seconds, or one, after one that does not count: in use
    a pass follows another of its kind, and finds what that left in the cache, and memory that the system has at hand.
    """

    seconds: float
    least: int = 5
    most: int = 25
    turn: float = 0.05

    def number(self, one_round: float) -> int:
        """Return the number of rounds of which one takes `one_round` seconds."""
        return min(max(int(self.seconds / one_round), self.least), self.most)

    def repeats(self, one_run: float) -> int:
        """Return the number of runs in a turn of which one takes `one_run` seconds."""
        return max(1, round(self.turn / one_run))


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: Rounds,
    device: torch.device,
    title: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of a run of each contender in each round; in a round all of them take a turn.

    Parameters
    ----------
    contenders : dict of str to callable
    rounds : Rounds
        A first run of each, which may have to ask for memory, counts for nothing, and a second decides on the repeats.
    device : device
        Whose work is waited for.
    title : str
        What is shown on stderr.
    clock : callable
        What tells seconds. ``time.process_time`` does not count what others do on the same cores.
    """
    for run in contenders.values():
        run()
    second = {name: seconds(run, device, clock=clock) for name, run in contenders.items()}
    repeats = {name: rounds.repeats(of_run) for name, of_run in second.items()}
    number = rounds.number(sum((1 + repeats[name]) * of_run for name, of_run in second.items()))
    found = {name: [] for name in contenders}
    for _ in tqdm(range(number), title, leave=False):
        for name, run in contenders.items():
            run()
            found[name].append(seconds(run, device, repeats[name], clock))
    return found


def seconds(
    run: Callable[[], object], device: torch.device, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of a run on `device`, of `repeats` runs one after the other."""
    _wait(device)
    start = clock()
    for _ in range(repeats):
        run()
    _wait(device)
    return (clock() - start) / repeats


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return median(a / b for a, b in zip(numerators, denominators))


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """Return the bytes that `run` takes at most beyond what is in use before; NaN where the system does not count."""
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    if platform.system() != "Linux":
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or `run` would find it in place
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def gemm(device: torch.device) -> tuple[Callable[[], object], float]:
    """Return a large square product in float32, into memory that is there, and its number of operations."""
    size = _GEMM_SIZE[device.type]
    left, right = torch.rand(2, size, size, device=device)
    out = torch.empty(size, size, device=device)
    return lambda: torch.mm(left, right, out=out), 2.0 * size**3


def fill(entries: int, device: torch.device) -> tuple[Callable[[], object], float]:
    """Return the writing of as many float32 numbers to memory that was written to before, and their bytes."""
    place = torch.zeros(entries, device=device)
    return lambda: place.fill_(1.0), 4.0 * entries


def machine(device: torch.device) -> str:
    """Return a line on the machine: processor, cores, threads, how busy it is before, device and versions."""
    parts = [f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"]
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    if device.type == "cuda":
        parts.append(f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    parts += [f"torch {torch.__version__}"]
    parts += [f"{name} {_version(package)}" for name, package in _PEERS.items()]
    return "; ".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [header, rule, *rows]
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]) + " |"
        for line in lines
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[field].split()[0])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
