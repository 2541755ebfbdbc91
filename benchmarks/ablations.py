"""What GradNet's gain over its base net is made of: one setting at a time, over the number of rows, with seeds.

    python benchmarks/ablations.py [--data digits|mnist] [--data-home DIR] [--rows 100 300 600] [--seeds 0 1 2 3 4]

A perceptron with 32 hidden units is trained on one half of the rows, and stopped early. Every variant of the pipeline
``GradientFeaturizer(net), GradNetClassifier()`` differs from the defaults in what its name says, and is fitted to the
first rows of the other half; the last panel has the controls, each at its best setting on rows held out. Accuracies on
test rows are appended to the CSV, and what is there is not computed again. For MNIST, DIR holds ``mnist.npz``.
"""

import argparse
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from _measure import machine, table
from _result_lines import append_line, read_lines
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from torch import nn
from tqdm.auto import tqdm

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier
from sklearn_gradspace._main_job._comparison import Job
from sklearn_gradspace._main_job._contenders import (
    BASE,
    FINE_TUNED,
    KERNEL,
    KERNEL_OF_LAST_LAYER,
    LAST_LAYER,
    ON_ACTIVATIONS,
    WITHOUT_BASE,
    contender,
)
from sklearn_gradspace._main_job._data import load
from sklearn_gradspace._main_job._report import deviation, spread
from sklearn_gradspace.modules import MLP

_SGD = {"optimizer": torch.optim.SGD}
_LR = "gradnetclassifier__lr"

# For each panel its variants: arguments of the featurizer, those of GradNet, and a grid.
PANELS: dict[str, dict[str, tuple[dict, dict, dict]]] = {
    "optimiser": {
        "defaults (Adam)": ({}, {}, {}),
        "Adam, rate chosen": ({}, {}, {_LR: [1e-4, 1e-3, 1e-2]}),
        "SGD, rate chosen": ({}, _SGD, {_LR: [0.01, 0.1, 1.0]}),
        "SGD with momentum, rate chosen": ({}, _SGD | {"optimizer__momentum": 0.9}, {_LR: [0.001, 0.01, 0.1]}),
        "cosine schedule": ({}, {"schedule": "cosine"}, {}),
    },
    "regularisation": {
        "defaults (none)": ({}, {}, {}),
        **{f"L2, {c:g}": ({}, {"regularization": c}, {}) for c in (1e-4, 1e-3)},
        **{f"L1, {c:g}": ({}, {"regularization": c, "l1_ratio": 1.0}, {}) for c in (1e-5, 1e-4)},
        "dropout, 0.5": ({}, {"dropout": 0.5}, {}),
        "label smoothing, 0.1": ({}, {"label_smoothing": 0.1}, {}),
        "early stopping": ({}, {"early_stopping": True, "max_epochs": 100}, {}),
    },
    "percentile": {
        **{f"{p}%": ({"percentile": p}, {}, {}) for p in (5, 50, 100)},
        "defaults (15%)": ({}, {}, {}),
    },
    "structure": {
        "defaults (layer)": ({}, {}, {}),
        "adjacent": ({}, {"structure": "adjacent"}, {}),
        "full": ({}, {"structure": "full"}, {}),
        "squared units": ({}, {"activation": "square"}, {}),
        "128 units a layer": ({}, {"hidden_sizes": 128}, {}),
    },
    "normalisation": {
        "defaults (minmax, root)": ({}, {}, {}),
        **{f"{s}, root": ({"scale": s}, {}, {}) for s in ("rms", "maxabs", "layer", "fisher", "kronecker")},
        "rms": ({"scale": "rms", "power": None}, {}, {}),
        "layer": ({"scale": "layer", "power": None}, {}, {}),
    },
    "views and logits": {
        "defaults (a random view, no logits)": ({}, {}, {}),
        "2 views": ({}, {"views": 2}, {}),
        "all views": ({}, {"views": "all"}, {}),
        "logits": ({}, {"base_logits": True}, {}),
        "all views, logits": ({}, {"views": "all", "base_logits": True}, {}),
    },
    "together": {
        "defaults": ({}, {}, {}),
        "all views, logits, L2": ({}, {"views": "all", "base_logits": True, "regularization": 1e-3}, {}),
        "all views, logits, rms, 100%": (
            {"scale": "rms", "percentile": 100, "power": None},
            {"views": "all", "base_logits": True},
            {},
        ),
        "all views, logits, layer, 100%": (
            {"scale": "layer", "percentile": 100, "power": None},
            {"views": "all", "base_logits": True},
            {},
        ),
        "the same, squared units": (
            {"scale": "layer", "percentile": 100, "power": None},
            {"views": "all", "base_logits": True, "activation": "square"},
            {},
        ),
    },
    "controls": {
        "defaults": ({}, {}, {}),
        **{
            name: ({}, {}, {})
            for name in (
                BASE,
                KERNEL,
                KERNEL_OF_LAST_LAYER,
                FINE_TUNED,
                LAST_LAYER,
                ON_ACTIVATIONS,
                WITHOUT_BASE,
            )
        },
    },
}
COLUMNS = ("data", "base_epochs", "test_rows", "panel", "variant", "rows", "seed", "setting", "accuracy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what is missing, print a table a panel, and draw."""
    options = _options(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    results = _results(options.csv)
    job = Job(
        load(options.data, options.data_home), lambda: _base(options.data), base_epochs=options.base_epochs,
        samples=options.samples,
    )  # fmt: skip
    missing = [key for key in dict.fromkeys(_asked(options)) if key not in results]
    for seed in dict.fromkeys(key[-1] for key in missing):
        net, split = job.prepare(seed)
        test = tuple(part[: options.test_rows] for part in split.test)
        for key in (bar := tqdm([key for key in missing if key[-1] == seed], unit="fit")):
            panel, variant, n = key[3:6]
            bar.set_postfix_str(f"seed {seed}, {n} rows, {panel}: {variant}")
            train = tuple(part[:n] for part in split.train)
            accuracy, setting = fit_and_test(net, panel, variant, train, test, seed)
            results[key] = round(accuracy, 4)
            append_line(options.csv, COLUMNS, (*key, " ".join(f"{k}={v}" for k, v in setting.items()), results[key]))
    print(machine(torch.device("cpu")))
    for panel in options.panels:
        _print_table(panel, results, options)
    if options.picture:
        _draw(results, options)


def _base(data: str) -> nn.Module:
    return MLP(64 if data == "digits" else 784, 10, (32,))


def fit_and_test(net: nn.Module, panel: str, variant: str, train, test, seed: int) -> tuple[float, dict]:
    """Return the test accuracy of a variant, and the setting that held-out rows chose for it."""
    estimator, grid = _estimator(net, panel, variant, seed)
    if estimator is None:
        with torch.no_grad():
            return float((net(torch.from_numpy(test[0])).argmax(1).numpy() == test[1]).mean()), {}
    if np.prod([len(values) for values in grid.values()]) == 1:
        return estimator.set_params(**{k: v[0] for k, v in grid.items()}).fit(*train).score(*test), {}
    validation = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed)
    search = GridSearchCV(estimator, grid, cv=validation, error_score="raise").fit(*train)
    return search.score(*test), search.best_params_


def _estimator(net: nn.Module, panel: str, variant: str, seed: int) -> tuple[BaseEstimator | None, dict]:
    if variant == BASE:
        return None, {}
    if panel == "controls":
        return contender(variant, net, seed, None)
    of_features, of_gradnet, grid = ({}, {}, {}) if variant == "defaults" else PANELS[panel][variant]
    features = GradientFeaturizer(net, **{"random_state": seed} | of_features)
    return make_pipeline(features, GradNetClassifier(**{"random_state": seed} | of_gradnet)), grid


def _asked(options: argparse.Namespace):
    """Yield what is wanted; the defaults are in all panels, under one key."""
    for seed in options.seeds:
        for panel in options.panels:
            for variant in PANELS[panel]:
                for n in options.rows:
                    yield _key(options, panel, variant, n, seed)


def _key(options: argparse.Namespace, panel: str, variant: str, n: int, seed: int) -> tuple:
    if variant.startswith("defaults"):
        panel, variant = "together", "defaults"
    return options.data, options.base_epochs, options.test_rows, panel, variant, n, seed


def _results(path: str) -> dict[tuple, float]:
    return {(d, int(e), int(t), p, v, int(n), int(s)): float(a) for d, e, t, p, v, n, s, _, a in read_lines(path)}


def _found(results, options, panel: str, variant: str, n: int) -> np.ndarray:
    keys = [_key(options, panel, variant, n, seed) for seed in options.seeds]
    return np.array([100 * results[key] for key in keys if key in results])


def _print_table(panel: str, results: dict[tuple, float], options: argparse.Namespace) -> None:
    rows = []
    for variant in PANELS[panel]:
        found = [_found(results, options, panel, variant, n) for n in options.rows]
        rows.append([variant, *map(spread, found)])
    print(f"\n{options.data}: {panel}; test accuracy in %, mean and standard deviation over {len(options.seeds)} seeds")
    print(table(["", *(f"{n} rows" for n in options.rows)], rows))


def _draw(results: dict[tuple, float], options: argparse.Namespace) -> None:
    """Draw accuracy over the number of rows, a panel for each kind of setting, with standard errors."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(17, 10.5), sharex=True, sharey=True, layout="constrained")
    for panel, ax in zip(options.panels, axes.flat):
        for variant in PANELS[panel]:
            found = [_found(results, options, panel, variant, n) for n in options.rows]
            means, errors = zip(*((values.mean(), deviation(values) / len(values) ** 0.5) for values in found))
            style = {"color": "k", "lw": 2} if variant.startswith("defaults") else {"lw": 1.2}
            ax.errorbar(options.rows, means, errors, label=variant, ms=3, marker="o", **style)
        ax.set(xscale="log", title=panel)
        ax.legend(fontsize=7, frameon=False, loc="lower right", borderaxespad=0)
        ax.set_xticks(options.rows, [str(n) for n in options.rows])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("rows that GradNet is fitted to")
    figure.supylabel("test accuracy in %")
    figure.savefig(options.picture, dpi=90)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="digits", choices=["digits", "mnist"])
    add("--data-home", help="folder with mnist.npz")
    add("--rows", type=int, nargs="+", default=[100, 200, 400, 600], help="to fit to, of the second half")
    add("--test-rows", type=int, default=1000, help="at most")
    add("--samples", type=int, default=4000, help="rows of MNIST that are halved, the base net's and the others'")
    add("--base-epochs", type=int, default=4, help="after which training of the base net is stopped")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--panels", nargs="+", default=list(PANELS), choices=list(PANELS))
    add("--csv", default="ablations.csv", help="file of results, continued if it is there")
    add("--picture", help="file to draw to")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
