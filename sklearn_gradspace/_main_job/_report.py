"""The report: results as a table, a picture and files.

Results enter; text, ``table.csv``, ``table.png`` and ``pipeline.joblib`` leave.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np

from ._comparison import Job, Result
from ._contenders import BASE, CONTENDERS, GRADNET, KERNEL


@dataclass(frozen=True)
class Row:
    """One contender: its accuracies and its gains over the base net, in percent, a value a seed."""

    contender: str
    accuracies: np.ndarray
    gains: np.ndarray


def rows(results: list[Result]) -> list[Row]:
    """Return a row for each contender: the base net, the controls, ours."""
    of = {(r.contender, r.seed): 100 * r.accuracy for r in results}
    seeds = sorted({r.seed for r in results})
    base = np.array([of[BASE, seed] for seed in seeds])
    made = []
    for name in (BASE, *reversed(CONTENDERS)):
        accuracies = np.array([of[name, seed] for seed in seeds])
        made.append(Row(name, accuracies, accuracies - base))
    return made


def describe(job: Job) -> str:
    """Return one line on the rows and on the base net."""
    split = job.data.split(0, job.samples, base_half=not job.trained)
    base = "trained before" if job.trained else f"{job.base_epochs} epochs on {len(split.base[0])} rows"
    return f"base net {base}; all else fitted to {len(split.train[0])} other rows; {len(split.test[0])} test rows"


def table(results: list[Result]) -> str:
    """Return the results as a table of text."""
    made = rows(results)
    n_seeds = len(made[0].accuracies)
    lines = [
        f"| test accuracy in %, mean ± standard deviation over {n_seeds} seeds | accuracy | gain over the base net |",
        "| --- | --- | --- |",
    ]
    for row in made:
        gain = "–" if row.contender == BASE else spread(row.gains, "+")
        lines.append(f"| {row.contender} | {spread(row.accuracies)} | {gain} |")
    return "\n".join(lines)


def save(results: list[Result], out: Path) -> list[Path]:
    """Write the table, its picture and GradNet's pipeline of the first seed; return the files.

    Without matplotlib there is no picture.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "table.csv", out / "pipeline.joblib"]
    with files[0].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["contender", "seed", "accuracy", "setting"])
        for r in sorted(results, key=lambda r: (r.contender, r.seed)):
            writer.writerow([r.contender, r.seed, f"{r.accuracy:.6f}", r.setting])
    joblib.dump(next(r.fitted for r in results if r.contender == GRADNET and r.seed == 0), files[1])
    try:
        _draw(rows(results), out / "table.png")
    except ImportError:
        return files
    return [*files, out / "table.png"]


def _draw(made: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.5 * len(made) + 1.2), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(reversed(made)):
        colour = {BASE: "0.4", GRADNET: "C1", KERNEL: "C1"}.get(row.contender, "C0")
        axes.errorbar(row.accuracies.mean(), height, xerr=deviation(row.accuracies), fmt="o", color=colour, capsize=4)
        axes.plot(row.accuracies, [height] * len(row.accuracies), "|", color=colour, alpha=0.6)
    axes.set_yticks(range(len(made)), [row.contender for row in reversed(made)])
    axes.set_ylim(-0.6, len(made) - 0.4)
    figure.supxlabel(f"test accuracy in %: mean, standard deviation and each of {len(made[0].accuracies)} seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def spread(values: np.ndarray, sign: str = "") -> str:
    """Return mean and standard deviation of seeds as text, the mean alone of one seed, and nothing of none."""
    if not len(values):
        return ""
    return f"{values.mean():{sign}.2f}" + (f" ± {deviation(values):.2f}" if len(values) > 1 else "")


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation of seeds, 0 of a single one."""
    return values.std(ddof=1) if len(values) > 1 else 0.0
