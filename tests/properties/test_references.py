"""Features, kernels and importances of any net are those of a loop in double precision."""

import copy

import numpy as np
import reference
import torch
from asserts import assert_close, random_state_untouched, untouched
from hypothesis import assume, given
from hypothesis import strategies as st
from properties.nets import nets

from sklearn_gradspace import EdgeImportance, GradientFeaturizer, GradientKernel, check_gradients

SCALES = [None, "minmax", "maxabs", "rms", "layer"]


def truth(drawn, X, scalar="cross_entropy"):
    """Return the gradients of shape (n, n_labels, n_params), and the sizes of the parameters."""
    gradients = reference.gradients(copy.deepcopy(drawn.net), X, scalar, drawn.output)
    return gradients, [p.numel() for p in drawn.net.parameters() if p.requires_grad]


seeds = st.integers(0, 999)


@given(nets(), st.integers(1, 5), seeds, st.sampled_from(SCALES), st.sampled_from([None, 0.5, 2]), st.integers(1, 6))
def test_features(drawn, n, seed, scale, power, batch_size):
    X = drawn.rows(n, seed)
    with untouched(drawn.net), random_state_untouched():
        options = {"layers": "all", "percentile": 100, "net_output": drawn.output, "batch_size": batch_size}
        found = GradientFeaturizer(drawn.net, scale=scale, power=power, output="dense", **options).fit_transform(X)
    gradients, sizes = truth(drawn, X)
    expected = gradients if scale is None else reference.scale(gradients, gradients, scale, sizes)
    expected = expected if power is None else reference.power_norm(expected, power)
    # Coordinates without a gradient, such as those of biases in front of a norm, have their rounding errors scaled up.
    size = np.abs(gradients).max((0, 1))
    real = size > 1e-9 * size.max()
    error = np.abs(found.reshape(expected.shape) - expected)[..., real]
    # A root magnifies rounding next to zero, and so does a range of next to nothing.
    assert not real.any() or error.max() <= (1e-3 if scale or power else 1e-10) * np.abs(expected[..., real]).max()


@given(nets(), st.integers(1, 4), seeds, st.floats(1, 99))
def test_selection(drawn, n, seed, percentile):
    X = drawn.rows(n, seed)
    featurizer = GradientFeaturizer(
        drawn.net, layers="all", percentile=percentile, scale=None, power=None, output="dense", net_output=drawn.output
    )
    gradients, sizes = truth(drawn, X)
    found, ends = featurizer.fit_transform(X).reshape(gradients.shape), np.cumsum(sizes)
    for block in (slice(end - size, end) for end, size in zip(ends, sizes)):
        g, kept = gradients[..., block], found[..., block] != 0
        threshold = np.percentile(np.abs(g), 100 - percentile, axis=-1, keepdims=True, method="lower")
        near = np.abs(np.abs(g) - threshold) <= 1e-9 * np.abs(gradients).max()
        assert (kept == (np.abs(g) > threshold))[~near].all()
        np.testing.assert_allclose(found[..., block][kept], g[kept], atol=1e-12)


@given(nets(), st.integers(1, 4), seeds, st.sampled_from([True, False, "layer"]), st.integers(1, 3))
def test_kernels(drawn, n, seed, normalize, degree):
    X, Y = drawn.rows(n, seed), drawn.rows(2, seed + 1)
    kernel = GradientKernel(drawn.net, degree=degree, normalize=normalize, layers="all", net_output=drawn.output)
    with untouched(drawn.net):
        found = kernel.set_params(random_state=0).fit(X).transform(Y)
    (of_x, sizes), (of_y, _) = truth(drawn, X, "logit"), truth(drawn, Y, "logit")
    blocks = np.split(np.concatenate([of_x, of_y]), np.cumsum(sizes)[:-1], axis=2)
    assume(all(np.abs(block).max(axis=(1, 2)).min() > 1e-6 for block in blocks))  # lengths that are rounding errors
    assert_close(found, reference.kernel(of_y, of_x, sizes, degree, normalize), 1e-7)


@given(nets(), st.integers(2, 5), seeds, st.sampled_from(["sensitivity", "gradient", "fisher"]), st.booleans())
def test_importances(drawn, n, seed, criterion, with_y):
    X, generator = drawn.rows(n, seed), np.random.default_rng(seed)
    gradients, _ = truth(drawn, X)
    y = generator.integers(gradients.shape[1], size=n)
    importance = EdgeImportance(drawn.net, criterion=criterion, layers="all", net_output=drawn.output)
    with untouched(drawn.net):
        importance.fit(X, y if with_y else None)
    of_row = {"sensitivity": np.abs, "gradient": np.abs, "fisher": np.square}[criterion](gradients)
    probabilities = reference.probabilities(copy.deepcopy(drawn.net), X, drawn.output)
    weights = np.eye(gradients.shape[1])[y] if with_y else probabilities
    expected = np.einsum("nkp,nk->p", of_row, weights) / n
    if criterion == "sensitivity":
        parameters = [p.detach().flatten() for p in drawn.net.parameters() if p.requires_grad]
        expected *= torch.cat(parameters).abs().numpy()
    assert_close(np.concatenate([v.ravel() for v in importance.importances_.values()]), expected, 1e-7)


@given(nets(), st.integers(1, 3), seeds)
def test_every_net_is_found_right(drawn, n, seed):
    with untouched(drawn.net), random_state_untouched():
        assert check_gradients(drawn.net, drawn.rows(n, seed), output=drawn.output).ok
