"""Penultimate activations: what enters the last linear layer of a trained net, as features.

Samples enter; their activations leave. It is the control that gradient features are compared with.
"""

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import nn

from ..gradients import shared_copy


class PenultimateActivations(TransformerMixin, BaseEstimator):
    """What enters the last linear layer of a trained net.

    Parameters
    ----------
    net : Module
        Trained net; it is shared and never changed.
    batch_size : int, default=1024
        Rows computed at a time.
    """

    def __init__(self, net, *, batch_size=1024):
        self.net = net
        self.batch_size = batch_size

    def fit(self, X, y=None):
        """Do nothing, since the net is trained."""
        return self

    @torch.no_grad()
    def transform(self, X):
        """Return the activations of shape (n_samples, n_units) for samples of shape (n_samples, ...)."""
        net = shared_copy(self.net)
        first = next(net.parameters())
        entered = []
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(lambda layer, args: entered.append(args[0]))
        activations = []
        for start in range(0, len(X), self.batch_size):
            entered.clear()
            net(torch.tensor(X[start : start + self.batch_size], dtype=first.dtype, device=first.device))
            if not entered or entered[-1].ndim != 2:
                raise ValueError("net has no last linear layer on (n, features): it has no penultimate activations.")
            activations.append(entered[-1].cpu().numpy())
        return np.concatenate(activations)

    def __sklearn_clone__(self):
        return type(self)(self.net, batch_size=self.batch_size)

    def __sklearn_is_fitted__(self):
        return True


def last_linear(net: nn.Module) -> str:
    """Return the name of the linear layer that is registered last."""
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise ValueError("net has no linear layer: it has no penultimate activations.")
    return names[-1]
