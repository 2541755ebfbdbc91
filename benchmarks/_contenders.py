"""The cases in which ways to per-sample gradients are compared, and what is measured in each.

An engine of this package, a line of the tables and rows enter; times, memory, and what the machine allows leave.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from _gradient_nets import N_LABELS, operations
from _measure import Rounds, alternate, fill, gemm, peak_memory, ratio
from _peers import PEERS, PERCENTILE, Pass, Task, by_kthvalue, by_quantile, by_topk, selected, torch_func
from torch import Tensor

from sklearn_gradspace.gradients import GradientEngine, GradientFeatures
from sklearn_gradspace.gradients._scratch import Scratch

ONE, SELECTED, ALL = "one label", f"one label, {PERCENTILE}% selected", "all labels"
OURS, FRESH = "ours", "ours, fresh memory"
AGREEMENT = 1e-3


@dataclass(frozen=True)
class Measured:
    """One contender in one case; times in milliseconds for each gradient, memory in MB."""

    threads: int
    net: str
    line: str
    n: int
    contender: str
    rounds: int = 0
    ms: float = float("nan")
    time_over_ours: float = float("nan")
    peak_mb: float = float("nan")
    note: str = ""


@dataclass(frozen=True)
class Floor:
    """What the machine's rates allow in one case; times in milliseconds for each gradient."""

    mflop: float
    gflop_s: float
    mb: float
    gb_s: float
    larger_ms: float
    sum_ms: float
    reached_of_larger: float
    reached_of_sum: float


class Ours:
    """This package: a pass like those of the peers, in memory that the engine uses again.

    Parameters
    ----------
    engine : GradientEngine
    X : ndarray of shape (n, ...)
    labels : Tensor of shape (n,) or None
    select : bool
    fresh : bool
        Whether to return all gradients, in memory that is asked for in the pass.
    """

    def __init__(self, engine: GradientEngine, X: np.ndarray, labels: Tensor | None, select: bool, fresh: bool) -> None:
        self.of = GradientFeatures(engine, percentile=PERCENTILE, batch_size=len(X)) if select else engine
        self.X, self.labels, self.fresh = X, labels, fresh

    def all(self) -> Tensor:
        """Return gradients of shape (n, k, n_params)."""
        gradients = self.of(self.X, self.labels)
        return gradients if self.labels is None else gradients.unsqueeze(1)

    def __call__(self) -> Iterator[Tensor]:
        return iter([self.all()]) if self.fresh else self.of.parts(self.X, self.labels)


class Case:
    """A net, a line of the tables and a batch size, with all contenders."""

    def __init__(self, engine: GradientEngine, net: str, line: str, X: np.ndarray) -> None:
        self.engine, self.net, self.line, self.X = engine, net, line, X
        labels = torch.from_numpy(np.random.default_rng(0).integers(N_LABELS, size=len(X))).to(engine.device)
        self.labels = None if line == ALL else labels
        self.n_gradients = len(X) * (N_LABELS if line == ALL else 1)
        self.task = Task(engine.net, torch.from_numpy(X).to(engine.device), self.labels, N_LABELS)

    def ours(self, fresh: bool = False) -> Ours:
        """Return this package's pass."""
        return Ours(self.engine, self.X, self.labels, self.line == SELECTED, fresh)

    def makers(self) -> dict[str, Callable[[], Pass | Ours]]:
        """Return what makes the pass of each contender."""
        peers = dict(PEERS)
        if self.line == SELECTED:
            peers = {name: selected(make, by_topk) for name, make in peers.items()}
            peers["torch.func, kthvalue"] = selected(torch_func, by_kthvalue)
            peers["torch.func, quantile"] = selected(torch_func, by_quantile)
        ours = {OURS: self.ours, FRESH: lambda: self.ours(fresh=True)}
        return ours | {name: lambda make=make: make(self.task) for name, make in peers.items()}

    def gradients(self, passes: Pass) -> Tensor:
        """Return what a peer's pass yields in one piece of shape (n, k, n_params)."""
        k = 1 if self.labels is not None else N_LABELS
        out = torch.full((len(self.X), k, self.engine.n_params), float("nan"), device=self.engine.device)
        for rows, columns, gradients in passes():
            place = out[rows, columns]
            for block in self.engine.blocks:
                place[..., block.slice] = gradients[block.name].detach().reshape(*place.shape[:2], block.size)
        return out

    def error(self, found: Tensor, truth: Tensor) -> float:
        """Return the largest difference, relative to the parameter's largest entry.

        Of selections only entries that both have are compared; the share of those that one alone has is added.
        """
        errors, apart = [], 0.0
        for block in self.engine.blocks:
            a, b = found[..., block.slice], truth[..., block.slice]
            difference = (a - b).abs()
            if self.line == SELECTED:
                one_alone = (a != 0) != (b != 0)
                apart += one_alone.sum().item() / truth.numel()
                difference.masked_fill_(one_alone, 0)
            errors.append((difference.max() / b.abs().max()).item())
        return max(errors) + apart


def drained(passes: Pass | Ours) -> Callable[[], None]:
    """Return a function that runs a pass and drops what it yields."""

    def run() -> None:
        for _ in passes():
            pass

    return run


def measure(case: Case, rounds: Rounds, threads: int) -> tuple[list[Measured], Floor]:
    """Check that all contenders agree, then measure their memory, then their time."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # libraries are many objects, which would be gone through at every measurement of memory
    device, truth = case.engine.device, case.ours().all()
    place = next(iter(case.engine.parts(case.X, case.labels)))[1].numel()
    common = Measured(threads, case.net, case.line, len(case.X), "")
    measured, runs = {}, {}
    for name, make in case.makers().items():
        measured[name] = replace(common, contender=name)
        try:
            passes = make()
            error = case.error(case.gradients(passes), truth) if name not in (OURS, FRESH) else 0.0
        except ModuleNotFoundError as reason:
            measured[name] = replace(measured[name], note=f"not installed ({reason.name})")
            continue
        except Exception as reason:
            measured[name] = replace(measured[name], note=f"refused: {_first_line(reason)}")
            continue
        if not error < AGREEMENT:
            measured[name] = replace(measured[name], note=f"differs from ours by {error:.1e}")
        runs[name] = drained(passes)
        case.engine.scratch = Scratch()  # which finds no memory to use again
        measured[name] = replace(measured[name], peak_mb=peak_memory(drained(make()), device) / 1e6)
    del truth

    (multiply, flop), (write, nbytes) = gemm(device), fill(place, device)
    title = f"{case.net}, {case.line}, n = {len(case.X)}"
    seconds = alternate(runs | {"gemm": multiply, "fill": write}, rounds, device, title)
    flop_s = [flop / s for s in seconds.pop("gemm")]
    byte_s = [nbytes / s for s in seconds.pop("fill")]
    for name, of_rounds in seconds.items():
        ms = 1e3 * median(of_rounds) / case.n_gradients
        measured[name] = replace(
            measured[name], rounds=len(of_rounds), ms=ms, time_over_ours=ratio(of_rounds, seconds[OURS])
        )
    return list(measured.values()), floor(case, flop_s, byte_s, seconds[OURS])


def floor(case: Case, flop_s: list[float], byte_s: list[float], ours: list[float]) -> Floor:
    """Return the time that operations and writing take at the rates of each round, and what part of ours that is."""
    k = 1 if case.labels is not None else N_LABELS
    flop = operations(case.engine.net, case.task.X[:1], k) * len(case.X)
    nbytes = 4.0 * case.n_gradients * case.engine.n_params
    larger = [max(flop / f, nbytes / b) for f, b in zip(flop_s, byte_s)]
    total = [flop / f + nbytes / b for f, b in zip(flop_s, byte_s)]
    n = case.n_gradients
    return Floor(
        flop / n / 1e6, median(flop_s) / 1e9, nbytes / n / 1e6, median(byte_s) / 1e9,
        1e3 * median(larger) / n, 1e3 * median(total) / n, ratio(larger, ours), ratio(total, ours),
    )  # fmt: skip


def _first_line(reason: Exception) -> str:
    line = " ".join(str(reason).split())
    return f"{type(reason).__name__}: {line[:100]}{'…' if len(line) > 100 else ''}"
