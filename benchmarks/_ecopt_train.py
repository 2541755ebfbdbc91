"""One training: a net, its start and a contender in, accuracies out."""

import time
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from _ecopt_contenders import SPACES
from _ecopt_data import Part, batches, load
from _ecopt_nets import STARTS, make_net
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

_TRAINED = "trained"  # a start: default, trained by SGD on other rows, and then as the rest of its name says
_TRAINED_RATE = 0.1
_FOUND = ("validation", "test", "loss", "seconds", "machine")
_LOOK_EVERY = 100  # steps after which a loss that is not finite ends training


@dataclass(frozen=True)
class Run:
    """What was asked for, and what it reached."""

    data: str
    net: str
    start: str
    inner: str
    space: str
    lr: float
    penalty: float
    seed: int
    rows: int
    side: int
    batch: int
    steps: int
    validation: float = 0.0
    test: float = 0.0
    loss: float = 0.0
    seconds: float = 0.0
    machine: str = ""
    test_rows: int = 10000
    augment: int = 0
    milestones: str = ""  # parts of all steps after which the rate is divided by 10

    @property
    def key(self) -> tuple:
        """What was asked for."""
        return tuple(value for name, value in vars(self).items() if name not in _FOUND)


@dataclass(frozen=True)
class Place:
    """Where the data are, and where nets are trained."""

    data_home: str
    device: str


def train(run: Run, place: Place) -> Run:
    """Return `run` with what it reached."""
    if place.device == "cpu":
        torch.set_num_threads(1)
    parts = _parts(run, place)
    start = time.perf_counter()
    net = _started(run, place)
    ones = torch.ones_like(parts["train"].X[:1])
    optimizer = SPACES[run.space](net, ones, run.inner, run.lr, run.penalty)
    loss = descend(net, optimizer, parts["train"], run)
    seconds = time.perf_counter() - start
    validation, test = (accuracy(net, parts[name]) for name in ("validation", "test"))
    return replace(run, validation=validation, test=test, loss=loss, seconds=round(seconds, 2))


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, part: Part, run: Run) -> float:
    """Train, and return the mean loss of the last steps."""
    generator = torch.Generator().manual_seed(run.seed)
    torch.manual_seed(run.seed)
    schedule = MultiStepLR(optimizer, [round(float(at) * run.steps) for at in run.milestones.split()])
    total, net = torch.zeros((), device=part.y.device), net.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the step is refused")
        for step, (X, y) in enumerate(batches(part, run.batch, run.steps, bool(run.augment), generator), 1):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(X), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            if step % _LOOK_EVERY == 0 and step < run.steps:
                if not total.isfinite():
                    break
                total.zero_()
    return float(total) / (step % _LOOK_EVERY or _LOOK_EVERY)


def _started(run: Run, place: Place) -> nn.Module:
    if not run.start.startswith(_TRAINED):
        return _new(run, place)
    net = _new(replace(run, start="default"), place)
    net.load_state_dict(_trained(replace(run, start="default", inner="SGD", space="weights", lr=_TRAINED_RATE), place))
    STARTS[run.start.removeprefix(_TRAINED).strip(", ") or "default"](net, run.seed)
    return net


def _parts(run: Run, place: Place) -> dict[str, Part]:
    return load(run.data, place.data_home, run.rows, run.test_rows, run.side, place.device)


def _new(run: Run, place: Place) -> nn.Module:
    torch.manual_seed(run.seed)
    shape = _parts(run, place)["train"].X.shape[1:]
    net = make_net(run.net, shape)
    STARTS[run.start](net, run.seed)
    return net.to(place.device)


@lru_cache(maxsize=8)
def _trained(run: Run, place: Place) -> dict[str, torch.Tensor]:
    parts = _parts(run, place)
    net = _new(run, place)
    descend(net, torch.optim.SGD(net.parameters(), lr=run.lr), parts["before"], replace(run, seed=-1 - run.seed))
    return net.state_dict()


@torch.no_grad()
def accuracy(net: nn.Module, part: Part, at_a_time: int = 2000) -> float:
    """Return the part of labels that the net gets right."""
    net.eval()
    right = sum(
        (net(X).argmax(1) == y).sum() for X, y in zip(part.X.split(at_a_time), part.y.split(at_a_time), strict=True)
    )
    return round(int(right) / len(part.y), 6)
