"""Training in equivalent-class space beside its controls, each at its best learning rate.

    python benchmarks/ecopt.py EXPERIMENT --data-home DIR [--device cuda] [--picture FILE]
    python benchmarks/ecopt.py residual --data-home DIR --device cuda --nets cifar10:plain34x64 cifar10:resnet34x64
        --side 0 --rows 0 --batch 128 --steps 64000 --milestones 0.5 0.75 --augment --inner SGD --rates 0.1 0.32 1

DIR holds ``mnist.npz`` and ``cifar10.npz``. Each experiment is a set of nets and starts; every option can be changed.
Steps are made in the weights, in the weights after the net was balanced once, in the balanced representative, on basis
paths, or by Path-SGD; all contenders of a line of a table have the same start, and in each of them SGD, SGD with
momentum and Adam are at work. A learning rate is chosen by the mean accuracy on 5,000 rows held out, over seeds; * says
that it is the first or last of its grid. The mean over the grid tells how tolerant a contender is of the rate. Each
training is written to the CSV file at once, and what is there is not computed again. To see that everything runs::

    python benchmarks/ecopt.py widths --data-home DIR --nets mnist:1x8 --rows 500 --steps 20 --seeds 0
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from _ecopt_contenders import INNER, SPACES, rates
from _ecopt_data import load
from _ecopt_nets import make_net
from _ecopt_report import Results, append, draw, print_accuracies, print_areas, print_gains, read
from _ecopt_train import Place, Run, train
from _measure import machine
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from sklearn_gradspace.pathspace import scale_graph

_OF_WEIGHTS = ["weights", "balanced once", "balanced", "path"]
_DEEP = {"starts": ["He", "skeleton", "identity"], "inner": ["momentum"], "spaces": _OF_WEIGHTS}
EXPERIMENTS = {
    "widths": {"nets": ["mnist:2x8", "mnist:2x32", "mnist:2x128", "mnist:4x64", "cifar10:3x48"]},
    "deep": _DEEP | {"nets": ["mnist:8x32", "mnist:34x32"], "rates": [0.00032, 0.001, 0.0032, 0.01, 0.032]},
    "convolutions": _DEEP | {"nets": ["mnist:conv8x12"], "rates": [0.0032, 0.01, 0.032, 0.1], "side": 14},
    "unbalanced": {"nets": ["mnist:2x32"], "starts": ["unbalanced 1", "unbalanced 2"], "lower": 4},
    "finetuning": {"nets": ["mnist:2x32"], "starts": ["trained", "trained, unbalanced 2"], "lower": 4},
    "residual": {
        "nets": ["cifar10:plain10x8", "cifar10:resnet10x8"],
        "starts": ["default", "skeleton"],
        "inner": ["SGD"],
        "spaces": ["weights", "path"],
        "rates": [0.1, 0.32, 1.0, 3.2],
        "side": 16,
        "steps": 300,
    },
    "penalties": {
        "nets": ["mnist:2x128"],
        "inner": ["momentum"],
        "spaces": _OF_WEIGHTS,
        "rates": [0.01, 0.032, 0.1],
        "penalties": [0.0, 1e-4, 1e-3, 1e-2],
        "rows": 1000,
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and report."""
    options = _options(arguments)
    path = Path(options.csv or f"ecopt_{options.experiment}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Place(options.data_home, options.device)
    asked, found = list(_asked(options)), read(path)
    missing = [run for run in asked if run.key not in found]
    runs = Parallel(options.jobs, return_as="generator_unordered")(delayed(train)(run, place) for run in missing)
    for run in tqdm(runs, unit="training", total=len(missing)):
        append(path, run)
        found[run.key] = run
    results = Results([found[run.key] for run in asked])
    print_accuracies(results)
    print_gains(results, {net: _invariant_ratio(options, *net) for net in results.nets()})
    print_areas(results)
    if options.picture:
        draw(results, Path(options.picture))


def _asked(options: argparse.Namespace):
    """Yield all trainings, still without results."""
    line = machine(torch.device(options.device))
    cases = product(options.nets, options.starts, options.inner, options.spaces, options.seeds)
    for net, start, inner, space, seed in cases:
        grid = rates(space, inner, options.lower)
        if options.rates and grid:
            grid = options.rates
        for lr, penalty in product(grid, options.penalties):
            yield Run(
                *net.split(":"), start, inner, space, lr, penalty, seed, options.rows, options.side, options.batch,
                options.steps, machine=line, test_rows=options.test_rows, augment=int(options.augment),
                milestones=" ".join(map(str, options.milestones)),
            )  # fmt: skip


def _invariant_ratio(options: argparse.Namespace, data: str, net: str) -> float:
    parts = load(data, options.data_home, options.rows, options.test_rows, options.side, options.device)
    return scale_graph(make_net(net, parts["train"].X.shape[1:])).invariant_ratio


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("experiment", choices=EXPERIMENTS)
    add("--data-home", required=True, help="folder with the data")
    add("--device", default="cpu", help="cpu or cuda")
    add("--nets", nargs="+", help="such as mnist:2x32 or cifar10:plain34x64: layers and width")
    add(
        "--starts",
        nargs="+",
        default=["default"],
        help="default, He, skeleton, identity, unbalanced 1; 'trained, unbalanced 1'",
    )
    add("--inner", nargs="+", choices=INNER, default=list(INNER), help="optimizers that make the steps")
    add("--spaces", nargs="+", choices=SPACES, default=list(SPACES), help="where they are made")
    add("--rates", type=float, nargs="+", help="instead of each contender's own grid")
    add("--lower", type=int, default=0, help="number of rates below that")
    add("--penalties", type=float, nargs="+", default=[0.0], help="weight decay, or of the basis-path norm")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", type=int, default=10000, help="at most so many training rows; 0 takes all")
    add("--test-rows", type=int, default=10000)
    add("--side", type=int, default=0, help="side to which images are averaged down; 0 leaves them")
    add("--batch", type=int, default=64)
    add("--steps", type=int, default=312)
    add("--milestones", type=float, nargs="*", default=[], help="parts of all steps after which the rate is a tenth")
    add("--augment", action="store_true", help="shift and mirror training images")
    add("--jobs", type=int, default=2, help="trainings at a time, on a CPU with one thread each")
    add("--csv", help="file of results, continued if it is there; by default ecopt_EXPERIMENT.csv")
    add("--picture", help="file to draw to")
    parser.set_defaults(**EXPERIMENTS[parser.parse_args(arguments).experiment])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
