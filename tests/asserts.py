"""Laws, as functions and contexts that assert them."""

import linecache
import re
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import NotFittedError


def as_array(values):
    """Return a tensor of any device, or an array, as an ndarray."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def assert_close(actual, expected, relative=1e-10):
    """Assert equality up to `relative` times the largest entry of `expected`."""
    actual, expected = as_array(actual), as_array(expected)
    assert actual.shape == expected.shape
    error = np.abs(actual.astype(float) - expected).max()
    assert error <= relative * np.abs(expected).max(), f"off by {error:.2g} of {np.abs(expected).max():.2g}"


def assert_sums_to_zero(gradients, probabilities):
    """Assert ``sum_c p_c g_c = 0`` for gradients of shape (n, n_labels, n_params)."""
    gradients = as_array(gradients)
    total = np.einsum("nk,nkp->np", as_array(probabilities), gradients)
    assert np.abs(total).max() <= 1e-12 * np.abs(gradients).max()


def assert_rank_below_labels(gradients):
    """Assert that the gradients of a sample, one a label, have rank n_labels - 1 at most."""
    singular = np.linalg.svd(as_array(gradients), compute_uv=False)
    if singular.shape[1] == as_array(gradients).shape[1]:
        assert (singular[:, -1] <= 1e-12 * singular[:, 0]).all()


def assert_same_in_any_batch(function, X, sizes=(1, 2)):
    """Assert that rows give the same in batches of any size as all at once."""
    whole = function(X)
    for size in sizes:
        parts = [as_array(function(X[start : start + size])) for start in range(0, len(X), size)]
        assert_close(np.concatenate(parts), whole)


@contextmanager
def untouched(net):
    """Assert that what happens inside leaves `net` as it was, to the bit."""
    before = _snapshot(net)
    yield
    after = _snapshot(net)
    for what in before:
        assert before[what] == after[what], f"{what} of the net changed"


def _snapshot(net):
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    hooks = [name for name in vars(net) if name.endswith("hooks")]
    return {
        "names": list(tensors),
        "values": [as_array(t).tobytes() for t in tensors.values()],
        "memory": [(id(t), t.data_ptr(), t._version, t.stride()) for t in tensors.values()],
        "requires_grad": [t.requires_grad for t in tensors.values()],
        "grad": [None if t.grad is None else (id(t.grad), as_array(t.grad).tobytes()) for t in tensors.values()],
        "mode": [module.training for module in net.modules()],
        "hooks": [[list(vars(module)[name].items()) for name in hooks] for module in net.modules()],
        "attributes": [sorted(vars(module)) for module in net.modules()],
    }


@contextmanager
def random_state_untouched():
    """Assert that what happens inside draws nothing from the global generators of torch and NumPy."""
    before, numpy_before = torch.get_rng_state().tolist(), np.random.get_state()
    yield
    assert torch.get_rng_state().tolist() == before
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_before))


def is_mapped(featurizer):
    """Return whether the largest weight of a fitted featurizer's net lies in a file that joblib maps into workers."""
    address = max(featurizer.module_.parameters(), key=torch.numel).data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return "joblib" in line
    return False


_ERRORS = (ValueError, TypeError, MemoryError, AttributeError, IndexError, NotFittedError, UserWarning)
_PARAMETER = re.compile(
    "unexpected (keyword )?argument|empty parameter list|Invalid learning rate|callback|nonlinearity|use_caching"
)


def documented(error):
    """Return whether an error is one that this package raises itself, or that says enough where it comes from.

    That is a ``raise`` of its own, scikit-learn's validation, skorch's and torch's words about unknown parameters, and
    NumPy's about an index.
    """
    modules = [frame.f_globals.get("__name__") or "" for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, _ERRORS):
        return False
    if modules[-1].startswith("sklearn_gradspace"):
        return is_own(error) or isinstance(error, IndexError) or bool(_PARAMETER.search(str(error)))
    validated = any(name.startswith(("sklearn.utils", "sklearn.base")) for name in modules)
    return validated or (modules[-1].startswith(("skorch", "torch")) and bool(_PARAMETER.search(str(error))))


def is_own(error):
    """Return whether a line of this package raised an error, or warned."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith(("raise", "warnings.warn"))
    return raised and (frame.f_globals.get("__name__") or "").startswith("sklearn_gradspace")
