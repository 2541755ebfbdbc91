"""Where memory runs out passes take fewer rows, with the same numbers; and how much they take is known before."""

import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from asserts import assert_close
from cases import BY_NAME
from torch import nn

from sklearn_gradspace.gradients import GradientArray, GradientEngine, GradientFeatures, _engine, _memory, _scratch

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "numpy": MemoryError("Unable to allocate 2.00 GiB for an array"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
N = 10


def limited(monkeypatch, step, most, error):
    """Let `step` of an engine fail with more than `most` rows, and return the numbers of rows that are tried."""
    where, name = (_engine, "write_gradients") if step == "write" else (GradientEngine, step)
    seen, original = [], getattr(where, name)

    def wrapper(*args):
        n = len(args[0].inputs if step == "write" else args[1])
        seen.append(n)
        if n > most:
            raise error
        return original(*args)

    monkeypatch.setattr(where, name, wrapper)
    monkeypatch.setattr(_memory.gc, "collect", lambda: 0)  # which takes a while
    return seen


def make(name, device):
    case = BY_NAME[name]
    engine = case.engine(device)
    X = np.concatenate([case.X, case.X + 0.1])
    return engine, X, engine(X)


pytestmark = pytest.mark.filterwarnings("ignore:memory ran out")
CUDA = ERRORS["cuda"]
STEPS = [("mlp of two layers", "forward", error) for error in ERRORS.values()]
STEPS += [(name, step, CUDA) for name in ("conv2d twice", "transformer") for step in ("forward", "write")]


@pytest.mark.parametrize("name, step, error", STEPS, ids=[*ERRORS, *(f"{name}, {step}" for name, step, _ in STEPS[4:])])
def test_numbers_stay_the_same(name, step, error, device, monkeypatch):
    engine, X, expected = make(name, device)
    limited(monkeypatch, step, 2, error)
    assert_close(engine(X), expected, 1e-13)
    out = engine.allocate(N, all_labels=False)
    labels = torch.arange(N) % engine.n_labels
    assert_close(engine(X, labels, out), expected[torch.arange(N), labels], 1e-13)
    rows = [(part, found.clone()) for part, found in engine.parts(X)]
    assert [i for part, _ in rows for i in range(part.start, part.stop)] == list(range(N))
    assert_close(torch.cat([found for _, found in rows]), expected, 1e-13)


@pytest.mark.parametrize("most, batch_size, expected", [
    (2, None, [10, 5, 2, 2, 2, 2, 2]), (5, None, [10, 5, 5]), (1, 4, [4, 2, *[1] * 10]), (3, 4, [4, *[2] * 5]),
    (4, 4, [4, 4, 2]), (10, None, [10]),
])  # fmt: skip
def test_fewer_rows_are_taken_from_there_on(most, batch_size, expected, device, monkeypatch):
    engine, X, _ = make("mlp of two layers", device)
    seen = limited(monkeypatch, "forward", most, CUDA)
    list(engine.parts(X, batch_size=batch_size))
    assert seen == expected


def test_a_warning_says_so(device, monkeypatch):
    engine, X, _ = make("mlp of two layers", device)
    limited(monkeypatch, "forward", 5, CUDA)
    with pytest.warns(RuntimeWarning, match=rf"memory ran out on {device} with 10 rows at a time: 5 are taken"):
        engine(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(X)


def test_what_was_computed_is_not_computed_again(device, monkeypatch):
    engine, X, expected = make("mlp of two layers", device)
    monkeypatch.setitem(_engine._PART_BYTES, device.type, 3 * engine.n_labels * engine._gradient_bytes)
    write, n_written = _engine.write_gradients, []

    def fails_once(forward, rules, out):
        n_written.append(len(forward.inputs))
        if len(n_written) == 3:
            raise CUDA
        write(forward, rules, out)

    monkeypatch.setattr(_engine, "write_gradients", fails_once)
    assert_close(engine(X), expected, 1e-13)
    assert n_written == [3, 3, 3, 3, 1]


@every_error
@pytest.mark.parametrize("step", ["forward", "write"])
def test_a_row_that_does_not_fit_is_refused_with_what_it_takes(step, error, device, monkeypatch):
    engine, X, _ = make("mlp of two layers", device)
    seen = limited(monkeypatch, step, 0, error)
    free = r"\d+\.\d\d GiB are free, enough for about \d+ parameters, or for fewer rows at a time\."
    taken = rf"\d+\.\d\d GiB on {device}, for 53 parameters and 3 labels; {free}"
    message = rf"a pass of a single row takes {taken}.*`layers`: the largest, '0.weight', has 30 entries"
    for labels in (None, torch.zeros(N, dtype=torch.long)):
        with pytest.raises(MemoryError, match=message) as caught:
            for _ in engine.parts(X, labels):
                pass
        assert caught.value.__cause__ is error
    assert seen == [10, 5, 2, 1, 1]  # what did not fit is not tried again


def test_a_trial_without_memory_for_scratch_says_what_to_do(device, monkeypatch):
    monkeypatch.setattr(_scratch, "empty", lambda *args: np.empty(2**60, np.uint8))  # NumPy's own error
    with pytest.raises(MemoryError, match=r"to look at a few rows .* Choose parameters by `layers`"):
        make("conv2d twice", device)


def test_gradients_that_do_not_fit_are_refused_with_what_they_take(device):
    engine, _, _ = make("mlp of two layers", device)
    with pytest.raises(MemoryError, match=rf"the gradients of {2**45} rows take \d+\.\d\d GiB.*fewer rows at a time"):
        engine.allocate(2**45, all_labels=True)


def test_other_errors_are_not_taken_for_want_of_memory(device, monkeypatch):
    engine, X, _ = make("mlp of two layers", device)
    seen = limited(monkeypatch, "forward", 2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        engine(X)
    assert seen == [N]


def test_features_do_not_depend_on_memory(device, monkeypatch):
    engine, X, _ = make("conv2d twice", device)
    array = GradientArray(GradientFeatures(engine, 15, power=0.5, batch_size=8), X)
    expected = array.toarray()
    limited(monkeypatch, "forward", 2, ERRORS["cpu"])
    assert_close(array.toarray(), expected, 1e-7)


@pytest.mark.parametrize("name", ["mlp of two layers", "conv2d twice", "transformer", "lstm", "embedding"])
def test_memory_is_that_of_the_parts(name, device):
    engine = BY_NAME[name].engine(device)
    gradients = -(-engine.n_params // 16) * 16 * 8  # rows begin with a line of the cache
    assert engine.memory(0) == engine.memory(0, all_labels=False) >= engine.n_params * 8
    for n in (1, 7):
        assert engine.memory(n) >= engine.memory(n, all_labels=False) >= engine.memory(0) + n * gradients
        assert engine.memory(n) - engine.memory(n, features=0) == n * engine.n_labels * gradients
        assert engine.memory(n) - engine.memory(0) == n * (engine.memory(1) - engine.memory(0))
    features = GradientFeatures(engine)
    for budget in (0, features.memory(1), features.memory(3), features.memory(100) + 1):
        rows = features.affordable_rows(budget)
        assert rows == 1 or features.memory(rows) <= budget
        assert features.memory(rows + 1) > budget


def run(program):
    """Run a program in another process, where memory can be measured and limited."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    job = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert job.returncode == 0, job.stderr
    return job.stdout


LIMITED = """
import resource
import numpy as np, torch
from torch import nn
from sklearn_gradspace.gradients import GradientEngine

torch.set_num_threads(1)
torch.manual_seed(0)
wide = nn.Sequential(nn.Linear(1, 4096), *[nn.Tanh() for _ in range(8)])
net = nn.Sequential(wide, nn.Unflatten(1, (8, 512)), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))
X = np.linspace(-1, 1, 2048)[:, None]
engine = GradientEngine(net, X, ["0.0.bias", "4.*"])
expected = torch.cat([engine(X[i : i + 128]) for i in range(0, len(X), 128)])
sizes, forward = [], engine.forward
engine.forward = lambda X, labels: (sizes.append(len(X)), forward(X, labels))[1]
in_use = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, resource.RLIM_INFINITY))
found = engine(X, batch_size=len(X))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
print(*sizes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_really_runs_out():
    sizes = [int(size) for size in run(LIMITED).split()]
    assert sizes[0] == 2048 and min(sizes) < 2048
    assert sizes == sorted(sizes, reverse=True)


FAULTS = """
import resource
import numpy as np, torch
from torch import nn
from sklearn_gradspace.gradients import GradientEngine

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
X = np.ones((50, 1, 28, 28), np.float32)
net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5408, 2))
engine = GradientEngine(net, X[:4])
labels = torch.zeros(50, dtype=torch.long)
found = []
for _ in range(10):
    before = faults()
    list(engine.parts(X, labels))
    found.append(faults() - before)
print(min(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back otherwise")
def test_passes_through_a_small_net_find_their_memory_in_place():
    assert int(run(FAULTS)) < 100  # of some 1,000 to 2,000 pages


def test_a_pass_takes_as_many_rows_as_are_quick(device, monkeypatch):
    case = BY_NAME["conv2d twice"]
    engine = case.engine(device)
    seen, forward = [], engine.forward
    engine.forward = lambda X, labels: (seen.append(len(X)), forward(X, labels))[1]
    X = np.concatenate([case.X] * 30)
    every, first = engine(X), torch.zeros(len(X), dtype=torch.long)
    assert seen == [len(X)] and engine.pass_rows(1) > len(X)  # a small net
    for sizes in ("_PASS_BYTES", "_PASS_BYTES_ELSEWHERE"):
        monkeypatch.setattr(_engine, sizes, {"cpu": 2**10} if sizes == "_PASS_BYTES" else 2**10)
    assert engine.pass_rows(1) == engine.pass_rows(2) == 16
    seen.clear()
    assert_close(engine(X), every)
    assert_close(engine(X, first), every[:, 0])
    assert max(seen) == 16 and sum(seen) == 2 * len(X)
    seen.clear()
    assert_close(engine(X, batch_size=len(X)), every)
    assert seen == [len(X)]


MEASURED = """
import ctypes
import numpy as np, torch
from resnet import ResNet18
from sklearn_gradspace.gradients import GradientEngine

def kib(of):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(of))

torch.set_num_threads(1)
X = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
engine = GradientEngine(ResNet18(), X, layers="all")
for n in (1, 4):
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = kib("VmRSS")
    engine(X[:n], torch.zeros(n, dtype=torch.long))
    print((kib("VmHWM") - before) * 1024, engine.memory(n, all_labels=False))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not measure peaks of memory")
def test_a_pass_takes_no_more_memory_than_is_said():
    for line in run(MEASURED).splitlines():
        taken, said = map(int, line.split())
        assert said / 4 < taken < said + 150 * 2**20


class Attends(nn.Module):
    """Attention over many steps, whose transform holds a matrix for each pair of them."""

    def __init__(self, n_labels=12):
        super().__init__()
        self.attention, self.log_scale = nn.MultiheadAttention(8, 2, batch_first=True), nn.Parameter(torch.zeros(8))
        self.output = nn.Linear(8, n_labels)

    def forward(self, x):
        x = x * self.log_scale.exp()
        return self.output(self.attention(x, x, x)[0].mean(1))


class Twice(nn.Module):
    """A wide layer, called twice."""

    def __init__(self, n_labels=12):
        super().__init__()
        self.wide, self.output = nn.Linear(800, 800), nn.Linear(800, n_labels)

    def forward(self, x):
        return self.output(torch.tanh(self.wide(torch.tanh(self.wide(x)))))


@pytest.mark.parametrize(("make", "shape", "share"), [(Attends, (24, 150, 8), 0.25), (Twice, (4, 800), 0.5)])
def test_what_torch_gives_out_stays_below_the_formula(make, shape, share, device, monkeypatch):
    monkeypatch.setattr(_memory, "_LARGE", 2**60)  # so that all of it is torch's
    net, X = make().eval(), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    engine = GradientEngine(net, X[:4], "all", device)
    assert (engine.transform_bytes > 0) == (make is Attends)
    n_bytes = engine.memory(len(X))
    with _memory.PeakBytes() as peak:
        engine(X)
    assert peak.n_bytes < n_bytes
    assert device.type != "cpu" or share * n_bytes < peak.n_bytes  # elsewhere pieces of the work may be larger
