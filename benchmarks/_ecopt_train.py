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

    @property
    def key(self) -> tuple:
        """What was asked for."""
        return (
            self.data, self.net, self.start, self.inner, self.space, self.lr, self.penalty, self.seed, self.rows,
            self.side, self.batch, self.steps,
        )  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How all nets are trained."""

    data_home: str
    test_rows: int
    device: str
    augment: bool
    milestones: tuple[float, ...]  # parts of all steps after which the rate is divided by 10


def train(run: Run, way: Way) -> Run:
    """Return `run` with what it reached."""
    if way.device == "cpu":
        torch.set_num_threads(1)
    parts = load(run.data, way.data_home, run.rows, way.test_rows, run.side, way.device)
    start = time.perf_counter()
    net = _started(run, way)
    ones = torch.ones_like(parts["train"].X[:1])
    optimizer = SPACES[run.space](net, ones, run.inner, run.lr, run.penalty)
    loss = descend(net, optimizer, parts["train"], run, way)
    seconds = time.perf_counter() - start
    validation, test = (accuracy(net, parts[name]) for name in ("validation", "test"))
    return replace(run, validation=validation, test=test, loss=loss, seconds=round(seconds, 2))


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, part: Part, run: Run, way: Way) -> float:
    """Train, and return the mean loss of the last steps."""
    generator = torch.Generator().manual_seed(run.seed)
    torch.manual_seed(run.seed)
    schedule = MultiStepLR(optimizer, [round(at * run.steps) for at in way.milestones])
    total, net = torch.zeros((), device=part.y.device), net.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the step is refused")
        for step, (X, y) in enumerate(batches(part, run.batch, run.steps, way.augment, generator), 1):
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


def _started(run: Run, way: Way) -> nn.Module:
    if not run.start.startswith(_TRAINED):
        return _new(run, way)
    net = _new(replace(run, start="default"), way)
    net.load_state_dict(_trained(replace(run, start="default", inner="SGD", space="weights", lr=_TRAINED_RATE), way))
    STARTS[run.start.removeprefix(_TRAINED).strip(", ") or "default"](net, run.seed)
    return net


def _new(run: Run, way: Way) -> nn.Module:
    torch.manual_seed(run.seed)
    shape = load(run.data, way.data_home, run.rows, way.test_rows, run.side, way.device)["train"].X.shape[1:]
    net = make_net(run.net, shape)
    STARTS[run.start](net, run.seed)
    return net.to(way.device)


@lru_cache(maxsize=8)
def _trained(run: Run, way: Way) -> dict[str, torch.Tensor]:
    parts = load(run.data, way.data_home, run.rows, way.test_rows, run.side, way.device)
    net = _new(run, way)
    descend(net, torch.optim.SGD(net.parameters(), lr=run.lr), parts["before"], replace(run, seed=-1 - run.seed), way)
    return net.state_dict()


@torch.no_grad()
def accuracy(net: nn.Module, part: Part, at_a_time: int = 2000) -> float:
    """Return the part of labels that the net gets right."""
    net.eval()
    right = sum(
        (net(X).argmax(1) == y).sum() for X, y in zip(part.X.split(at_a_time), part.y.split(at_a_time), strict=True)
    )
    return round(int(right) / len(part.y), 6)
