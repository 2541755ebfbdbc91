"""Variants of the gradient kernel on the authors' CNN: parameters, directions of the logits, degrees, normalisation.

    python benchmarks/kernel_variants.py --data-home DIR [--rows 5000] [--test-rows 5000] [--device cuda] [--csv FILE]

DIR holds ``cifar10.npz`` and the authors' net, ``gradnet_base_cifar10.npz``. Every variant is fitted to the same rows
of the half that the net has not seen, in the centre; leave-one-out chooses the penalty.
"""

import argparse
import time

import numpy as np
import torch
from _measure import machine, table
from _result_lines import append_line
from _table1_bases import authors_base
from _table1_images import load_images

from sklearn_gradspace import GradientKernelClassifier

_ALPHAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_LAST, _ALL = {"layers": "*head.weight"}, {"normalize": "layer", "projection": 2**13}
VARIANTS = {
    **{f"last layer, degree {d}": _LAST | {"n_directions": 1, "degree": d} for d in (1, 2, 3, 4)},
    **{f"all layers, degree {d}": _ALL | {"n_directions": 1, "degree": d} for d in (1, 2, 3, 4)},
    **{f"all layers, {n} directions": _ALL | {"n_directions": n} for n in (2, 4)},
    "all layers, 10 directions": _ALL | {"n_directions": 10, "projection": 2**12},
    "all layers, normalised as one": _ALL | {"n_directions": 1, "normalize": True},
    "all but the first": _ALL | {"n_directions": 1, "layers": ["*features.3.weight", "*head.weight"]},
}


def main() -> None:
    """Fit all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", required=True)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--test-rows", type=int, default=5000)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", help="file to append to")
    options = parser.parse_args()
    images = load_images("cifar10", options.data_home)
    net = authors_base(images, options.data_home).to(options.device)
    n_others = len(images.X) - images.half
    rows = images.half + np.random.default_rng(0).permutation(n_others)[: options.rows]
    X_test, y_test = images.X_test[: options.test_rows], images.y_test[: options.test_rows]
    lines = []
    for name in options.variants:
        setting = VARIANTS[name]
        kernel = GradientKernelClassifier(
            net, alphas=_ALPHAS, products="bfloat16", device=options.device, random_state=0, **setting
        )
        start = time.perf_counter()
        kernel.fit(images.X[rows], images.y[rows])
        seconds = time.perf_counter() - start
        accuracy = kernel.score(X_test, y_test)
        lines.append((name, f"{kernel.loo_score_:.4f}", f"{accuracy:.4f}", f"{kernel.alpha_:g}", f"{seconds:.0f}"))
        if options.csv:
            columns = ("variant", "rows", "test_rows", "leave_one_out", "test", "alpha", "seconds")
            append_line(options.csv, columns, (name, options.rows, options.test_rows, *lines[-1][1:]))
    print(machine(torch.device(options.device)))
    print(table(["", "leave-one-out", "test", "alpha", "s"], lines))


if __name__ == "__main__":
    main()
