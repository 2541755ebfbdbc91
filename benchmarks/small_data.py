"""ECOptClassifier and ECOptRegressor with their defaults on scikit-learn's small data sets, beside its own MLPs.

    python benchmarks/small_data.py --seeds 20

Inputs are standardised, 30% of the rows are for testing, and every seed has its own split and start. It prints
accuracies, or R² for regression, as means and standard deviations over the seeds, in Markdown.
"""

import argparse
import warnings
from functools import partial

import numpy as np
import torch
from _measure import machine, table
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
    make_friedman1,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradspace import ECOptClassifier, ECOptRegressor
from sklearn_gradspace._net_classifier import NetClassifier
from sklearn_gradspace._net_regressor import NetRegressor
from sklearn_gradspace.modules import MLP

DATA = {  # whether it is regression, and what loads it
    "digits": (False, load_digits),
    "breast cancer": (False, load_breast_cancer),
    "wine": (False, load_wine),
    "iris": (False, load_iris),
    "diabetes": (True, load_diabetes),
    "Friedman": (True, lambda return_X_y: make_friedman1(500, noise=1.0, random_state=0)),
}


def contenders(regression: bool, seed: int) -> dict[str, BaseEstimator]:
    """Return the models of one seed."""
    ecopt = partial(ECOptRegressor if regression else ECOptClassifier, random_state=seed)
    defaults = ecopt()
    sgd = (NetRegressor if regression else NetClassifier)(
        MLP,
        module__hidden_layer_sizes=defaults.hidden_layer_sizes,
        optimizer=torch.optim.SGD,
        optimizer__momentum=defaults.momentum,
        optimizer__weight_decay=defaults.weight_decay,
        lr=defaults.lr,
        max_epochs=defaults.max_epochs,
        random_state=seed,
    )
    peer = (MLPRegressor if regression else MLPClassifier)(random_state=seed)
    if regression:  # targets in units of their own, as ECOptRegressor learns them
        peer = TransformedTargetRegressor(peer, transformer=StandardScaler())
    return {
        "MLP of scikit-learn": peer,
        "EC-Opt, defaults": defaults,
        "SGD with these settings": sgd,
        'method="path"': ecopt(method="path"),
        'optimizer="adam", lr=0.003': ecopt(optimizer="adam", lr=0.003),
    }


def scores(name: str, n_seeds: int) -> dict[str, list[float]]:
    """Return every contender's score on the test rows for each seed."""
    regression, load = DATA[name]
    X, y = load(return_X_y=True)
    found: dict[str, list[float]] = {}
    for seed in range(n_seeds):
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=0.3, stratify=None if regression else y, random_state=seed
        )
        for contender, model in contenders(regression, seed).items():
            fitted = make_pipeline(StandardScaler(), model).fit(X_train, y_train)
            found.setdefault(contender, []).append(fitted.score(X_test, y_test))
    return found


def main(arguments=None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=[*DATA])
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = {name: scores(name, options.seeds) for name in options.data}
    rows = [
        [name, *(f"{np.mean(of_data[name]):.3f} ± {np.std(of_data[name]):.3f}" for of_data in found.values())]
        for name in next(iter(found.values()))
    ]
    print(machine(torch.device("cpu")))
    print(f"{options.seeds} seeds; accuracy, or R² for regression\n")
    print(table(["", *found], rows))


if __name__ == "__main__":
    main()
