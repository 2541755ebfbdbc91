"""The report of Table 1: rows of the CSV file enter; a table and a picture leave."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from _measure import table
from _result_lines import append_line, read_lines

from sklearn_gradspace._main_job._report import deviation, spread

# The authors' accuracies, base net → GradNet: A. R. Aleksziew, "Improving Neural Networks using Gradient Space".
AUTHORS_TABLE = {
    "cifar10": {
        0.79: 0.8289, 0.76: 0.8201, 0.74: 0.8066, 0.72: 0.7936, 0.68: 0.7649,
        0.65: 0.7511, 0.62: 0.7274, 0.55: 0.7016, 0.51: 0.6856, 0.49: 0.6780,
    },
    "mnist": {0.92: 0.98, 0.96: 0.9857, 0.9894: 0.9914},
}  # fmt: skip
AUTHORS_BASE = 0.72  # of the net in gradnet_base_cifar10.npz


@dataclass(frozen=True)
class Result:
    """What one fit reached, seen in one way."""

    data: str
    base: str
    contender: str
    seed: int
    rows: int
    test_rows: int
    views: str
    effort: str
    setting: str
    validation: float
    test: float
    seconds: float
    test_seconds: float
    gradients: int
    machine: str

    @property
    def key(self) -> tuple:
        """What was asked for, of which one result is enough."""
        return self.data, self.base, self.contender, self.seed, self.rows, self.test_rows, self.views, self.effort


class ResultFile:
    """A CSV file to which results are appended one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        results = [Result(*(f.type(text) for f, text in zip(fields(Result), line))) for line in read_lines(path)]
        self.results = {result.key: result for result in results}

    def append(self, result: Result) -> None:
        """Write a result at once."""
        self.results[result.key] = result
        append_line(self.path, [field.name for field in fields(Result)], astuple(result))


def print_tables(results: Sequence[Result]) -> None:
    """Print a table for each base net: accuracies in percent, and gains over the base net seen in the same way."""
    ways = list(dict.fromkeys(r.views for r in results))
    for base in dict.fromkeys(r.base for r in results):
        of_base = [r for r in results if r.base == base]
        print(f"\n### {of_base[0].data}, base net {base}{_authors_gain(of_base[0].data, base)}\n")
        header = [
            "test accuracy in %",
            *(head for way in ways for head in (way, "gain")),
            "seeds",
            "s a fit",
            "setting",
        ]
        lines = []
        for name in dict.fromkeys(r.contender for r in of_base):
            cells = []
            for way in ways:
                accuracies = _accuracies(of_base, name, way)
                start = _accuracies(of_base, "base", way)
                cells += [spread(accuracies), spread(accuracies - start.mean(), "+") if len(start) else ""]
            mine = [r for r in of_base if r.contender == name]
            seconds = f"{np.mean([r.seconds for r in mine]):.0f}"
            settings = " / ".join(dict.fromkeys(r.setting for r in mine))
            lines.append([name, *cells, str(len({r.seed for r in mine})), seconds, settings])
        print(table(header, lines))


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw bars of accuracies with their spread over seeds, and base nets as lines."""
    from matplotlib.figure import Figure

    bases = list(dict.fromkeys(r.base for r in results))
    ways = list(dict.fromkeys(r.views for r in results))
    counts = [len({r.contender for r in results if r.base == base and r.contender != "base"}) for base in bases]
    figure = Figure(figsize=(8, 0.45 * sum(counts) + 0.9 * len(bases) + 0.8), layout="constrained")
    panels = figure.subplots(len(bases), squeeze=False, height_ratios=[max(1, n) for n in counts])[:, 0]
    for axes, base in zip(panels, bases):
        of_base = [r for r in results if r.base == base]
        names = [name for name in dict.fromkeys(r.contender for r in of_base) if name != "base"]
        lowest = 100 * min(r.test for r in of_base)
        for i, way in enumerate(ways):
            for height, name in enumerate(names):
                accuracies = _accuracies(of_base, name, way)
                if len(accuracies):
                    place, thickness = height + (i - (len(ways) - 1) / 2) * 0.8 / len(ways), 0.8 / len(ways)
                    axes.barh(
                        place, accuracies.mean(), thickness, xerr=deviation(accuracies), color=f"C{i}", alpha=0.7,
                        capsize=3, label=way if not height else None,
                    )  # fmt: skip
            for start in _accuracies(of_base, "base", way)[:1]:
                axes.axvline(start, color=f"C{i}", linestyle="--", label=f"base net, {way}")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(left=lowest - 2)
        axes.set_title(f"{of_base[0].data}, base net {base}{_authors_gain(of_base[0].data, base)}", fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, fontsize="small")
    figure.supxlabel("test accuracy in %: mean and standard deviation over seeds")
    figure.savefig(path, dpi=150)


def _authors_gain(data: str, base: str) -> str:
    level = AUTHORS_BASE if base == "authors" else float(base)
    reached = AUTHORS_TABLE[data].get(level)
    return "" if reached is None else f" (the authors: {level} → {reached}, {100 * (reached - level):+.2f})"


def _accuracies(results: Sequence[Result], contender: str, views: str) -> np.ndarray:
    return np.array([100 * r.test for r in results if r.contender == contender and r.views == views])
