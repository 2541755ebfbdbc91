"""Functions of the user's that are called deep inside: an error in one says whose it is.

A parameter's name, its function and arguments enter; what the function returns leaves.
"""

from collections.abc import Callable


def called(name: str, function: Callable, *args):
    """Return what a function returns; to its error a note is added that names the parameter."""
    try:
        return function(*args)
    except Exception as error:
        error.add_note(f"This was raised in `{name}`, called with {', '.join(map(_described, args))}.")
        raise


def _described(value) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")
