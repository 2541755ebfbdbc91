"""Features on disk: written batch by batch, so that a run that was killed goes on where it was.

A lazy array and a directory enter; an array that is mapped into memory, of a file in the directory, leaves.
"""

import io
import mmap
import os
import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import joblib
import numpy as np

from ._array import GradientArray, dense
from ._blocks import Block
from ._passes import over_batches
from ._sharing import packed


class GradientMemmap(np.memmap):
    """Dense gradient features in a file, read-only; pickled by the path of the file.

    Parameters
    ----------
    filename, dtype, mode, offset, shape, order
        As of NumPy's memmap; ``GradientFeaturizer(output="memmap")`` knows them.

    Attributes
    ----------
    n_labels : int or None
        Number of views of a row; None in what has other columns.
    blocks : tuple of Block or None
        The columns of each parameter, within a view.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import GradientFeaturizer
    >>> X, y = load_iris(return_X_y=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     featurizer = GradientFeaturizer(output="memmap", output_dir=folder, random_state=0).fit(X, y)
    ...     features = featurizer.transform(X)
    ...     features.shape, features.n_labels, [block.size for block in features.blocks]
    ((150, 672), 3, [128, 96])
    """

    n_labels: int | None = None
    blocks: tuple[Block, ...] | None = None
    _mmap: mmap.mmap | None  # of which np.memmap says nothing

    def __getitem__(self, index):
        taken = super().__getitem__(index)
        columns = index[1:] if isinstance(index, tuple) else ()
        whole_rows = all(c is Ellipsis or (isinstance(c, slice) and c == slice(None)) for c in columns)
        if isinstance(taken, GradientMemmap) and taken.ndim == 2 and whole_rows:
            taken.n_labels, taken.blocks = self.n_labels, self.blocks
        return taken

    def __reduce__(self):
        if self._mmap is None or not self.flags.c_contiguous:
            return _known, (np.array(self), self.n_labels, self.blocks)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY  # where the mapping begins
        offset = start + self.ctypes.data - np.frombuffer(self._mmap, np.uint8).ctypes.data
        return _opened, (self.filename, self.dtype, self.shape, offset, self.n_labels, self.blocks)


def _known(array: np.ndarray, n_labels: int | None, blocks: tuple[Block, ...] | None) -> GradientMemmap:
    known = array.view(GradientMemmap)
    known.n_labels, known.blocks = n_labels, blocks
    return known


def _opened(path, dtype, shape, offset, n_labels, blocks) -> GradientMemmap:
    return _known(GradientMemmap(path, dtype, "r", offset, shape), n_labels, blocks)


def to_memmap(array: GradientArray, directory, n_jobs: int | None = None, verbose: int = 0) -> GradientMemmap:
    """Compute everything into a file of `directory`, or what the file of the same features lacks.

    Parameters
    ----------
    array : GradientArray
    directory : path
        It is made where it does not exist. The file is a ``.npy``, named by a fingerprint of rows, net and map to
        features; a ``.done`` beside it records how many rows are in it.
    n_jobs : int, optional
        Jobs that share the batches.
    verbose : int
        Whether to show a progress bar.

    Returns
    -------
    features : GradientMemmap of shape (n_samples, n_labels * n_features)

    Notes
    -----
    Every write depends on the fingerprint and the place alone, and a row is recorded when it is on the disk. So it may
    be killed at any moment, and two processes may write the same features at once.
    """
    key = fingerprint(array)
    path = Path(directory).absolute() / f"features-{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = _header(array)
    n_done = _rows_done(path, key, len(header) + array.nbytes)
    if n_done < len(array):
        _require_disk(path, array)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if file.seek(0, os.SEEK_END) < len(header) + array.nbytes:
                file.truncate(len(header) + array.nbytes)
            _write(file, 0, header)
            for part in over_batches(dense, array[n_done:], n_jobs, verbose):
                _write(file, len(header) + n_done * (array.nbytes // len(array)), part.data)
                n_done += len(part)
                _record(path, key, n_done)
    return _opened(str(path), array.dtype, array.shape, len(header), array.n_labels, array.blocks)


def fingerprint(array: GradientArray) -> str:
    """Return what tells features of some rows from all others: a hash of rows, net and map to features."""
    from .. import __version__

    features, engine = array.features, array.features.engine
    of_map = {field.name: getattr(features, field.name) for field in fields(features) if field.name != "engine"}
    of_engine = (packed(engine.net), engine.scalar, engine.output, engine.precision, engine.device.type)
    made_by = repr(engine.blocks), str(engine.rules), engine.channels_last, __version__
    try:
        return joblib.hash((array.X, of_map, of_engine, made_by))
    except (pickle.PicklingError, AttributeError) as error:
        raise ValueError(
            "output='memmap' knows features by what they are made with, but something of the net, `scalar` or "
            f"`net_output` cannot be pickled: {error}. A function needs a name in a module."
        ) from error


def _header(array: GradientArray) -> bytes:
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _write(file, place: int, data) -> None:
    # By write and not through the mapping, where a full disk would be the end of the process.
    file.seek(place)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _record(path: Path, key: str, n_done: int) -> None:
    """Append a line, which is there as a whole or, at the end, cut off: so it begins with the end of the one before."""
    with open(path.with_suffix(".done"), "ab", buffering=0) as file:
        file.write(f"\n{key} {n_done};\n".encode())
        os.fsync(file.fileno())


def _rows_done(path: Path, key: str, size: int) -> int:
    """Return how many rows of the file are recorded, or raise ValueError if the record is of other features."""
    record = path.with_suffix(".done")
    if not record.exists():
        return 0
    lines = [line.split() for line in record.read_text(errors="replace").split("\n")]
    whole = [line for line in lines if len(line) == 2 and line[1].endswith(";") and line[1][:-1].isdigit()]
    if any(found != key for found, _ in whole):
        raise ValueError(
            f"{record} is the record of other features than those of {path.name}: remove both, or "
            "choose another output_dir."
        )
    if not path.exists() or path.stat().st_size < size:
        record.unlink()  # that of a file that is gone
        return 0
    return max((int(rows[:-1]) for _, rows in whole), default=0)


def _require_disk(path: Path, array: GradientArray) -> None:
    there = path.stat().st_blocks * 512 if path.exists() and hasattr(os.stat_result, "st_blocks") else 0
    needed, free = array.nbytes - there, shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"features of shape {array.shape} take {needed / 2**30:.1f} GiB in {path.parent}, where "
            f"{free / 2**30:.1f} GiB are free. Use another output_dir, output='lazy', projection, fewer layers or rows."
        )
