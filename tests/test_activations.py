"""Penultimate activations, the control."""

import numpy as np
import pytest
import torch
from asserts import assert_close, untouched
from sklearn.base import clone
from torch import nn

from sklearn_gradspace._main_job._activations import PenultimateActivations
from sklearn_gradspace.modules import MLP


def test_they_are_what_enters_the_last_linear_layer():
    X = np.random.default_rng(0).normal(size=(7, 6))
    net = MLP(6, 3, (5, 4)).double()
    with untouched(net):
        activations = clone(PenultimateActivations(net, batch_size=3)).fit(X).transform(X)
    with torch.no_grad():
        assert_close(activations, net.layers[:-1](torch.from_numpy(X)))


def test_a_net_without_a_last_linear_layer():
    with pytest.raises(ValueError, match="no last linear layer"):
        PenultimateActivations(nn.Conv1d(2, 3, 1)).transform(np.zeros((4, 2, 5)))
