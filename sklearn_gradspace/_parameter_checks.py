"""What parameters may be, of whatever estimator.

An estimator, or a value and its name, enter; an error that names the parameter and says what it may be leaves where it
means nothing.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_random_state, check_scalar

_LARGEST = 1e30  # single precision holds it


def check_choices(estimator, choices: Mapping[str, tuple]) -> None:
    """Raise ValueError where a parameter is none of its choices; `scalar` may be a function as well."""
    for name, values in choices.items():
        value = getattr(estimator, name)
        comparable = value is None or isinstance(value, (str, Integral, np.bool_))
        if not (name == "scalar" and callable(value)) and not (comparable and value in values):
            raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, values))}.")


def check_flags(estimator, *names: str) -> None:
    """Raise ValueError where a parameter is neither True nor False, instead of taking any object for True."""
    for name in names:
        if not is_flag(value := getattr(estimator, name)):
            raise ValueError(f"{name}={value!r} is neither True nor False.")


def is_flag(value) -> bool:
    """Return whether a value is True or False, be it NumPy's or a number."""
    return isinstance(value, (Integral, np.bool_)) and value in (False, True)


def positive_integers(given) -> tuple[int, ...] | None:
    """Return a positive integer, or a sequence or array of some, as a tuple; None where it is none of these."""
    several = given.ndim > 0 if isinstance(given, np.ndarray) else isinstance(given, Sequence)
    numbers = given if several else (given,)
    known = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in numbers)
    return tuple(map(int, numbers)) if known else None


def check_number(value, name: str, kind: type = Real, **limits) -> None:
    """Raise TypeError or ValueError where `value` is no finite number within `limits`, which are `check_scalar`'s."""
    if isinstance(value, (bool, np.bool_)):  # an int, for check_scalar
        raise TypeError(f"{name}={value!r} is no number.")
    check_scalar(value, name, kind, **limits)
    if not -_LARGEST <= value <= _LARGEST:  # NaN as well, which check_scalar lets pass
        raise ValueError(f"{name}={value!r} is no finite number from {-_LARGEST:g} to {_LARGEST:g}.")


def check_verbose(verbose) -> None:
    """Raise ValueError where `verbose` is no number."""
    if not isinstance(verbose, (Integral, np.bool_)):
        raise ValueError(f"verbose={verbose!r} is neither an integer nor True or False.")


def check_n_jobs(n_jobs) -> None:
    """Raise ValueError for what is no number of jobs in the sense of joblib."""
    if n_jobs is not None and not (isinstance(n_jobs, Integral) and 0 < abs(int(n_jobs)) < 2**15):
        raise ValueError(f"n_jobs={n_jobs!r} is neither None, a positive integer, nor -1 for all processors.")


def check_seed(random_state) -> None:
    """Raise ValueError where `random_state` is no seed; nothing is drawn from it."""
    try:
        check_random_state(random_state)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"random_state={random_state!r} is neither None, an integer from 0 to 2**32 - 1, nor a RandomState."
        ) from error
