"""Results of trainings: their CSV file, best rates chosen on validation rows, tables and pictures."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path

import numpy as np
from _ecopt_contenders import OURS, SPACES
from _ecopt_train import Run
from _measure import table

_TYPES = {field.name: field.type for field in fields(Run)}


def read(path: Path) -> dict[tuple, Run]:
    """Return the results in a CSV file by what was asked for."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        runs = [Run(**{name: _TYPES[name](text) for name, text in line.items()}) for line in csv.DictReader(file)]
    return {run.key: run for run in runs}


def append(path: Path, run: Run) -> None:
    """Write a result to a CSV file."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(_TYPES))
        if not file.tell():
            writer.writeheader()
        writer.writerow(asdict(run) | {"loss": f"{run.loss:.5g}"})


class Results:
    """Some runs, of which seeds are told apart from settings.

    A setting is a learning rate and a penalty; the best one has the highest mean accuracy on validation rows.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._by_case: dict[tuple, dict[tuple, list[Run]]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            case = self._by_case.setdefault((run.data, run.net, run.start, run.inner, run.space), {})
            case.setdefault((run.lr, run.penalty), []).append(run)

    def nets(self) -> list[tuple[str, str]]:
        """Return data and nets."""
        return list(dict.fromkeys((run.data, run.net) for run in self.runs))

    def rows(self, data: str, net: str) -> list[tuple[str, str]]:
        """Return a net's starts and inner optimizers."""
        return list(dict.fromkeys((r.start, r.inner) for r in self.runs if (r.data, r.net) == (data, net)))

    def spaces(self) -> list[str]:
        """Return where steps were made, in the contenders' order."""
        return [space for space in SPACES if any(run.space == space for run in self.runs)]

    def best(self, *case: str) -> list[Run]:
        """Return a case's runs, one a seed, with its best setting; none if there is no such case."""
        settings = self._by_case.get(case, {})
        return max(settings.values(), key=lambda runs: np.mean([run.validation for run in runs]), default=[])

    def at_the_edge(self, runs: Sequence[Run]) -> bool:
        """Return whether the best rate is the grid's first or last."""
        rates = {lr for lr, _ in self._by_case[_case(runs[0])]}
        return len(rates) > 2 and runs[0].lr in (min(rates), max(rates))

    def area(self, *case: str) -> np.ndarray:
        """Return for each seed the mean accuracy over the grid of rates, with the penalty of the best setting."""
        best = self.best(*case)
        if not best:
            return np.zeros(0)
        curves = [runs for (_, penalty), runs in self._by_case[case].items() if penalty == best[0].penalty]
        return tests([replace(run, test=np.mean([r[i].test for r in curves])) for i, run in enumerate(best)])

    def curve(self, *case: str) -> list[tuple[float, float, float]]:
        """Return rates with mean and standard deviation of the accuracy, at a penalty of 0."""
        points = [
            (lr, tests(runs)) for (lr, penalty), runs in sorted(self._by_case.get(case, {}).items()) if not penalty
        ]
        return [(lr, accuracies.mean(), _std(accuracies)) for lr, accuracies in points]

    def of_kind(self, data: str, net: str, spaces: Sequence[str]) -> list[Run]:
        """Return the runs of the best case of a net among some spaces, over all starts and inner optimizers."""
        cases = [self.best(data, net, *row, space) for row, space in product(self.rows(data, net), spaces)]
        return max(filter(None, cases), key=lambda runs: np.mean([run.validation for run in runs]), default=[])


def print_accuracies(results: Results) -> None:
    """Print a table for each net: starts and inner optimizers below each other, spaces beside each other."""
    spaces = results.spaces()
    for data, net in results.nets():
        lines = []
        for row in results.rows(data, net):
            found = [results.best(data, net, *row, space) for space in spaces]
            lines.append([", ".join(row), *(_best(results, runs) if runs else "" for runs in found)])
        print(f"\n### {data}, {net}\n\n{table(['best test accuracy in % (rate)', *spaces], lines)}")


def print_gains(results: Results, ratios: dict[tuple[str, str], float]) -> None:
    """Print the best of ours beside the best control, for each net, with the net's invariant ratio."""
    lines = []
    for data, net in results.nets():
        controls = [space for space in results.spaces() if space not in OURS]
        control, ours = (results.of_kind(data, net, spaces) for spaces in (controls, OURS))
        if control and ours:
            gain = spread(tests(ours) - tests(control), "+")
            names = [f"{r[0].start}, {r[0].inner}, {r[0].space}: {spread(tests(r))}" for r in (control, ours)]
            lines.append([f"{data}, {net}", f"{ratios[data, net]:.5f}", *names, gain])
    header = ["", "invariant ratio", "best control", "best of ours", "gain"]
    if lines:
        print(f"\n### Best against best\n\n{table(header, lines)}")


def print_areas(results: Results) -> None:
    """Print the mean accuracy over the grid of rates."""
    spaces, lines = results.spaces(), []
    for data, net in results.nets():
        for row in results.rows(data, net):
            areas = [results.area(data, net, *row, space) for space in spaces]
            lines.append([", ".join((data, net, *row)), *(spread(area) if len(area) else "" for area in areas)])
    print(f"\n### Mean over the grid of rates\n\n{table(['test accuracy in %', *spaces], lines)}")


def draw(results: Results, path: Path) -> None:
    """Draw a row of panels for each net, one for each inner optimizer: accuracy over the rate, a colour a space."""
    from matplotlib.figure import Figure

    cases = [(*net, start) for net in results.nets() for start in dict.fromkeys(s for s, _ in results.rows(*net))]
    inner = list(dict.fromkeys(run.inner for run in results.runs))
    figure = Figure(figsize=(3.2 * len(inner) + 1, 2.3 * len(cases) + 0.8), layout="constrained")
    panels = figure.subplots(len(cases), len(inner), squeeze=False, sharey="row", sharex="col")
    for (i, case), (j, name) in product(enumerate(cases), enumerate(inner)):
        axes = panels[i, j]
        for color, space in enumerate(results.spaces()):
            points = np.array(results.curve(*case, name, space))
            if len(points):
                rates, mean, std = points.T
                axes.plot(rates, mean, f"C{color}o-", markersize=3, label=space)
                axes.fill_between(rates, mean - std, mean + std, color=f"C{color}", alpha=0.15)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.set_title(f"{', '.join(case)}, {name}", fontsize="small")
    handles = {label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=1 + 2 * len(inner), fontsize="small")
    figure.supxlabel("learning rate")
    figure.supylabel("test accuracy in %")
    figure.savefig(path, dpi=110)


def tests(runs: Sequence[Run]) -> np.ndarray:
    """Return test accuracies in percent."""
    return np.array([100 * run.test for run in runs])


def spread(values: np.ndarray, sign: str = "") -> str:
    """Return the mean and, of several values, the standard deviation."""
    return f"{values.mean():{sign}.2f}" + (f" ± {_std(values):.2f}" if len(values) > 1 else "")


def _best(results: Results, runs: Sequence[Run]) -> str:
    setting = f"{runs[0].lr:g}" + (f", {runs[0].penalty:g}" if runs[0].penalty else "")
    return f"{spread(tests(runs))} ({setting}{'*' if results.at_the_edge(runs) else ''})"


def _case(run: Run) -> tuple[str, ...]:
    return run.data, run.net, run.start, run.inner, run.space


def _std(values: np.ndarray) -> float:
    return values.std(ddof=1) if len(values) > 1 else 0.0
