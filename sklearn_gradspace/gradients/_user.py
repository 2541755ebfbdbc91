"""What the user sees of what goes wrong deep inside: the line a warning is about, the function an error is of.

Messages, or a parameter's name and its function, enter; warnings and noted errors leave.
"""

import sys
import warnings
from collections.abc import Callable

_INSIDE = ("sklearn_gradspace", "sklearn", "skorch", "joblib", "torch", "tqdm")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, from the first frame outside of this package and of what calls it back."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def called(name: str, function: Callable, *args):
    """Return what a user's function returns; to its error a note is added that names the parameter."""
    try:
        return function(*args)
    except Exception as error:
        error.add_note(f"This was raised in `{name}`, called with {', '.join(map(_described, args))}.")
        raise


def _described(value) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")
