"""Every public docstring keeps numpydoc's form, and every public class and function has an example."""

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from numpydoc.validate import ERROR_MSGS, validate

API = Path("docs/api.rst")
pytestmark = pytest.mark.skipif(not API.is_file(), reason="no documentation beside the package")


def documented():
    """Return the names that the reference lists."""
    names, module = [], None
    for line in API.read_text().splitlines() if API.is_file() else ():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.fullmatch(r"    (\w+)", line):
            names.append(f"{module}.{found[1]}")
    return names


def of_the_package(name):
    """Return a class or function, and the methods and properties that the package defines for it, by name."""
    module, _, last = name.rpartition(".")
    found = {name: getattr(import_module(module), last)}
    for base in reversed(inspect.getmro(found[name])) if inspect.isclass(found[name]) else ():
        if base.__module__.startswith("sklearn_gradspace"):
            public = (key for key, value in vars(base).items() if key[0] != "_" and not _is_a_value(value))
            found |= {f"{name}.{key}": None for key in public}
    return found


def _is_a_value(value):
    return not (inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod)))


def chosen_checks():
    checks = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["numpydoc_validation"]["checks"]
    assert checks[0] == "all"
    return set(ERROR_MSGS) - set(checks)


@pytest.mark.parametrize("name", documented())
def test_docstrings_keep_the_form(name):
    checks, wrong = chosen_checks(), []
    for public in of_the_package(name):
        for code, message in validate(public)["errors"]:
            is_member = public != name
            of_kwargs = code == "PR02" and not is_member  # what **kwargs takes is documented by its name
            if code in checks and not of_kwargs and not (code == "EX01" and is_member):
                wrong.append(f"{public}: {code} {message}")
    assert wrong == []


@pytest.mark.parametrize("package", ["", ".modules", ".optim", ".pathspace"])
def test_the_reference_lists_every_public_name(package):
    module = import_module(f"sklearn_gradspace{package}")
    assert {f"{module.__name__}.{name}" for name in module.__all__} <= set(documented())
