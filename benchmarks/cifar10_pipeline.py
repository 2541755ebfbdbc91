"""Time and peak memory of the two-line start with a real net: 2,000 CIFAR-10 images and a CNN of 130,240 weights.

    python benchmarks/cifar10_pipeline.py --data-home DIR

DIR holds ``cifar10.npz`` and the authors' net, ``gradnet_base_cifar10.npz``. The peak is that of the whole process in
fit and score, libraries and images included; Linux counts it.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch
from _cifar10 import authors_net, second_half
from sklearn.pipeline import make_pipeline

from sklearn_gradspace import GradientFeaturizer, GradNetClassifier


def main() -> None:
    """Fit and score, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", required=True)
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    net, data = authors_net(options.data_home), second_half(options.data_home)
    rows = np.random.default_rng(0).permutation(len(data.X))[: options.rows]
    X, y = data.X[rows], data.y[rows]
    X_test, y_test = data.X_test[: options.test_rows].copy(), data.y_test[: options.test_rows]
    del data
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, after the images were read
    pipeline = make_pipeline(
        GradientFeaturizer(net, device=options.device, verbose=1), GradNetClassifier(random_state=0)
    )
    start = time.perf_counter()
    pipeline.fit(X, y)
    fitted = time.perf_counter()
    score = pipeline.score(X_test, y_test)
    scored = time.perf_counter()
    with torch.no_grad():
        base = (net.cpu()(torch.from_numpy(X_test)).argmax(1).numpy() == y_test).mean()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"base net {base:.4f}, pipeline {score:.4f} on {len(y_test)} test rows")
    print(f"fit {fitted - start:.0f} s ({options.rows} rows), score {scored - fitted:.0f} s")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"peak memory {int(status['VmHWM'].split()[0]) / 2**20:.2f} GiB")
    if torch.device(options.device).type == "cuda":
        print(f"peak memory of the device {torch.cuda.max_memory_allocated(options.device) / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
