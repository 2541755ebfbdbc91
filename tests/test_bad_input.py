"""Bad input: the errors that docs/errors.rst lists are raised, by the package's own checks, and nothing is changed."""

import re
from contextlib import ExitStack
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
import torch
from asserts import documented, untouched
from bad_input_setting import setting
from torch import nn

matplotlib.use("Agg")

PAGE = (Path(__file__).parents[1] / "docs" / "errors.rst").read_text(encoding="utf-8")
ROWS = [
    tuple(" ".join(cell.split()) for cell in row)
    for row in re.findall(r"\* - ``(.*?)``\n\s+- ``(.*?)``\n\s+- ``(.*?)``\n", PAGE, re.DOTALL)
]
DRAWS = re.compile(r"\b(nn\.\w+|Returning|MLP|split)\(|MLP\b")  # a call that makes a net draws its weights


def as_pattern(message):
    """Return a pattern of a message, in which an ellipsis stands for anything."""
    return ".*".join(map(re.escape, message.split("…")))


def test_the_page_lists_many():
    assert len(ROWS) == PAGE.count("* - ") == len(set(ROWS)) > 450


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("call", "error", "message"), ROWS, ids=[call for call, _, _ in ROWS])
def test_error(call, error, message):
    names = setting(call)
    arrays = {name: value.copy() for name, value in names.items() if isinstance(value, np.ndarray)}
    with ExitStack() as unchanged:
        for value in names.values():
            if isinstance(value, nn.Module) and "lazy_net" not in call and "backward" not in call:
                unchanged.enter_context(untouched(value))
        state = torch.get_rng_state()
        with pytest.raises((Exception, UserWarning)) as caught:
            exec(call, names)
        assert DRAWS.search(call) or torch.equal(torch.get_rng_state(), state)
    assert type(caught.value).__name__ == error
    if sklearn.__version__.startswith("1.9."):  # with which the page was made
        assert re.fullmatch(as_pattern(message), " ".join(str(caught.value).split()))
    assert documented(caught.value), "raised by what does not know the package's parameters"
    for name, before in arrays.items():
        np.testing.assert_array_equal(names[name], before)
