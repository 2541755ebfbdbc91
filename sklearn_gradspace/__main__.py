"""The main job, ``python -m sklearn_gradspace``.

It trains a base net on one half of real data, stops it early, fits GradNet on its gradients and the controls to the
other half, and prints how they do on held-out rows.
"""

import argparse
import importlib
import os
import pickle
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from joblib import cpu_count
from torch import nn

from ._featurizer import GradientFeaturizer
from ._main_job._comparison import Job, compare
from ._main_job._data import InputError, load
from ._main_job._report import describe, save, table
from .modules import MLP, GradNetCNN


def main(arguments: list[str] | None = None) -> int:
    """Run the main job; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        job = _job(options)
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out {options.out}: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    results = compare(job, options.seeds, _jobs(options), progress=not options.quiet)
    print(f"\n{options.data}: {describe(job)}\n\n{table(results)}\n")
    files = save(results, out)
    print(f"{time.perf_counter() - start:.0f} s. Saved {', '.join(map(str, files))}")
    if not any(file.suffix == ".png" for file in files):
        print("The picture needs matplotlib: pip install 'sklearn-gradspace[plots]'")
    print(f"The fitted pipeline, for samples as the base net takes them: joblib.load({str(out / 'pipeline.joblib')!r})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sklearn_gradspace",
        description="Train a base net on one half of real data and stop it early; fit GradNet on its gradients, and "
        "the controls, to the other half, each at its best setting by validation; print accuracies on test rows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        default="digits",
        metavar="NAME",
        help="digits (comes with scikit-learn), mnist, cifar10, or a FILE.npz that holds X and y, or X_train, y_train, "
        "X_test and y_test; samples are taken as they are, bytes divided by 255",
    )
    add(
        "--data-home",
        default=os.environ.get("SKLEARN_GRADSPACE_DATA"),
        metavar="DIR",
        help="folder with mnist.npz and "
        "cifar10.npz; without them OpenML's copies are fetched and kept there (environment: SKLEARN_GRADSPACE_DATA)",
    )
    add(
        "--net",
        metavar="MODULE:FACTORY",
        help="function without arguments that returns a base net of one's own; it is "
        "trained here unless --weights are given",
    )
    add(
        "--weights",
        metavar="FILE",
        help="weights of a trained base net (.safetensors); it is not trained here, and all "
        "training rows, which it should not have seen, are for GradNet and the controls",
    )
    add("--base-epochs", type=positive, default=4, metavar="N", help="epochs after which the base net is stopped")
    add(
        "--samples",
        type=not_negative,
        default=4000,
        metavar="N",
        help="at most so many training and test rows; 0 takes all",
    )
    add("--seeds", type=positive, default=4, metavar="N", help="number of seeds")
    add("--device", help="where to compute, such as cpu or cuda")
    add(
        "--jobs",
        type=positive,
        default=None,
        metavar="N",
        help="fits at a time; by default a CPU core each, one on cuda",
    )
    add("--out", default="gradspace-results", metavar="DIR", help="folder for the table, its picture and the pipeline")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _jobs(options: argparse.Namespace) -> int:
    on_cpu = options.device in (None, "cpu")
    return options.jobs or (cpu_count() if on_cpu else 1)


def not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is a negative number")
    return number


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _job(options: argparse.Namespace) -> Job:
    """Return the job that the options describe, after trying it out on a few rows."""
    data = load(options.data, options.data_home)
    n_classes = len(np.unique(data.y))
    if options.net:
        make_net = _factory(options.net)
    elif options.data == "cifar10":
        make_net = partial(GradNetCNN, data.X.shape[1:], n_classes)
    else:
        make_net = partial(MLP, data.X[0].size, n_classes)
    try:
        net = make_net()
    except Exception as error:  # whatever a user's factory may raise
        raise InputError(f"--net {options.net}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"--net {options.net}: it returned {type(net).__name__}, not a torch Module.")
    try:
        pickle.dumps(net)
    except Exception as error:  # whatever a user's module may hold
        raise InputError(f"--net {options.net}: the net cannot be pickled, which workers need: {error}") from error
    if options.weights:
        _load_weights(net, options.weights)
    try:
        n_outputs = GradientFeaturizer(net, scale=None, device=options.device).fit(data.X[:8]).n_labels_
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error
    try:
        data.split(0, options.samples, base_half=not options.weights)
    except ValueError as error:
        raise InputError(f"{options.data}: too few rows to split by class; see --samples ({error})") from error
    if n_outputs != n_classes:
        raise InputError(f"the base net has {n_outputs} outputs, but {options.data} has {n_classes} classes.")
    return Job(
        data,
        make_net=(lambda: net) if options.weights else make_net,
        trained=bool(options.weights),
        base_epochs=options.base_epochs,
        samples=options.samples,
        device=options.device,
    )


def _factory(name: str):
    module_name, colon, factory_name = name.partition(":")
    if not colon:
        raise InputError(f"--net {name}: it must be MODULE:FACTORY, such as mynets.vision:make_net.")
    sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"--net {name}: {error}.") from error
    return factory


def _load_weights(net: nn.Module, name: str) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError("--weights needs safetensors: pip install 'sklearn-gradspace[weights]'.") from error
    if not Path(name).is_file():
        raise InputError(f"{name}: there is no such file.")
    try:
        net.load_state_dict(load_file(name))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"--weights {name}: they do not fit the net. {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    sys.exit(main())
