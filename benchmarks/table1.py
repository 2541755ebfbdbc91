"""The GradNet authors' Table 1 beside controls: what gradient space adds to a base net on rows it has not seen.

    python benchmarks/table1.py --data-home DIR [--data cifar10|mnist] [--device cuda] [--seeds 0 1 2] [--csv FILE]
    python benchmarks/table1.py --data-home DIR --bases 0.49 0.51 0.55 0.62 0.65 0.68

DIR holds ``cifar10.npz`` or ``mnist.npz`` and, for the base net called ``authors``, ``gradnet_base_cifar10.npz``. Other
base nets are called by the accuracy at which training on the first half of the training rows was stopped. Contenders
are fitted to the second half; their setting is the one that is best on rows held out of it, 5,000 at most, and is
fitted again to all of it; kernels choose by leave-one-out. Test rows are seen in the centre, and averaged over shifted
(and mirrored) versions. Each result is written to the CSV file at once, and what is there is not computed again. To see
that everything runs::

    python benchmarks/table1.py --data-home DIR --rows 500 --test-rows 300 --budget 500 --upper-epochs 1 --seeds 0
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import sklearn
import torch
from _measure import machine
from _table1_bases import AUTHORS, base_nets
from _table1_contenders import CONTENDERS, Contender, Task
from _table1_images import Images, load_images
from _table1_report import AUTHORS_TABLE, Result, ResultFile, draw, print_tables
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm.auto import tqdm

WAYS = ("centre", "averaged")
AT_LEVELS = (
    "base", "kernel", "kernel on penultimate activations", "fine-tuned", "fine-tuned, 20 epochs", "last layer retrained"
)  # fmt: skip
_PART = 2500  # test rows, whose versions are held at a time


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what is missing, and report."""
    options = _options(arguments)
    images = load_images(options.data, options.data_home)
    path = Path(options.csv)
    path.parent.mkdir(parents=True, exist_ok=True)
    file, asked = ResultFile(path), list(_asked(options, images))
    missing = [(wanted, blank) for wanted, blank in asked if any(result.key not in file.results for result in blank)]
    bases = {wanted[0] for wanted, _ in missing}
    nets = base_nets(
        [base for base in options.bases if base in bases],
        images, options.data_home, path.parent, options.data, options.device, options.base_epochs,
    )  # fmt: skip
    with sklearn.config_context(working_memory=options.working_memory), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a grid of penalties holds some that take long
        for (base, name, seed), blank in (bar := tqdm(missing, unit="fit")):
            bar.set_postfix_str(f"base {base}, {name}, seed {seed}")
            wanted = [result for result in blank if result.key not in file.results]
            for result in fit_and_test(CONTENDERS[name], nets[base], images, options, wanted):
                file.append(result)
    results = [file.results[result.key] for _, blank in asked for result in blank]
    print_tables(results)
    if options.picture:
        draw(results, Path(options.picture))


def _asked(options: argparse.Namespace, images: Images):
    """Yield for each fit the base net, contender and seed, and the results that it leads to, still blank."""
    rows, test_rows = _rows(images, options), min(options.test_rows, len(images.y_test))
    line = machine(torch.device(options.device))
    for base in options.bases:
        names = options.contenders or (CONTENDERS if base == AUTHORS else AT_LEVELS)
        for name in names:
            contender = CONTENDERS[name]
            effort = f"{options.budget} gradients" if contender.budgeted else ""
            effort = f"{options.upper_epochs} epochs" if contender.on_both_halves else effort
            for seed in options.seeds if contender.seeded else options.seeds[:1]:
                blank = [
                    Result(
                        options.data, base, name, seed if contender.seeded else 0, rows, test_rows, way, effort,
                        "", 0.0, 0.0, 0.0, 0.0, 0, line,
                    )
                    for way in options.views
                ]  # fmt: skip
                for group in [[result] for result in blank] if contender.own_views else [blank]:
                    yield (base, name, group[0].seed), group


def _rows(images: Images, options: argparse.Namespace) -> int:
    return min(options.rows or images.half, len(images.X) - images.half)


def fit_and_test(contender: Contender, net: nn.Module, images: Images, options: argparse.Namespace, blank):
    """Choose a setting, fit it to all rows, and yield the results that are still blank."""
    first = blank[0]
    own_views = images.views if contender.own_views and first.views == "averaged" else None
    task = Task(net, images, first.rows, own_views, options.budget, options.upper_epochs, options.device, first.seed)
    start = time.perf_counter()
    rows = images.half + np.sort(np.random.default_rng(0).permutation(len(images.X) - images.half)[: first.rows])
    if contender.on_both_halves:
        rows = np.r_[: first.rows, rows]
    setting, validation, fitted = _chosen(contender, task, images.X[rows], images.y[rows])
    seconds = time.perf_counter() - start
    for result in blank:
        start = time.perf_counter()
        X, y = images.X_test[: result.test_rows], images.y_test[: result.test_rows]
        average = None if contender.own_views or result.views == "centre" else images.views
        yield replace(
            result,
            setting=" ".join(f"{name}={value}" for name, value in setting.items()),
            validation=round(validation, 6),
            test=_accuracy(fitted, X, y, average),
            seconds=round(seconds, 1),
            test_seconds=round(time.perf_counter() - start, 1),
            gradients=contender.gradients(task, **setting),
        )


def _chosen(contender: Contender, task: Task, X: np.ndarray, y: np.ndarray):
    """Return the best setting, its validation accuracy and what is fitted with it to all rows."""
    if contender.leave_one_out:
        fitted = contender.make(task, **contender.grid[0]).fit(X, y)
        setting = contender.grid[0] | {"alpha": fitted.alpha_, "base_share": fitted.base_share_}
        return setting, fitted.loo_score_, fitted
    setting, validation = contender.grid[0], np.nan
    if len(contender.grid) > 1:
        part, held_out = train_test_split(
            np.arange(len(y)), test_size=min(5000, len(y) // 5), random_state=task.seed, stratify=y
        )
        X_part, X_held_out, on_part = X[part], X[held_out], replace(task, n=len(part))
        models = [contender.make(on_part, **setting) for setting in contender.grid]
        if contender.same_features:
            features, models = models[0][:-1], [model[-1] for model in models]
            X_part, X_held_out = features.fit_transform(X_part), features.transform(X_held_out)
        scores = [_accuracy(model.fit(X_part, y[part]), X_held_out, y[held_out]) for model in models]
        validation, setting = max(scores), contender.grid[int(np.argmax(scores))]
    return setting, validation, contender.make(task, **setting).fit(X, y)


def _accuracy(fitted, X: np.ndarray, y: np.ndarray, views=None) -> float:
    if views is None:
        return float((fitted.predict_proba(X).argmax(1) == y).mean())
    parts = [views(part) for part in np.split(X, range(_PART, len(X), _PART))]
    proba = [np.mean([fitted.predict_proba(view) for view in of_part], 0) for of_part in parts]
    return float((np.concatenate(proba).argmax(1) == y).mean())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-home", required=True, help="folder with the data")
    add("--data", choices=AUTHORS_TABLE, default="cifar10")
    add("--device", default="cpu", help="cpu or cuda")
    add("--budget", type=int, default=125000, help="gradients that each GradNet is trained with")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", type=int, default=0, help="at most so many rows of the second half; 0 takes all")
    add("--test-rows", type=int, default=10000)
    add("--contenders", nargs="+", choices=CONTENDERS, help="by default all, at other base nets some")
    add("--views", nargs="+", choices=WAYS, default=WAYS, help="ways of seeing test images")
    add("--bases", nargs="+", help=f"base nets: {AUTHORS}, or accuracies at which training is stopped")
    add("--base-epochs", type=int, default=75, help="at most, to reach them")
    add("--upper-epochs", type=int, default=75, help="for the net that is trained on both halves")
    add("--working-memory", type=int, default=2048, help="scikit-learn's, in MiB")
    add("--csv", default="table1.csv", help="file of results, continued if it is there; base nets are kept beside it")
    add("--picture", help="file to draw to")
    options = parser.parse_args(arguments)
    options.bases = options.bases or ([AUTHORS] if options.data == "cifar10" else [*map(str, AUTHORS_TABLE["mnist"])])
    if options.data == "mnist" and AUTHORS in options.bases:
        parser.error(f"--bases {AUTHORS}: the authors' net is for CIFAR-10; name accuracies.")
    if "base" not in (options.contenders or ["base"]):
        options.contenders = ["base", *options.contenders]  # what gains are over
    return options


if __name__ == "__main__":
    main()
