"""The separators beside their floor: the gradient kernel of 10,000 CIFAR-10 images, and GradNet's predictions for them.

    python benchmarks/separators.py --data-home DIR [--fit-rows 25000] [--device cuda]

DIR holds ``cifar10.npz`` and the authors' net, ``gradnet_base_cifar10.npz``. The kernel is that of ``--directions`` of
the ten logits. Its floor is the operations of inner products and of the gradients' window products at the rate of a
large matrix product, measured in the same run. That of predictions is the operations of all
gradients and hidden units, and writing all features to memory once, at the rates measured. Then both are fitted to
``--fit-rows`` other rows, for which no floor is given: GradNet for an epoch of one label each. The peak is that of the
process beyond what it had before, the kernel matrix included, and next to it without that.
"""

import argparse
import time
from math import prod

import torch
from _cifar10 import authors_net, second_half
from _measure import fill, gemm, machine, peak_memory, seconds, table
from sklearn.pipeline import make_pipeline

from sklearn_gradspace import GradientFeaturizer, GradientKernel, GradientKernelClassifier, GradNetClassifier

_POSITIONS = {"features.0.weight": 22 * 22, "features.3.weight": 11 * 11, "head.weight": 1}


def main() -> None:
    """Measure both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", required=True)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--directions", type=int, default=1, help="combinations of logits in the kernel; 10 is all")
    parser.add_argument("--fit-rows", type=int, default=25000, help="to fit to; 0 leaves that out")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    net, data = authors_net(options.data_home), second_half(options.data_home)
    X = data.X_test[: options.rows].copy()
    train = data.X[:1000].copy(), data.y[:1000]
    others = data.X[: options.fit_rows].copy(), data.y[: options.fit_rows]
    del data
    window_flop = sum(2 * p.numel() * _POSITIONS[name] for name, p in net.named_parameters() if name in _POSITIONS)
    n_params, n = sum(p.numel() for p in net.parameters() if p.ndim > 1), len(X)
    conv_params = n_params - net.head.weight.numel()  # the last layer's inner products are those of its factors

    rows = []
    for products in (None, "bfloat16"):
        rate = _gemm_rate(device)
        kernel = GradientKernel(net, n_directions=options.directions, products=products, device=device, random_state=0)
        kernel.fit(X[:4])
        inner = options.directions * conv_params * float(n) * n  # of a triangle
        floor = inner / rate + n * options.directions * window_flop / rate
        name = f"kernel, {products or 'float32'}"
        rows.append(_row(name, lambda kernel=kernel: kernel.pairwise(X), device, floor, n))

    features = GradientFeaturizer(net, device=device).fit(train[0])
    gradnet = GradNetClassifier((5, 100, 25), max_epochs=1, random_state=0).fit(features.transform(train[0]), train[1])
    hidden_flop = 2 * sum(prod(layer.weight.shape) for layer in gradnet.module_.hidden)
    run, n_bytes = fill(64 * n_params, device)
    write_rate = n_bytes / _warm_seconds(run, device, 20)
    flop = 10 * n * (window_flop + hidden_flop)
    floor = flop / _gemm_rate(device) + 10 * n * n_params * 4 / write_rate
    rows.append(_row("GradNet, ten labels a row", lambda: gradnet.predict(features.transform(X)), device, floor))

    if options.fit_rows:
        kernel = GradientKernelClassifier(
            net, n_directions=options.directions, projection=2**13, products="bfloat16", device=device, random_state=0
        )
        rows.append(_row("kernel classifier, fit", lambda: kernel.fit(*others), device, n_in_matrix=len(others[0])))
        pipeline = make_pipeline(features, gradnet)
        rows.append(_row("GradNet with its features, fit", lambda: pipeline.fit(*others), device))

    print(machine(device))
    print(f"{n} rows, {options.directions} of 10 directions of logits, authors' CNN of {n_params} weights; ", end="")
    print(f"fit: {options.fit_rows} rows\n")
    print(table(["", "seconds", "floor", "reached", "peak GiB", "without the matrix"], rows))


def _row(name: str, run, device: torch.device, floor: float | None = None, n_in_matrix: int = 0) -> list[str]:
    start = time.perf_counter()
    peak = peak_memory(run, device)
    taken = time.perf_counter() - start
    of_floor = ["", ""] if floor is None else [f"{floor:.1f}", f"{floor / taken:.2f}"]
    return [name, f"{taken:.1f}", *of_floor, *(f"{b / 2**30:.2f}" for b in (peak, peak - 4 * n_in_matrix**2))]


def _warm_seconds(run, device: torch.device, repeats: int) -> float:
    run()
    return seconds(run, device, repeats)


def _gemm_rate(device: torch.device) -> float:
    run, flop = gemm(device)
    return flop / _warm_seconds(run, device, 10)


if __name__ == "__main__":
    main()
