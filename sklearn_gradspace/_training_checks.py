"""What the parameters of a skorch estimator may be, and how its training may end.

An estimator enters; an error that says what to do leaves where skorch or torch would raise one that names no parameter.
"""

from numbers import Integral

import numpy as np
from skorch.callbacks import Callback
from skorch.utils import is_dataset

from ._parameter_checks import check_flags, check_number, check_seed, check_verbose
from .gradients._user import warn_user

_EPOCHS_TO_LEARN = 10  # after which a net should be better than a constant
_SMALL_LOSS = 0.01  # of a constant: then there is nothing to learn


def check_training_parameters(net) -> None:
    """Raise an error that names the first parameter of a skorch estimator that means nothing."""
    if not (isinstance(net.lr, str) and net.lr == "auto"):
        check_number(net.lr, "lr", min_val=0)
    check_number(net.max_epochs, "max_epochs", Integral, min_val=0)
    size = net.batch_size
    counted = isinstance(size, Integral) and not isinstance(size, bool) and (1 <= int(size) < 2**62 or size == -1)
    if not counted:
        raise ValueError(f"batch_size={size!r} is neither a positive integer nor -1, which is all rows.")
    wanted = {
        "criterion": (net.criterion, "no loss: a Module, or a class or function that makes one"),
        "optimizer": (net._optimizer_class, "no class of torch's optimizers"),
        "iterator_train": (net.iterator_train, "no class of data loaders"),
        "iterator_valid": (net.iterator_valid, "no class of data loaders"),
    }
    for name, (value, what) in wanted.items():
        if not callable(value):
            raise TypeError(f"{name}={value!r} is {what}.")
    if not callable(net.dataset) and not is_dataset(net.dataset):
        raise TypeError(f"dataset={net.dataset!r} is neither a class of datasets nor one of them.")
    if net.train_split is not None and net.train_split is not False and not callable(net.train_split):
        raise TypeError(f"train_split={net.train_split!r} is neither None nor a function, such as skorch's ValidSplit.")
    nonlinearity = net.predict_nonlinearity
    if nonlinearity is not None and not callable(nonlinearity) and not isinstance(nonlinearity, str):
        raise TypeError(f"predict_nonlinearity={nonlinearity!r} is neither a function, 'auto' nor None.")
    _check_callbacks(net.callbacks)
    check_flags(net, "compile", "iterator_train__shuffle")
    check_verbose(net.verbose)
    check_seed(net.random_state)


def _check_callbacks(callbacks) -> None:
    if callbacks is None or (isinstance(callbacks, str) and callbacks == "disable"):
        return
    if not isinstance(callbacks, list) or not all(map(_is_callback, callbacks)):
        raise TypeError(
            f"callbacks={callbacks!r} is neither None, 'disable', nor a list of skorch's callbacks, which may be "
            "(name, callback)."
        )


def _is_callback(item) -> bool:
    if isinstance(item, (tuple, list)):
        return len(item) == 2 and isinstance(item[0], str) and (item[1] is None or _is_callback(item[1]))
    return isinstance(item, Callback) or (isinstance(item, type) and issubclass(item, Callback))


def told(error: Exception, net) -> Exception | None:
    """Return an error that says what to do, if what `error` says of a net's training is known."""
    if isinstance(error, KeyError) and "valid_" in str(error) and net.train_split is None:
        return ValueError(
            f"a callback looks for what is measured on held-out rows, and there are none ({error.args[0]}): pass "
            "train_split=skorch.dataset.ValidSplit(0.1, stratified=True), or false for regression."
        )
    if isinstance(error, ValueError) and "Expected more than 1 value per channel" in str(error):
        return ValueError(
            "a batch norm cannot be trained on a batch of one row, which is what the last batch of an epoch holds: use "
            "another batch_size, or leave such rows out with iterator_train__drop_last=True."
        )
    return None


def check_trained(net, constant_loss: float | None) -> None:
    """Raise ValueError where training diverged; warn where it is no better than the best constant, if that is known."""
    loss = net.history[-1].get("train_loss", 0.0)  # an interrupted epoch has none
    if not np.isfinite(loss) or not all(parameter.isfinite().all() for parameter in net.module_.parameters()):
        raise ValueError(
            f"training diverged, the loss is {loss} and weights may not be finite: use a smaller lr, or scale the "
            "input."
        )
    if constant_loss is None or len(net.history) < _EPOCHS_TO_LEARN:
        return
    if constant_loss > _SMALL_LOSS and loss > 0.999 * constant_loss:
        warn_user(
            f"nothing was learnt: the training loss, {loss:.3g}, is no better than that of the best constant "
            f"prediction, {constant_loss:.3g}. Scale the input, by a StandardScaler say, or use a smaller lr."
        )
