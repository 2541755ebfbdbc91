"""Files of fitted estimators, without pickle: what an estimator is, as data; nothing of a file is run.

A fitted estimator enters; a safetensors file leaves. From a file, and nets of the user's own, an estimator leaves.
"""

import os
from pathlib import Path

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._base_net import trained_module
from ._file import read_file, write_file
from ._tree import Reader, Writer


def save(estimator: BaseEstimator, path: str | os.PathLike) -> None:
    """Write a fitted estimator or pipeline to a file, without pickle.

    The file is in safetensors format: arrays and weights, and a JSON text that says what they are. It is written under
    another name first, so that there is never half a file.

    Parameters
    ----------
    estimator : estimator
        A fitted estimator of this package, or a Pipeline or FeatureUnion of such with scikit-learn's scalers, PCA,
        SimpleImputer, linear classifiers and regressors, and FrozenEstimator.
    path : path-like
        The file, which is replaced if it is there.

    Raises
    ------
    TypeError
        Where a parameter or an attribute holds what a file cannot, such as a function; the error names it.
    ImportError
        Where safetensors is not installed.

    Notes
    -----
    Of a skorch net that is passed as `net` the module is saved. Of a net that is trained by skorch the file has the
    weights, the random state and the epochs of the history. It lacks the optimizer's state, the batches of the history,
    callbacks and requests for metadata routing. `partial_fit` goes on from the weights, with a new optimizer.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_gradspace import ECOptClassifier, load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = ECOptClassifier(random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "classifier.safetensors"
    ...     save(classifier, path)
    ...     same = load(path)
    >>> bool((same.predict_proba(X) == classifier.predict_proba(X)).all())
    True
    """
    if not isinstance(estimator, BaseEstimator):
        raise TypeError(f"estimator must be a fitted estimator, not {estimator!r}.")
    check_is_fitted(estimator)
    versions, writer = _make_kinds_known(), Writer()
    node = writer.node(estimator, ())
    write_file(Path(path), {"versions": versions, "estimator": node}, writer.tensors)


def load(path: str | os.PathLike, net: nn.Module | dict[str, nn.Module] | None = None) -> BaseEstimator:
    """Return the estimator that :func:`save` wrote to a file.

    Nothing of the file is run: objects are made of a fixed list of classes alone.

    Parameters
    ----------
    path : path-like
        The file.
    net : Module, skorch net or dict of str to these, optional
        Nets of your own classes, which the file has only the weights of. They are copied, and the copies get the
        weights of the file: which ones they have does not matter. A dict has them by their places, such as
        ``"gradientfeaturizer__net"``; a single one is for all places. A net of this package, or a Sequential of torch's
        usual layers, is made by itself.

    Returns
    -------
    estimator : estimator
        The fitted estimator, which predicts what the one that was saved does, bit by bit in the same environment.

    Raises
    ------
    ValueError
        Where it is no such file, or one of another format version, or a damaged one; where a net is missing, or has
        other parameters than the one that was saved.
    TypeError
        Where `net` holds anything but trained nets.
    FileNotFoundError
        Where there is no file.
    ImportError
        Where safetensors is not installed.

    Warns
    -----
    InconsistentVersionWarning
        For an estimator of scikit-learn's that another version of it has fitted.

    Notes
    -----
    Paths that are parameters, such as `memory` of a pipeline and `output_dir`, are used by a later `fit` or
    `transform`.

    Examples
    --------
    >>> from sklearn_gradspace import load
    >>> model = load("model.safetensors")  # doctest: +SKIP
    >>> model = load("model.safetensors", net=MyNet())  # doctest: +SKIP
    """
    for handed in net.values() if isinstance(net, dict) else [net]:
        if handed is not None and trained_module(handed) is None:
            raise TypeError(f"net must be a Module, a fitted skorch net or a dict of them, not {handed!r}.")
    content, tensors = read_file(Path(path))
    _make_kinds_known()
    try:
        reader = Reader(tensors, net, content["versions"])
        estimator = reader.node(content["estimator"])
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # a content that save would not write
        raise ValueError(f"{path} does not hold what this version can read: {type(error).__name__}: {error}") from error
    unknown = sorted(net.keys() - set(reader.places)) if isinstance(net, dict) else []
    if unknown:
        raise ValueError(f"net has the places {unknown}; those of the file are {reader.places}.")
    if not isinstance(estimator, BaseEstimator):
        raise ValueError(f"{path} holds a {type(estimator).__name__}, no estimator.")
    return estimator


def _make_kinds_known() -> dict[str, str]:
    """Import what has the kinds; return the versions of what they are of.

    They bring much of scikit-learn, which an import of the package does without.
    """
    from . import _estimators, _nets, _values  # noqa: F401  each makes its kinds known

    return _estimators.versions()
