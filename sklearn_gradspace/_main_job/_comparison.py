"""The comparison: every contender, at its best setting by validation, over several seeds.

Data and a base net enter; a `Result` for each contender and seed leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from torch import nn
from tqdm.auto import tqdm

from .._net_classifier import NetClassifier
from ..gradients import shared_copy
from ._contenders import BASE, CONTENDERS, contender
from ._data import Data, Split


@dataclass(frozen=True)
class Result:
    """What one contender reached for one seed.

    Parameters
    ----------
    contender : str
    seed : int
    accuracy : float
        On the test rows.
    setting : dict
        The setting that validation chose.
    fitted : estimator, optional
        The estimator at that setting.
    """

    contender: str
    seed: int
    accuracy: float
    setting: dict
    fitted: BaseEstimator | None = None


@dataclass(frozen=True)
class Job:
    """What is compared, and how.

    Parameters
    ----------
    data : Data
    make_net : callable
        Returns a base net.
    trained : bool
        Whether `make_net` returns a trained net; all training rows are then for the contenders.
    base_epochs : int
        Epochs after which training of the base net is stopped.
    samples : int
        At most so many training and test rows; 0 takes all.
    device : str, optional
        Where to compute.
    """

    data: Data
    make_net: Callable[[], nn.Module]
    trained: bool = False
    base_epochs: int = 4
    samples: int = 0
    device: str | None = None

    def prepare(self, seed: int) -> tuple[nn.Module, Split]:
        """Return the base net and the rows of one seed."""
        split = self.data.split(seed, self.samples, base_half=not self.trained)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net = self.make_net()
        if not self.trained:
            trainer = NetClassifier(
                net, lr=2e-3, max_epochs=self.base_epochs, device=self.device or "cpu", random_state=seed
            )
            net = trainer.fit(*split.base).module_
        return net, split


def compare(job: Job, seeds: int, n_jobs: int | None, progress: bool = True) -> list[Result]:
    """Return the results of the base net and all contenders for `seeds` seeds."""
    prepared = [job.prepare(seed) for seed in range(seeds)]
    results = [
        Result(BASE, seed, _accuracy(net, *split.test, classes=np.unique(job.data.y)), {})
        for seed, (net, split) in enumerate(prepared)
    ]
    # The longest first, so that no worker is left alone with it.
    tasks = [(name, seed) for name in CONTENDERS for seed in range(seeds)]
    run = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    fits = run(delayed(_fit)(name, seed, *prepared[seed], job.device) for name, seed in tasks)
    results.extend(tqdm(fits, total=len(tasks), desc="fitting contenders", unit="fit", disable=not progress))
    return results


@torch.no_grad()
def _accuracy(net: nn.Module, X: np.ndarray, y: np.ndarray, classes: np.ndarray) -> float:
    net, like = shared_copy(net), next(net.parameters())
    parts = [
        net(torch.tensor(part, dtype=like.dtype, device=like.device)) for part in np.split(X, range(1024, len(X), 1024))
    ]
    return float((classes[torch.cat(parts).argmax(1).cpu().numpy()] == y).mean())


def _fit(name: str, seed: int, net: nn.Module, split: Split, device: str | None) -> Result:
    estimator, settings = contender(name, net, seed, device)
    validation = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed)
    search = GridSearchCV(estimator, settings, cv=validation, error_score="raise").fit(*split.train)
    return Result(name, seed, search.score(*split.test), search.best_params_, search.best_estimator_)
