"""Bars show passes over data where they are asked for, and nothing shows else."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from torch import nn

from sklearn_gradspace import EdgeImportance, GradientFeaturizer, GradientKernel, GradientKernelClassifier, finetune

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
NET = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
ESTIMATORS = [
    (GradientFeaturizer(NET, output="dense"), ["statistics", "gradients"]),
    (GradientFeaturizer(NET, output="csr", scale="kronecker"), ["statistics", "gradients"]),
    (GradientFeaturizer(NET, output="memmap", n_jobs=2, batch_size=20), ["statistics", "gradients"]),
    (GradientKernel(NET), ["kernel"]),
    (GradientKernel(NET, n_components=20), ["kernel"]),
    (GradientKernelClassifier(NET), ["kernel"]),
    (EdgeImportance(NET), ["importance"]),
    (EdgeImportance(NET, criterion="survival"), ["importance"]),
]


@pytest.mark.parametrize("estimator, passes", ESTIMATORS, ids=[type(e).__name__ for e, _ in ESTIMATORS])
@pytest.mark.parametrize("verbose", [0, 1])
def test_bars(estimator, passes, verbose, capfd, tmp_path):
    estimator = clone(estimator).set_params(verbose=verbose)
    if isinstance(estimator, GradientFeaturizer) and estimator.output == "memmap":
        estimator.set_params(output_dir=tmp_path)
    estimator.fit(X, y)
    for method in ("transform", "predict"):
        if hasattr(estimator, method):
            getattr(estimator, method)(X)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert all(f"{what}: 100%" in shown.err for what in passes) if verbose else shown.err == ""


@pytest.mark.parametrize("verbose", [0, 1])
def test_fine_tuning_prints_its_epochs(verbose, capfd):
    finetune(NET, X, y, {"0.weight": torch.ones(5, 4, dtype=torch.bool)}, max_epochs=1, verbose=verbose)
    assert ("train_loss" in capfd.readouterr().out) == bool(verbose)


@pytest.mark.skipif(not Path("docs/scaling.rst").is_file(), reason="no documentation beside the package")
def test_the_examples_of_the_guide_to_growing():
    assert doctest.testfile(str(Path("docs/scaling.rst").absolute()), module_relative=False).failed == 0
