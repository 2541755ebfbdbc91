"""Other data and nets: does a separator on gradient space do better than its net, and than what else can be done?

    python benchmarks/other_data.py --data-home DIR [--data "breast cancer" wine ...] [--seeds 0 1 2 3 4] [--csv FILE]

For each data set and net, a base net is trained on some rows for the epochs that the table names. Contenders are fitted
to other rows, each at the setting that is best on held-out ones: a quarter of them for images, in turn each quarter for
the small tables. Inputs of tables are standardised by the base net's rows. Accuracies on test rows are appended to the
CSV, and what is there is not computed again. DIR holds ``mnist.npz``.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _ecopt_nets import make_net
from _measure import machine, table
from _other_data_contenders import BASE, ON_GRADIENTS, WITH_BASE, WITHOUT, estimator_and_grid
from _result_lines import append_line, read_lines
from _table1_contenders import base_logits
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm.auto import tqdm

from sklearn_gradspace._main_job._comparison import Job
from sklearn_gradspace._main_job._data import Data, Split, load
from sklearn_gradspace._main_job._report import deviation
from sklearn_gradspace.modules import MLP


@dataclass(frozen=True)
class Case:
    """Data, a net for it, and when its training is stopped.

    Parameters
    ----------
    data : callable
        From the folder with the data to `Data`.
    net : callable
        Returns a net with its start.
    base_epochs : int
    seeds : int
        At most so many.
    large : bool
        Whether it is of images, for which settings are fewer, a quarter of the rows is held out once, boosting is left
        out, and inputs stay as they are.
    gradnet_epochs : int
        For GradNet on gradients; 30 are the default.
    """

    data: Callable[[str], Data]
    net: Callable[[], nn.Module]
    base_epochs: int
    seeds: int = 5
    large: bool = False
    gradnet_epochs: int = 30

    def prepare(self, seed: int, options: argparse.Namespace) -> tuple[nn.Module, Split]:
        """Return the trained base net and the rows of one seed."""
        split = self.data(options.data_home).split(seed, 2 * max(options.base_rows, options.rows))
        of_test = np.random.default_rng(seed).permutation(len(split.test[1]))[: options.test_rows]
        split = Split(
            tuple(a[: options.base_rows] for a in split.base),
            tuple(a[: options.rows] for a in split.train),
            tuple(a[of_test] for a in split.test),
        )
        if not self.large:
            scaler = StandardScaler().fit(split.base[0])
            split = Split(*((scaler.transform(X), y) for X, y in (split.base, split.train, split.test)))
        return Job(_Fixed(split), self.net, base_epochs=self.base_epochs).prepare(seed)


@dataclass(frozen=True)
class _Fixed:
    """Data that are split already."""

    of: Split

    def split(self, *arguments, **others) -> Split:
        """Return the rows."""
        return self.of


def _table(load_data: Callable) -> Callable[[str], Data]:
    return lambda data_home: Data(*(a.astype(kind) for a, kind in zip(load_data(return_X_y=True), ("float32", int))))


def _digits(data_home: str) -> Data:
    return load("digits")


def _mnist(data_home: str) -> Data:
    data = load("mnist", data_home)
    return Data(data.X[:, None], data.y, data.X_test[:, None], data.y_test)


CASES = {
    "breast cancer": Case(_table(load_breast_cancer), lambda: MLP(30, 2, (32,)), 2),
    "wine": Case(_table(load_wine), lambda: MLP(13, 3, (32,)), 8),
    "digits": Case(_digits, lambda: MLP(64, 10, (32,)), 4, large=True),
    "MNIST, MLP": Case(_mnist, lambda: MLP(784, 10, (128, 128)), 1, 3, large=True, gradnet_epochs=10),
    "MNIST, residual net": Case(
        _mnist, lambda: make_net("resnet10x4", (1, 28, 28)), 1, 3, large=True, gradnet_epochs=10
    ),
}
COLUMNS = ("data", "most_base_rows", "most_rows", "most_test_rows", "seed", "contender", "setting", "accuracy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what is missing, print the table, and draw."""
    options = _options(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    results = _results(options.csv)
    for name in options.data:
        case = CASES[name]
        for seed in options.seeds[: case.seeds]:
            keys = [_key(options, name, seed, contender) for contender in _contenders(case)]
            missing = [key for key in keys if key not in results]
            net, split = case.prepare(seed, options) if missing else (None, None)
            for key in (bar := tqdm(missing, unit="fit")):
                bar.set_postfix_str(f"{name}, seed {seed}: {key[-1]}")
                accuracy, setting = fit_and_test(case, key[-1], net, split, seed)
                results[key] = round(accuracy, 5)
                append_line(options.csv, COLUMNS, (*key, setting, results[key]))
    found = {name: _found(results, name, options) for name in options.data}
    print(machine(torch.device("cpu")))
    print("\ntest accuracy in %, mean ± standard deviation over the seeds; **: the best; *: within the spread of it\n")
    print(table(["", *found], [[c, *(_cell(f, c) for f in found.values())] for c in (*WITH_BASE, *WITHOUT)]))
    if options.picture:
        _draw(found, options.picture)


def fit_and_test(case: Case, name: str, net: nn.Module, split: Split, seed: int) -> tuple[float, str]:
    """Return the test accuracy of a contender, and the setting that held-out rows chose for it."""
    if name == BASE:
        X, y = split.test
        return float((base_logits(X, net).argmax(1) == y).mean()), ""
    estimator, grid = estimator_and_grid(name, net, case.large, case.gradnet_epochs, seed)
    if not grid:
        return estimator.fit(*split.train).score(*split.test), ""
    quarters = StratifiedKFold(4, shuffle=True, random_state=seed)
    held_out = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed) if case.large else quarters
    search = GridSearchCV(estimator, grid, cv=held_out, error_score="raise").fit(*split.train)
    setting = " ".join(f"{k.rpartition('__')[2]}={v}" for k, v in search.best_params_.items())
    return search.score(*split.test), setting


def _contenders(case: Case) -> list[str]:
    return [*WITH_BASE, *(WITHOUT[:-1] if case.large else WITHOUT)]


def _key(options: argparse.Namespace, name: str, seed: int, contender: str) -> tuple:
    return name, options.base_rows, options.rows, options.test_rows, seed, contender


def _results(path: str) -> dict[tuple, float]:
    return {(data, *map(int, (b, n, t, s)), c): float(a) for data, b, n, t, s, c, _, a in read_lines(path)}


def _found(results: dict[tuple, float], name: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the accuracies of each contender in percent, one for each seed."""
    case, found = CASES[name], {}
    for contender in _contenders(case):
        keys = [_key(options, name, seed, contender) for seed in options.seeds[: case.seeds]]
        found[contender] = np.array([100 * results[key] for key in keys])
    return found


def _cell(found: dict[str, np.ndarray], contender: str) -> str:
    """Return mean and standard deviation, with a mark."""
    if contender not in found:
        return ""
    best = max(found, key=lambda name: found[name].mean())
    below = found[best] - found[contender]
    mark = "**" if contender == best else "*" if below.mean() <= deviation(below) else ""
    return f"{found[contender].mean():.1f} ± {deviation(found[contender]):.1f}{mark}"


def _draw(found: dict[str, dict[str, np.ndarray]], path: str) -> None:
    """Draw a panel for each data set and net: each contender's mean, standard deviation and seeds."""
    import matplotlib.pyplot as plt

    n_columns = min(3, len(found))
    shape = -(-len(found) // n_columns), n_columns
    names = [*WITH_BASE, *WITHOUT][::-1]
    figure, axes = plt.subplots(
        *shape, figsize=(3.2 * n_columns + 3, 3.4 * shape[0]), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (name, of_data) in zip(axes.flat, found.items()):
        for height, contender in enumerate(names):
            if contender in of_data:
                values = of_data[contender]
                colour = "0.4" if contender == BASE else "C1" if contender in ON_GRADIENTS else "C0"
                ax.errorbar(values.mean(), height, xerr=deviation(values), fmt="o", color=colour, capsize=3)
                ax.plot(values, [height] * len(values), "|", color=colour, alpha=0.6)
        if BASE in of_data:
            ax.axvline(of_data[BASE].mean(), color="0.4", lw=0.8, ls=":")
        ax.set(title=name, yticks=range(len(names)), yticklabels=names)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    figure.supxlabel("test accuracy in %: mean, standard deviation and each seed")
    figure.savefig(path, dpi=90)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", nargs="+", default=list(CASES), choices=list(CASES))
    add("--data-home", help="folder with mnist.npz")
    add("--base-rows", type=int, default=5000, help="at most, for the base net")
    add("--rows", type=int, default=2000, help="at most, for all else")
    add("--test-rows", type=int, default=5000, help="at most")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of which MNIST takes the first three")
    add("--csv", default="other_data.csv", help="file of results, continued if it is there")
    add("--picture", help="file to draw to")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
