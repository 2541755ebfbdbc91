"""The package as a whole: what an import brings, and that the documentation names what is there."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sklearn_gradspace


def test_an_import_brings_no_more_than_skorchs_does():
    code = (
        "import sys, skorch; before = set(sys.modules); import sklearn_gradspace;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"sklearn_gradspace", "sklearn", "torch", "tqdm"}


@pytest.mark.parametrize("package", ["", ".gradients", ".modules", ".optim", ".pathspace"])
def test_every_public_name_is_there(package):
    module = import_module(f"sklearn_gradspace{package}")
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.skipif(not Path("docs/internals.rst").is_file(), reason="no documentation beside the package")
def test_the_map_of_the_code_is_complete_and_has_nothing_that_is_gone():
    root = Path(sklearn_gradspace.__file__).parent
    files = {path.stem for path in root.rglob("*.py")} - {"__init__"}
    named = set(re.findall(r"^``(_\w+)``", Path("docs/internals.rst").read_text(), re.MULTILINE))
    assert files - named == set() and named - files == set()
