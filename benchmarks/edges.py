"""Which score finds the edges that matter: accuracy against the share of edges that is kept, beside controls.

    python benchmarks/edges.py --data-home DIR [--nets mlp cnn] [--seeds 0 1 2] [--scope layer] [--gradnet] [--cost]

DIR holds ``mnist.npz``, ``cifar10.npz`` and the authors' net, ``gradnet_base_cifar10.npz``. Every mask is used in three
ways: the net is pruned; it is pruned and what is left is fine-tuned; the chosen entries of an early-stopped net, and no
others, are trained. "shuffled" masks have as many edges of each layer in random places: they tell what a score owes to
the sizes of layers alone. With ``--gradnet`` GradNet is trained on features of the edges of the early-stopped net.
Results are appended to the CSV, and what is there is not computed again.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _edge_jobs import CONTROLS, JOBS, KEPT, LR, SCORES, accuracy, importances, shuffled
from _measure import Rounds, alternate, machine, peak_memory, ratio, table
from _result_lines import append_line, read_lines

from sklearn_gradspace import (
    EdgeImportance,
    EdgeImportanceDisplay,
    GradientFeaturizer,
    GradNetClassifier,
    finetune,
    prune,
)

SETTINGS = ("pruned", "pruned, fine-tuned", "early, chosen trained")
COLUMNS = ("net", "rows", "test_rows", "epochs", "scope", "seed", "score", "shuffled", "keep", "setting", "accuracy")
GRADNET_SCORES, GRADNET_ROWS = ("sensitivity", *CONTROLS), 500
GRADNET_KEPT = (1.0, 0.5, 0.2, 0.1, 0.05)


def main(arguments=None) -> None:
    """Measure what is missing, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", required=True)
    parser.add_argument("--nets", nargs="+", default=["mlp", "cnn"], choices=list(JOBS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=10000, help="rows to train on")
    parser.add_argument("--score-rows", type=int, default=2000, help="of these, rows of the importances")
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning")
    parser.add_argument("--kept", nargs="+", type=float, default=KEPT)
    parser.add_argument("--scope", default="global", choices=["global", "layer"], help="of masks; see EdgeImportance")
    parser.add_argument("--gradnet", action="store_true", help="GradNet on the chosen edges, 500 rows, ten epochs")
    parser.add_argument("--cost", action="store_true", help="time and memory of a pass beside an epoch of training")
    parser.add_argument("--csv", default="edges.csv")
    parser.add_argument("--picture")
    parser.add_argument("--pictures", help="folder for pictures of the nets")
    options = parser.parse_args(arguments)
    print(machine(torch.device("cpu")))
    for net in options.nets:
        for seed in options.seeds:
            _measure(net, seed, options)
        _print_tables(net, options)
    if options.picture:
        _draw(options)


def _measure(net: str, seed: int, options) -> None:
    done = {key for key, _ in _results(options)}

    def missing(score, is_shuffled, keep, setting):
        return _key(options, net, seed, score, is_shuffled, keep, setting) not in done

    def record(score, is_shuffled, keep, setting, value):
        key = _key(options, net, seed, score, is_shuffled, keep, setting)
        append_line(options.csv, COLUMNS, [*key, f"{value:.4f}"])

    wanted = [(s, c, k, w) for s in SCORES for c in (False, True) for k in options.kept for w in SETTINGS]
    wanted = [w for w in wanted if not (w[0] == "random" and w[1])]
    gradnet = [(s, False, k, "gradnet") for s in GRADNET_SCORES for k in GRADNET_KEPT if options.gradnet]
    gradnet = [w for w in gradnet if w[0] == GRADNET_SCORES[0] or w[2] < 1]  # all edges are the same by all scores
    if not any(missing(*w) for w in wanted + gradnet) and not options.cost and not options.pictures:
        return
    job = JOBS[net](options.data_home, options.rows, options.test_rows, seed)
    if missing("whole", False, 1.0, SETTINGS[0]):
        record("whole", False, 1.0, SETTINGS[0], accuracy(job.net, job))
        record("whole", False, 1.0, SETTINGS[2], accuracy(job.early, job))
        every = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in job.net.named_parameters() if p.ndim > 1}
        for base, setting in ((job.net, SETTINGS[1]), (job.early, "early, all trained")):
            record("whole", False, 1.0, setting, accuracy(_tuned(base, every, job, net, seed, options), job))
    for score in SCORES:
        if any(missing(*w) for w in wanted + gradnet if w[0] == score):
            by_net = {id(n): importances(n, job, score, options.score_rows, seed) for n in (job.net, job.early)}
        for _, is_shuffled, keep, setting in [w for w in wanted + gradnet if w[0] == score and missing(*w)]:
            base = job.net if setting.startswith("pruned") else job.early
            mask = by_net[id(base)].mask(keep, options.scope)
            mask = shuffled(mask, seed) if is_shuffled else mask
            use = partial(_gradnet if setting == "gradnet" else _used, setting=setting)
            record(score, is_shuffled, keep, setting, use(base, mask, job, net, seed, options))
    if options.cost and seed == options.seeds[0]:
        _print_cost(net, job)
        _print_rankings(net, job, options)
    if options.pictures and seed == options.seeds[0]:
        _draw_net(net, job, Path(options.pictures), options)


def _used(base, mask, job, net, seed, options, setting) -> float:
    if setting == SETTINGS[0]:
        return accuracy(prune(base, mask), job)
    return accuracy(
        _tuned(prune(base, mask) if setting == SETTINGS[1] else base, mask, job, net, seed, options),
        job,
    )


def _tuned(base, mask, job, net, seed, options):
    return finetune(base, job.X, job.y, mask, lr=LR[net], max_epochs=options.epochs, random_state=seed)


def _gradnet(base, mask, job, net, seed, options, setting) -> float:
    train, test = (job.X[:GRADNET_ROWS], job.y[:GRADNET_ROWS]), (job.X_test[:GRADNET_ROWS], job.y_test[:GRADNET_ROWS])
    features = GradientFeaturizer(base, edges=mask).fit(train[0])
    gradnet = GradNetClassifier(max_epochs=10, random_state=seed).fit(features.transform(train[0]), train[1])
    return gradnet.score(features.transform(test[0]), test[1])


def _key(options, net, seed, score, is_shuffled, keep, setting) -> tuple[str, ...]:
    sizes = (options.rows, options.test_rows, options.epochs, options.scope)
    return tuple(map(str, (net, *sizes, seed, score, int(is_shuffled), float(keep), setting)))


def _results(options) -> list[tuple[tuple[str, ...], float]]:
    return [(tuple(row[:-1]), float(row[-1])) for row in read_lines(options.csv)]


def _found(options, net, score, is_shuffled, keep, setting) -> np.ndarray:
    results = dict(_results(options))
    keys = [_key(options, net, seed, score, is_shuffled, keep, setting) for seed in options.seeds]
    return np.array([results[key] for key in keys if key in results])


def _cell(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "") if len(values) else ""


def _print_tables(net: str, options) -> None:
    for setting in SETTINGS:
        whole = _cell(_found(options, net, "whole", False, 1.0, setting))
        print(f"\n{net}, {setting}, scope {options.scope}; seeds {options.seeds}; the net with all edges: {whole}")
        if setting == SETTINGS[2]:
            print(f"all weights trained: {_cell(_found(options, net, 'whole', False, 1.0, 'early, all trained'))}")
        rows = [
            [score + (", shuffled" if c else "")]
            + [_cell(_found(options, net, score, c, k, setting)) for k in options.kept]
            for score in SCORES
            for c in (False, True)
            if not (score == "random" and c)
        ]
        print(table(["kept", *(f"{100 * k:g}%" for k in options.kept)], rows))
    if options.gradnet:
        print(f"\n{net}, GradNet on features of the chosen edges of the early-stopped net")
        rows = [
            [s] + [_cell(_found(options, net, s, False, k, "gradnet")) for k in GRADNET_KEPT] for s in GRADNET_SCORES
        ]
        print(table(["kept", *(f"{100 * k:g}%" for k in GRADNET_KEPT)], rows))


def _print_cost(net: str, job) -> None:
    """Print the time of one importance pass over that of one epoch of training, and peaks of memory."""
    device, n, X, y = torch.device("cpu"), len(job.X), job.X, job.y
    passes = {
        f"{score}, {labels} labels": partial(EdgeImportance(job.net, criterion=score, labels=labels).fit, X, y)
        for score, labels in (("sensitivity", "true"), ("fisher", "true"), ("sensitivity", "sampled"))
    }
    epoch = partial(_train_an_epoch, copy.deepcopy(job.net), X, y)
    times = alternate({"epoch": epoch, **passes}, Rounds(40, 5, 25), device, net)
    rows = [[name, f"{ratio(times[name], times['epoch']):.2f}"] for name in passes]
    print(f"\n{net}: time of a pass over {n} rows, as a multiple of an epoch of training by SGD in batches of 64")
    print(table(["", "epochs"], rows))
    first = EdgeImportance(job.net)
    first.fit(X[: n // 4], y[: n // 4])
    peaks = [peak_memory(partial(first.fit, X[:m], y[:m]), device) / 2**20 for m in (n // 4, n)]
    print(f"peak memory beside the data: {peaks[0]:.0f} MiB for {n // 4} rows, {peaks[1]:.0f} MiB for {n} rows")


def _print_rankings(net: str, job, options) -> None:
    """Print how alike rankings of the entries are: from halves of the rows, from other labels, by other scores."""
    X, y = job.X[: options.score_rows], job.y[: options.score_rows]
    fit = {
        s: EdgeImportance(job.net, criterion=s).fit(X, y) for s in ("sensitivity", "gradient", "fisher", "magnitude")
    }
    drawn = EdgeImportance(job.net, labels="sampled", random_state=1).fit(X)
    again = EdgeImportance(job.net, labels="sampled", random_state=2).fit(X)
    rows = [[s, *(f"{v:.3f}" for v in (e.stability_, e.rank_correlation(fit["magnitude"])))] for s, e in fit.items()]
    print(f"\n{net}: rank correlations over {len(X)} rows")
    print(table(["", "of halves of the rows", "with the magnitude"], rows))
    print(f"sensitivity by labels drawn with two seeds: {drawn.rank_correlation(again):.3f}", end=", ")
    print(f"drawn and true: {drawn.rank_correlation(fit['sensitivity']):.3f}")


def _train_an_epoch(net: torch.nn.Module, X: np.ndarray, y: np.ndarray) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    for start in range(0, len(X), 64):
        inputs, labels = torch.from_numpy(X[start : start + 64]), torch.from_numpy(y[start : start + 64])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()


def _draw_net(net: str, job, folder: Path, options) -> None:
    """Draw the net: its graph if it has one, filters, layers, and the score beside the magnitude."""
    found, magnitude = (importances(job.net, job, s, options.score_rows, 0) for s in ("sensitivity", "magnitude"))
    kinds = {"graph": {"n_edges": 200}} if net == "mlp" else {}
    kinds |= {"filters": {}, "layers": {}, "agreement": {"other": magnitude}}
    for kind, arguments in kinds.items():
        display = EdgeImportanceDisplay.from_estimator(found, kind=kind, **arguments)
        display.figure_.savefig(folder / f"edges_{net}_{kind}.png", dpi=100)


def _draw(options) -> None:
    """Draw accuracy against the share of edges, a panel for each net and use; bars are standard deviations."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(options.nets), 3, figsize=(12, 3.6 * len(options.nets)), squeeze=False, layout="constrained", sharex=True
    )
    for (i, j), ax in np.ndenumerate(axes):
        net, setting = options.nets[i], SETTINGS[j]
        for n, score in enumerate(SCORES):
            color = "0.5" if score == "random" else f"C{n}"
            for is_shuffled in (False, True):
                values = [_found(options, net, score, is_shuffled, k, setting) for k in options.kept]
                points = [(100 * k, v.mean(), v.std()) for k, v in zip(options.kept, values) if len(v)]
                if points:
                    style = {"linestyle": ":" if is_shuffled else "-", "marker": None if is_shuffled else "o"}
                    label = f"{score}, shuffled" if is_shuffled else score
                    ax.errorbar(*np.transpose(points), color=color, label=label, ms=3, lw=1.2, **style)
        whole = _found(options, net, "whole", False, 1.0, "early, all trained" if j == 2 else setting)
        if len(whole):
            ax.axhline(whole.mean(), color="k", lw=0.8, ls="--", label="all weights")
        ax.set(xscale="log", title=f"{net}: {setting}")
        ax.set_xticks([100 * k for k in options.kept], [f"{100 * k:g}%" for k in options.kept], minor=False)
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("test accuracy")
    axes[-1, 1].set_xlabel("edges kept")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(options.picture, dpi=100)


if __name__ == "__main__":
    main()
