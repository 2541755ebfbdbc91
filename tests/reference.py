"""The slow truth: gradients by a loop over samples and scalars, and what becomes of them by NumPy."""

import numpy as np
import torch
import torch.nn.functional as F


def gradients(net, X, scalar="cross_entropy", output=None):
    """Return d s_c(net(x)) / d w of shape (n, n_scalars, n_params), of all trainable parameters of `net`."""
    net = net.eval()
    parameters = [p for p in net.parameters() if p.requires_grad]
    samples = []
    for row in X:
        n_scalars = len(_scalars(net, row, scalar, output))
        samples.append([_gradient(_scalars(net, row, scalar, output)[k], parameters) for k in range(n_scalars)])
    return np.array(samples)


def _gradient(scalar, parameters):
    found = torch.autograd.grad(scalar, parameters, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found)]
    return np.concatenate([g.numpy().ravel() for g in found])


def _outputs(net, row, output=None):
    returned = net(torch.tensor(row).unsqueeze(0))
    return (returned if output is None else output(returned)).view(1, -1)


def _scalars(net, row, scalar, output):
    outputs = _outputs(net, row, output)
    if callable(scalar):
        return scalar(outputs)[0]
    if scalar == "logit":
        return outputs[0]
    losses = F.cross_entropy(*_all_labels(outputs), reduction="none")
    return losses if scalar == "cross_entropy" else -losses


def _all_labels(outputs):
    """Return logits of shape (n_labels, n_labels) and the labels; one logit z stands for the two logits (0, z)."""
    logits = outputs if outputs.shape[1] > 1 else torch.cat([torch.zeros_like(outputs), outputs], 1)
    return logits.expand(logits.shape[1], -1), torch.arange(logits.shape[1])


def probabilities(net, X, output=None):
    """Return the predicted probabilities of shape (n, n_labels)."""
    with torch.no_grad():
        return np.array([_all_labels(_outputs(net.eval(), row, output))[0][0].softmax(0).numpy() for row in X])


def select(gradients, sizes, percentile):
    """Keep, in each block of a gradient, what is strictly above its (100 - percentile)-th percentile of magnitude."""
    selected = np.zeros_like(gradients)
    if percentile == 100:
        return gradients.copy()
    ends = np.cumsum(sizes)
    for index in np.ndindex(gradients.shape[:-1]):
        for start, end in zip(ends - sizes, ends):
            block = gradients[index][start:end]
            kept = np.abs(block) > np.percentile(np.abs(block), 100 - percentile)
            selected[index][start:end] = np.where(kept, block, 0)
    return selected


def scale(train, new, how, sizes):
    """Scale `new` by the statistics of `train`, both of shape (..., n_params)."""
    train = train.reshape(-1, train.shape[-1])
    offset = np.zeros(train.shape[1])
    if how == "minmax":
        offset = train.min(0)
        divisor = train.max(0) - offset
    elif how == "maxabs":
        divisor = np.abs(train).max(0)
    else:
        ends = np.cumsum(sizes)
        blocks = [slice(e - s, e) for s, e in zip(sizes, ends)] if how == "layer" else range(train.shape[1])
        divisor = np.zeros(train.shape[1])
        for block in blocks:
            nonzero = train[:, block][train[:, block] != 0]
            divisor[block] = np.sqrt(np.mean(nonzero**2)) if len(nonzero) else 0
    divisor = np.where(divisor == 0, 1, divisor)
    return np.where(new == 0, 0, (new - offset) / divisor)


def power_norm(features, power):
    """Return sign(v) |v|^power."""
    return np.sign(features) * np.abs(features) ** power


def kernel(first, second, sizes, degree=2, normalize=True):
    """Return the kernel of shape (n, m) of gradients of shape (n, k, n_params) with others, a pair at a time."""
    ends = np.cumsum(sizes)
    blocks = [slice(e - s, e) for s, e in zip(sizes, ends)] if normalize == "layer" else [slice(0, ends[-1])]
    values = np.empty((len(first), len(second)))
    for i, j in np.ndindex(values.shape):
        values[i, j] = np.mean([_product(first[i][:, b], second[j][:, b], normalize) for b in blocks]) ** degree
    return values


def _product(first, second, normalize):
    """Return the inner product of gradients of shape (k, size), or the cosine of their angle."""
    product = np.sum(first * second)
    if not normalize:
        return product / len(first)
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return product / lengths if lengths else 0.0


def jacobian(function, parameters):
    """Return the Jacobian, of shape (n_values, n_params), of what `function()` returns in the parameters."""
    values = function().flatten()
    unit = torch.eye(len(values), dtype=values.dtype)
    columns = torch.autograd.grad(values, parameters, unit, is_grads_batched=True, allow_unused=True)
    zeros = [torch.zeros(len(values), *parameter.shape) for parameter in parameters]
    return torch.cat([(zero if column is None else column).flatten(1) for zero, column in zip(zeros, columns)], 1)


def rank(matrix, tolerance=1e-9):
    """Return the rank of a matrix, whose singular values have to leave no doubt about it."""
    singular = torch.linalg.svdvals(matrix)
    singular = singular / singular[0]
    rank = int((singular > tolerance).sum())
    assert singular[rank - 1] > 1e-7 and (singular[rank:] < 1e-13).all(), singular
    return rank
