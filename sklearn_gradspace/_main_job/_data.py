"""Real data for the main job: digits, MNIST, CIFAR-10 or a file.

A name and a folder enter; arrays of training and test rows leave.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

_OPENML = {"mnist": ("mnist_784", (28, 28)), "cifar10": ("CIFAR_10", (3, 32, 32))}


class InputError(Exception):
    """Something that the user gave cannot be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class Split:
    """Rows for the base net, rows for everything that is fitted to it, and test rows."""

    base: tuple[np.ndarray, np.ndarray]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Data:
    """Samples and labels, with or without a test set of their own."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None

    def split(self, seed: int, samples: int, base_half: bool = True) -> Split:
        """Split at random, by class: without a test set three tenths are kept out; the rest is halved.

        Parameters
        ----------
        seed : int
        samples : int
            At most so many training and test rows are drawn; 0 takes all.
        base_half : bool
            Whether one half is for training the base net; else all training rows are for what is fitted to it.
        """
        X, y, X_test, y_test = self.X, self.y, self.X_test, self.y_test
        if X_test is None:
            X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)
        X, y = _draw(X, y, samples, seed)
        test = _draw(X_test, y_test, samples, seed)
        if not base_half:
            return Split((X[:0], y[:0]), (X, y), test)
        X_base, X_train, y_base, y_train = train_test_split(X, y, test_size=0.5, random_state=seed, stratify=y)
        return Split((X_base, y_base), (X_train, y_train), test)


def load(name: str, data_home: str | None = None) -> Data:
    """Return the data called `name`: digits, mnist, cifar10 or the path of an ``.npz`` file."""
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return Data((X / 16).astype(np.float32), y)
    if name.endswith(".npz"):
        return _prepared(_read(Path(name)), images="plain")
    if name not in _OPENML:
        raise InputError(f"--data {name}: it must be digits, mnist, cifar10 or the path of an .npz file.")
    file = Path(data_home or "") / f"{name}.npz"
    arrays = _read(file) if data_home and file.is_file() else _fetch(name, data_home)
    return _prepared(arrays, images="cifar10" if name == "cifar10" else "plain")


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it cannot be read as an .npz file of plain arrays ({error}).") from error
    names = ("X_train", "y_train", "X_test", "y_test") if "X_train" in arrays else ("X", "y")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"{path}: no array {', '.join(missing)}; it must hold X and y, or X_train, y_train, X_test, y_test."
        )
    for X, y in zip(names[::2], names[1::2]):
        if len(arrays[X]) != len(arrays[y]) or arrays[y].ndim != 1 or arrays[X].ndim < 2:
            raise InputError(
                f"{path}: {X} has shape {arrays[X].shape} and {y} has shape {arrays[y].shape}; they must be "
                "(n_samples, ...) and (n_samples,)."
            )
        if not len(arrays[X]) or arrays[X].dtype.kind not in "biuf" or not np.isfinite(arrays[X]).all():
            raise InputError(f"{path}: {X} must hold one row at least, of real numbers without NaN or infinity.")
        if arrays[y].dtype.kind not in "biuUS":
            raise InputError(f"{path}: {y} must hold integers or strings, class labels, not {arrays[y].dtype}.")
    if len(np.unique(arrays[names[1]])) < 2:
        raise InputError(f"{path}: {names[1]} holds one class only.")
    if len(names) == 4:
        shapes = [arrays[X].shape[1:] for X in ("X_train", "X_test")]
        if shapes[0] != shapes[1]:
            raise InputError(f"{path}: X_train has samples of shape {shapes[0]}, and X_test of shape {shapes[1]}.")
        unknown = np.setdiff1d(arrays["y_test"], arrays["y_train"])
        if len(unknown):
            raise InputError(f"{path}: y_test holds labels that y_train does not: {unknown[:10].tolist()}.")
    return {name: arrays[name] for name in names}


def _fetch(name: str, data_home: str | None) -> dict[str, np.ndarray]:
    openml_name, shape = _OPENML[name]
    try:
        X, y = fetch_openml(openml_name, version=1, return_X_y=True, as_frame=False, data_home=data_home)
    except Exception as error:  # no network, no such data set, no parser
        raise InputError(
            f"--data {name}: fetch_openml failed ({type(error).__name__}: {' '.join(str(error).split())}). Point "
            f"--data-home at a folder that holds {name}.npz with X_train, y_train, X_test, y_test."
        ) from error
    X, y = X.reshape(-1, *shape).astype(np.uint8), y.astype(np.int64)
    X = X.transpose(0, 2, 3, 1) if name == "cifar10" else X
    return {"X_train": X[:-10000], "y_train": y[:-10000], "X_test": X[-10000:], "y_test": y[-10000:]}


def _prepared(arrays: dict[str, np.ndarray], images: str) -> Data:
    prepare = _standardised_crops if images == "cifar10" else _plain
    return Data(*(prepare(a) if name.startswith("X") else a for name, a in arrays.items()))


def _plain(X: np.ndarray) -> np.ndarray:
    return X.astype(np.float32) / (255 if X.dtype == np.uint8 else 1)


def _standardised_crops(X: np.ndarray) -> np.ndarray:
    """Return the central 24x24 of images (n, 32, 32, 3), channels first, standardised as the GradNet authors do."""
    X = X[:, 4:28, 4:28].transpose(0, 3, 1, 2).astype(np.float32)
    mean, std = X.mean((1, 2, 3), keepdims=True), X.std((1, 2, 3), keepdims=True)
    return (X - mean) / np.maximum(std, np.float32(X[0].size ** -0.5))


def _draw(X: np.ndarray, y: np.ndarray, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if not samples or samples >= len(X):
        return X, y
    rows = np.sort(check_random_state(seed).permutation(len(X))[:samples])
    return X[rows], y[rows]
