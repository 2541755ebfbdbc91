"""Warnings of what the user does: they point to the line that called this package, however deep in it they arise."""

import sys
import warnings

_INSIDE = ("sklearn_gradspace", "sklearn", "skorch", "joblib", "torch", "tqdm")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, from the first frame outside of this package and of what calls it back."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
