"""The base nets that are trained where the user brings none."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected ReLU net from samples of any shape to outputs.

    Parameters
    ----------
    n_features : int
        Number of entries of a sample.
    n_outputs : int
        Number of outputs.
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers.

    Examples
    --------
    >>> import torch
    >>> MLP(8, 3, hidden_layer_sizes=(5,))(torch.zeros(2, 2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, n_features: int, n_outputs: int, hidden_layer_sizes: Sequence[int] = (32,)) -> None:
        super().__init__()
        widths = [n_features, *hidden_layer_sizes]
        hidden = [layer for n_in, n_out in pairwise(widths) for layer in (nn.Linear(n_in, n_out), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], n_outputs))

    def forward(self, samples: Tensor) -> Tensor:
        """Return outputs of shape (n, n_outputs) for samples of shape (n, ...).

        Parameters
        ----------
        samples : Tensor of shape (n, ...)
            Samples.

        Returns
        -------
        outputs : Tensor of shape (n, n_outputs)
            Logits, or the outputs of a regressor.
        """
        return self.layers(samples)


class GradNetCNN(nn.Module):
    """The GradNet authors' base net for images: two 5x5 convolutions of 64 channels and a linear layer.

    Parameters
    ----------
    image_shape : tuple of int
        (channels, height, width).
    n_classes : int
        Number of outputs.

    Examples
    --------
    >>> import torch
    >>> GradNetCNN((3, 24, 24), 10)(torch.zeros(2, 3, 24, 24)).shape
    torch.Size([2, 10])
    """

    def __init__(self, image_shape: tuple[int, int, int] = (3, 24, 24), n_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(image_shape[0], 64, 5, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
        )
        with torch.no_grad():
            n_features = self.features(torch.zeros(1, *image_shape)).shape[1]
        self.head = nn.Linear(n_features, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (n, n_classes) for images of shape (n, channels, height, width).

        Parameters
        ----------
        images : Tensor of shape (n, channels, height, width)
            Images.

        Returns
        -------
        logits : Tensor of shape (n, n_classes)
            One row an image.
        """
        return self.head(self.features(images))
