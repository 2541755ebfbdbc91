"""GradNet: a two-layer net with a block structure on gradient features.

Features of shape (n, n_features) enter; logits of shape (n, n_classes) leave. Every hidden unit sees the gradient of
one layer, or of a group of layers, of the base net (Daróczy, Aleksziew and Benczúr, arXiv:1807.06630).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "square": torch.square,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class GradNet(nn.Module):
    """Two-layer net whose hidden units each see a group of columns.

    Parameters
    ----------
    groups : sequence of sequences of slice
        For each group the columns that its hidden units see.
    n_classes : int
        Number of outputs.
    hidden_sizes : sequence of int
        Number of hidden units of each group.
    activation : {"relu", "square", "tanh", "identity"} or callable
        "square" makes the net literally quadratic, ``sum_j a_j (w_j . g)^2``.
    dropout : float
        Probability with which a hidden unit is left out in training.
    zero_output : bool
        Whether the output layer begins at zero, so that the net returns zeros at first.

    References
    ----------
    A. R. Aleksziew, "Improving Neural Networks using Gradient Space"; B. Daróczy, R. Aleksziew, A. Benczúr,
    arXiv:1807.06630.

    Examples
    --------
    >>> import torch
    >>> net = GradNet([[slice(0, 6)], [slice(6, 10)]], n_classes=3, hidden_sizes=[4, 2])
    >>> net(torch.zeros(5, 10)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        groups: Sequence[Sequence[slice]],
        n_classes: int,
        hidden_sizes: Sequence[int],
        activation: str | Callable[[Tensor], Tensor] = "relu",
        dropout: float = 0.0,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        if not callable(activation) and (not isinstance(activation, str) or activation not in ACTIVATIONS):
            raise ValueError(f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}, nor a callable.")
        if callable(activation):
            tried = activation(torch.zeros(1, 2))
            if not isinstance(tried, Tensor) or tried.shape != (1, 2):
                raise ValueError(f"activation={activation!r} must map a tensor to one of its shape.")
        self.groups = [list(group) for group in groups]
        self.activation = activation
        self.hidden = nn.ModuleList(
            nn.Linear(sum(columns.stop - columns.start for columns in group), size)
            for group, size in zip(self.groups, hidden_sizes, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(sum(hidden_sizes), n_classes)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=0.02)  # as the authors do
            nn.init.zeros_(layer.bias)
        if zero_output:
            for parameter in self.output.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (n, n_classes) for features of shape (n, n_features).

        In the place of a tensor anything will do that has its products, ``linear(columns, weight, bias)`` of shape
        (n, h) for a list of slices, a weight of shape (h, number of columns) and a bias of shape (h,).

        Parameters
        ----------
        features : Tensor of shape (n, n_features)
            Features of views.

        Returns
        -------
        logits : Tensor of shape (n, n_classes)
            One row a view.
        """
        activation = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
        hidden = []
        for group, layer in zip(self.groups, self.hidden):
            if isinstance(features, Tensor):
                parts = [features[:, columns] for columns in group]
                hidden.append(activation(layer(parts[0] if len(parts) == 1 else torch.cat(parts, 1))))
            else:
                hidden.append(activation(features.linear(group, layer.weight, layer.bias)))
        return self.output(self.dropout(torch.cat(hidden, 1)))
