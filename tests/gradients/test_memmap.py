"""Features on disk are the dense ones, whatever happened while they were written."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
from cases import BY_NAME

from sklearn_gradspace.gradients import GradientArray, GradientFeatures, GradientMemmap, _memmap, to_memmap
from sklearn_gradspace.gradients._memmap import fingerprint


def make(name="mlp of three layers", device=None, n=40, batch_size=4, **options):
    case = BY_NAME[name]
    X = np.random.default_rng(0).normal(size=(n, *case.shape))
    return GradientArray(GradientFeatures(case.engine(device), 40, power=0.5, batch_size=batch_size, **options), X)


@pytest.mark.parametrize("name", ["mlp of three layers", "conv2d twice", "lstm"])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_numbers_are_the_dense_ones(name, n_jobs, device, tmp_path):
    array = make(name, device)
    features = to_memmap(array, tmp_path / "new" / "directory", n_jobs)
    np.testing.assert_array_equal(features, array.toarray(), strict=False)
    assert features.shape == array.shape and features.dtype == array.dtype
    assert (features.n_labels, features.blocks) == (array.n_labels, array.blocks)
    with pytest.raises(ValueError, match="read-only"):
        features[0, 0] = 1
    np.testing.assert_array_equal(np.load(features.filename, mmap_mode="r"), array.toarray())


def test_a_finished_file_is_not_computed_again(tmp_path, monkeypatch):
    first = to_memmap(make(), tmp_path)
    monkeypatch.setattr(_memmap, "over_batches", lambda *args: pytest.fail("computed again"))
    np.testing.assert_array_equal(to_memmap(make(), tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_recorded_is_not_computed_again(tmp_path, monkeypatch):
    whole = np.array(to_memmap(make(), tmp_path / "whole"))
    over_batches = _memmap.over_batches

    def interrupted(function, array, *args):
        for i, part in enumerate(over_batches(function, array, *args)):
            if i == 3:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(_memmap, "over_batches", interrupted)
    seen = []
    for rows in (40, 28, 16):
        with pytest.raises(KeyboardInterrupt):
            to_memmap(make(), tmp_path / "part")
        seen.append(rows)
    monkeypatch.setattr(
        _memmap, "over_batches", lambda f, rest, *args: (seen.append(len(rest)), over_batches(f, rest))[1]
    )
    np.testing.assert_array_equal(to_memmap(make(), tmp_path / "part"), whole)
    assert seen == [40, 28, 16, 4]


def test_other_features_have_other_files(tmp_path):
    arrays = [make(), make(batch_size=8), make("conv2d twice"), make(labels="predicted")]
    arrays += [GradientArray(arrays[0].features, arrays[0].X + 1), arrays[0][:-1]]
    arrays += [GradientArray(replace(arrays[0].features, percentile=41), arrays[0].X)]
    arrays += [GradientArray(GradientFeatures(BY_NAME["mlp of three layers"].engine(scalar="logit"), 40), arrays[0].X)]
    changed = make()
    next(changed.features.engine.net.parameters()).data[0, 0] += 1e-9
    arrays += [changed]
    assert len({fingerprint(array) for array in arrays}) == len(arrays)
    for array in arrays:
        np.testing.assert_array_equal(to_memmap(array, tmp_path), array.toarray())


def test_the_fingerprint_is_that_of_copies():
    array = make("conv2d twice")
    assert fingerprint(pickle.loads(pickle.dumps(array))) == fingerprint(array) == fingerprint(make("conv2d twice"))


def test_a_record_of_other_features_is_refused(tmp_path):
    to_memmap(make(), tmp_path / "one")
    features = to_memmap(make(batch_size=8), tmp_path / "two")
    record = next((tmp_path / "one").glob("*.done"))
    os.replace(record, features.filename.replace(".npy", ".done"))
    with pytest.raises(ValueError, match=r"\.done is the record of other features.*remove both, or choose another"):
        to_memmap(make(batch_size=8), tmp_path / "two")


def test_a_torn_record_is_a_shorter_one(tmp_path):
    features = to_memmap(make(), tmp_path)
    record, expected = next(tmp_path.glob("*.done")), np.array(features)
    lines = record.read_bytes()
    for cut in (0, 1, len(lines) // 2, len(lines) - 1):
        record.write_bytes(lines[:cut] + b"\0\0")
        np.testing.assert_array_equal(to_memmap(make(), tmp_path), expected)


def test_a_record_without_its_file_counts_nothing(tmp_path):
    expected = np.array(features := to_memmap(make(), tmp_path))
    path = Path(features.filename)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    np.testing.assert_array_equal(to_memmap(make(), tmp_path), expected)
    assert path.read_bytes() == whole
    path.unlink()
    np.testing.assert_array_equal(to_memmap(make(), tmp_path), expected)


def test_whole_rows_alone_know_their_columns(tmp_path):
    features = to_memmap(make(), tmp_path)
    for rows in (features[1:], features[[0, 2]], features[[0, 2], ...], features[:2, :]):
        assert (rows.n_labels, rows.blocks) == (features.n_labels, features.blocks)
    for other in (features[:, ::-1], features[0], features.T, features[:, :2]):
        assert other.blocks is None


def test_a_pickle_is_the_path(tmp_path):
    features = to_memmap(make(n=400), tmp_path)
    for part in (features, features[3:], features[7], features[::2], features[[3, 1]], features[:, 5:20]):
        pickled = pickle.dumps(part)
        copy = pickle.loads(pickled)
        np.testing.assert_array_equal(copy, part, strict=False)
        assert (len(pickled) < 1000) == part.flags.c_contiguous or part._mmap is None
        assert copy.blocks == (features.blocks if part.shape[1:] == features.shape[1:] else None)
    assert isinstance(pickle.loads(pickle.dumps(features)), GradientMemmap)

    def is_mapped(array):  # in here, since workers do not find the module of the tests
        return array._mmap is not None and array.blocks is not None

    found = joblib.Parallel(n_jobs=2)(joblib.delayed(is_mapped)(features[i:]) for i in range(2))
    assert found == [True, True]


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setattr(_memmap.shutil, "disk_usage", lambda path: type("", (), {"free": 2**10}))
    with pytest.raises(OSError, match=r"features of shape \(40, 222\) take .* GiB in .*, where 0\.0 GiB are free"):
        to_memmap(make(), tmp_path)


def test_what_cannot_be_known_again_is_refused(tmp_path):
    array = GradientArray(GradientFeatures(BY_NAME["mlp of three layers"].engine(output=lambda out: out)), make().X)
    with pytest.raises(ValueError, match=r"output='memmap' .*cannot be pickled.*A function needs a name"):
        to_memmap(array, tmp_path)


KILLED = """
    import os, pathlib, signal, sys, time
    import torch
    from gradients.test_memmap import make, to_memmap, _memmap

    torch.set_num_threads(1)
    directory = pathlib.Path(sys.argv[1])
    write, record = _memmap._write, _memmap._record

    def half_a_write(file, place, data):
        write(file, place, bytes(data)[: len(bytes(data)) // 2])

    def half_a_line(path, key, n_done):
        with open(path.with_suffix(".done"), "ab") as file:
            file.write(f"{key} {n_done}"[:-1].encode())

    def dies(count, original, half):
        calls = []

        def call(*args):
            calls.append(args)
            if len(calls) < count:
                return original(*args)
            half(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        return call

    def recorded():
        return sum(path.read_text().count(";") for path in directory.glob("*.done"))

    for step, count in (("_write", 1), ("_record", 1), ("_write", 3), ("_record", 2), (None, 0)):
        before = recorded()
        child = os.fork()
        if not child:
            if step == "_write":
                _memmap._write = dies(count, write, half_a_write)
            elif step == "_record":
                _memmap._record = dies(count, record, half_a_line)
            else:
                _memmap._record = lambda *args: (time.sleep(0.05), record(*args))
            to_memmap(make(), directory)
            os._exit(0)
        if step is None:  # from outside, whatever it is doing
            while recorded() < before + 3:
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), recorded())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_that_was_killed_at_any_moment_ends_with_the_same_bytes(tmp_path):
    """One directory sees one death after the other: in the header, in a record, in a row, and from outside."""
    expected = to_memmap(make(), tmp_path / "whole")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "killed"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    statuses, n_recorded = zip(*(map(int, line.split()) for line in done.stdout.splitlines()))
    assert set(statuses) == {-signal.SIGKILL}
    assert n_recorded[:4] == (0, 0, 1, 2) and 5 <= n_recorded[4] < 10
    found = to_memmap(make(), tmp_path / "killed")
    assert Path(found.filename).read_bytes() == Path(expected.filename).read_bytes()
    assert Path(found.filename).name == Path(expected.filename).name  # which another process had found
    np.testing.assert_array_equal(found, make().toarray())


def test_two_processes_may_write_the_same_features(tmp_path):
    expected = make().toarray()
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(to_memmap)(make(), tmp_path) for _ in range(4))
    for features in found:
        np.testing.assert_array_equal(features, expected)
    assert len(list(tmp_path.iterdir())) == 2
