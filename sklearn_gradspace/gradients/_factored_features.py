"""Features that are not formed, where they are quotients of gradients: their products with weights.

Gradients in factored form enter; what enters the hidden units of GradNet leaves.
"""

from collections.abc import Sequence

from torch import Tensor

from ._blocks import Block
from ._factored import FactoredGradients


class FactoredFeatures:
    """Features of shape (n * k, n_params), gradients that are divided by a number for each block or entry.

    Parameters
    ----------
    gradients : FactoredGradients
        Of shape (n, k, n_params).
    blocks : sequence of Block
        The columns of each parameter.
    divisors : sequence of float or of Tensor of shape (size,)
        What the gradients of each block are divided by, or each of its entries.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import FactoredFeatures, FactoredGradients, GradientEngine
    >>> X = torch.ones(2, 4).numpy()
    >>> engine = GradientEngine(torch.nn.Linear(4, 3), X)
    >>> features = FactoredFeatures(FactoredGradients(engine, X), engine.blocks, [2.0])
    >>> features.linear([engine.blocks[0].slice], torch.ones(5, 12), torch.zeros(5)).shape
    torch.Size([6, 5])
    """

    def __init__(self, gradients: FactoredGradients, blocks: Sequence[Block], divisors: Sequence) -> None:
        self._gradients = gradients
        self._by_start = {block.start: (block, divisor) for block, divisor in zip(blocks, divisors)}

    def linear(self, columns: Sequence[slice], weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``features[:, columns] @ weight.T + bias``, differentiable in weight and bias.

        Parameters
        ----------
        columns : sequence of slice
            The columns of some blocks.
        weight : Tensor of shape (h, number of columns)
            Of h units.
        bias : Tensor of shape (h,)
            Theirs.

        Returns
        -------
        products : Tensor of shape (n * k, h)
            What enters the units.
        """
        total, chosen = bias, [self._by_start[of_block.start] for of_block in columns]
        for (block, divisor), part in zip(chosen, weight.split([block.size for block, _ in chosen], 1)):
            by_entry = isinstance(divisor, Tensor)
            product = self._gradients.dot({block.name: block.shaped(part / divisor if by_entry else part)})
            total = total + (product if by_entry else product / divisor).flatten(0, 1).to(weight)
        return total
